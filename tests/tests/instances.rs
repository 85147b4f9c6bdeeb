//! Several relay nodes with one certificate, as the pods of one Deployment are: each is itself.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load};
use sealane_tests::sink::{Act, Rule, Stage};
use sealane_tests::wait;
use serde_json::Value;

const GROUP: &str = "mail-relay";
const PATIENCE: Duration = Duration::from_secs(60);

fn strings(list: Option<&Value>, key: &str) -> BTreeSet<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|one| Some(one.get(key)?.as_str()?.to_owned()))
        .collect()
}

/// Who holds something of the queue.
async fn holders(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let queue = cluster.admin_json(&["queue", "list"]).await?;
    let messages = queue.get("messages").and_then(Value::as_array);
    let of = |m: &Value| strings(m.get("recipients"), "leaseHolder");
    let mut all: BTreeSet<String> = messages.into_iter().flatten().flat_map(of).collect();
    all.remove("");
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_with_one_certificate_are_two_nodes_with_leases_of_their_own() -> Result<()> {
    let cluster = Cluster::builder()
        .settings(|s| s.relay_group = Some(GROUP.to_owned()))
        .start()
        .await?;
    let expected: BTreeSet<String> = cluster
        .layout
        .relays
        .iter()
        .map(|relay| format!("{GROUP}/{}", relay.name))
        .collect();
    let nodes = cluster.admin_json(&["node", "list"]).await?;
    let mut listed = nodes.get("nodes").cloned().context("nodes")?;
    if let Some(list) = listed.as_array_mut() {
        list.retain(|node| node.get("kind").and_then(Value::as_str) == Some("relay"));
    }
    let names = strings(Some(&listed), "name");
    ensure!(names == expected, "{names:?}, expected {expected:?}");

    // The next hop takes its time, so that leases can be looked at.
    cluster.sink.script().add(Rule {
        stage: Stage::Mail,
        containing: String::new(),
        act: Act::Delay(Duration::from_secs(2)),
        times: None,
    });
    let ledger = Arc::new(Ledger::default());
    let load = Load::new(cluster.targets(Kind::Mx), 4).messages(60);
    load::run(load, &ledger).await;
    wait::until("both hold leases", PATIENCE, || async {
        let holders = holders(&cluster).await?;
        ensure!(holders == expected, "{holders:?}");
        Ok(())
    })
    .await?;
    cluster.sink.script().clear();
    let verdict = ledger.settle(cluster.sink.store(), PATIENCE).await?;
    println!("{verdict}");
    verdict.holds()?;
    ensure!(verdict.duplicates == 0, "{verdict}");
    cluster.pass()
}
