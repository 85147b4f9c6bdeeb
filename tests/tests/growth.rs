//! 3 → 5 → 3 control-plane nodes while mail flows, and a wiped node that cannot come back under its old id.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::{Cluster, http_ok};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::membership::{LONG, balanced, ids, joined, nodes, state, three_five_three};
use sealane_tests::wait;

async fn mail_flows(cluster: &Cluster) -> Result<()> {
    let ledger = Arc::new(Ledger::default());
    load::run(Load::new(cluster.all_targets(), 4).messages(40), &ledger).await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    // The sink holds earlier mail too.
    ensure!(
        verdict.lost.is_empty() && verdict.damaged.is_empty() && verdict.accepted == 40,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_five_and_three_again_under_load() -> Result<()> {
    let grown = three_five_three(30, Duration::from_millis(40)).await?;
    println!("{grown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_cannot_come_back_under_its_old_id_and_replace_heals_it() -> Result<()> {
    let mut cluster = Cluster::builder()
        .control_planes(4)
        .founders(3)
        .relays(1)
        .start()
        .await?;
    mail_flows(&cluster).await?;
    let name = "control-plane-3";
    let [old] = ids(&cluster, name).await?[..] else {
        anyhow::bail!("one id");
    };

    // An empty volume is a new node, which takes the places of the old one.
    let (data, kept) = (
        cluster.layout.data(name),
        cluster.layout.root.join("old-volume"),
    );
    cluster.kill(name)?;
    std::fs::rename(&data, &kept)?;
    cluster.start(name)?;
    let new = joined(&cluster, name, "active").await?;
    wait::until("a new id", LONG, || async {
        let known = ids(&cluster, name).await?;
        ensure!(known.len() == 2 && known[1] > old, "{known:?}");
        Ok(())
    })
    .await?;
    let new = new.max(*ids(&cluster, name).await?.last().context("id")?);
    ensure!(state(&cluster, old).await? == "removed");
    balanced(&cluster, &["control-plane-1", "control-plane-2", name]).await?;
    mail_flows(&cluster).await?;

    // The old volume is put back: nobody listens to it, and it says so.
    cluster.kill(name)?;
    let newer = cluster.layout.root.join("new-volume");
    std::fs::rename(&data, &newer)?;
    std::fs::rename(&kept, &data)?;
    let before = nodes(&cluster).await?.len();
    let lines = cluster.log(name).len();
    cluster.start(name)?;
    wait::until("it says that it was removed", LONG, || async {
        let log = cluster.log(name);
        let log = log.get(lines..).unwrap_or_default();
        ensure!(
            log.contains("is no member of the cluster any more"),
            "{log}"
        );
        ensure!(
            log.contains("empty dataDir") || log.contains("empty \\"),
            "what to do: {log}"
        );
        Ok(())
    })
    .await?;
    let metrics = cluster.layout.metrics(name).context("metrics")?;
    ensure!(
        http_ok(metrics, "/readyz").await.is_err(),
        "a removed node is ready"
    );
    ensure!(nodes(&cluster).await?.len() == before, "it joined again");
    ensure!(state(&cluster, old).await? == "removed");
    mail_flows(&cluster).await?;
    cluster.terminate(name, Duration::from_secs(10)).await?;
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&newer, &data)?;
    cluster.start(name)?;
    cluster.ready(name, LONG).await?;
    ensure!(state(&cluster, new).await? == "active");

    // A volume is lost for good: a node of another name heals it.
    cluster.start("control-plane-4")?;
    joined(&cluster, "control-plane-4", "spare").await?;
    let [lost] = ids(&cluster, "control-plane-2").await?[..] else {
        anyhow::bail!("one id");
    };
    cluster.kill("control-plane-2")?;
    std::fs::remove_dir_all(cluster.layout.data("control-plane-2"))?;
    let args = [
        "node",
        "replace",
        "control-plane-2",
        "--with",
        "control-plane-4",
    ];
    let done = cluster.admin_json(&args).await?;
    println!("replaced: {done}");
    ensure!(state(&cluster, lost).await? == "removed");
    balanced(&cluster, &["control-plane-1", name, "control-plane-4"]).await?;
    mail_flows(&cluster).await?;

    // The next failure is survived too.
    cluster.kill("control-plane-1")?;
    mail_flows(&cluster).await?;
    cluster.start("control-plane-1")?;
    cluster.ready("control-plane-1", LONG).await?;

    // And what was lost may come back, as a new node.
    cluster.start("control-plane-2")?;
    let again = joined(&cluster, "control-plane-2", "spare").await?;
    ensure!(again > lost, "an old id was given again");
    cluster.pass()
}
