//! A fresh cluster, its restart, a fourth node, a wiped volume, and strangers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::{Cluster, number};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::{policy, wait};
use serde_json::Value;

/// Ids of the control-plane nodes that the cluster knows, with their names.
async fn nodes(cluster: &Cluster) -> Result<BTreeMap<u64, String>> {
    let answer = cluster.admin_json(&["node", "list"]).await?;
    let list = answer
        .as_array()
        .or_else(|| answer.get("nodes").and_then(Value::as_array))
        .context("nodes")?;
    Ok(list
        .iter()
        .map(|node| {
            let id = ["nodeId", "node_id", "id"]
                .iter()
                .map(|key| number(node, key))
                .max()
                .unwrap_or(0);
            (
                id,
                node.get("name")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned(),
            )
        })
        .filter(|(id, _)| *id != 0)
        .collect())
}

async fn mail_flows(cluster: &Cluster) -> Result<()> {
    let ledger = Arc::new(Ledger::default());
    load::run(Load::new(cluster.all_targets(), 4).messages(40), &ledger).await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(30))
        .await?;
    println!("{verdict}");
    ensure!(
        verdict.lost.is_empty() && verdict.damaged.is_empty() && verdict.accepted == 40,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ids_stay_on_the_volume_and_are_never_reused() -> Result<()> {
    let mut cluster = Cluster::builder()
        .control_planes(4)
        .relays(1)
        .prepare()
        .await?;
    for name in ["control-plane-1", "control-plane-2", "control-plane-3"] {
        cluster.start(name)?;
    }
    cluster.control_plane_ready(Duration::from_secs(60)).await?;
    cluster
        .apply_policy(&policy::demo(cluster.sink.address(), "[1s]"))
        .await?;
    cluster.start("relay-node-1")?;
    cluster
        .ready("relay-node-1", Duration::from_secs(30))
        .await?;
    mail_flows(&cluster).await?;
    let founded = nodes(&cluster).await?;
    println!("founded {founded:?}");
    ensure!(founded.len() == 3, "{founded:?}");

    // All restarted at once: the same ids.
    for name in ["control-plane-1", "control-plane-2", "control-plane-3"] {
        cluster.kill(name)?;
    }
    for name in ["control-plane-1", "control-plane-2", "control-plane-3"] {
        cluster.start(name)?;
    }
    cluster.control_plane_ready(Duration::from_secs(60)).await?;
    ensure!(
        nodes(&cluster).await? == founded,
        "ids changed with a restart"
    );
    mail_flows(&cluster).await?;

    // A fourth node joins.
    cluster.start("control-plane-4")?;
    let joined = wait::until(
        "control-plane-4 in the cluster",
        Duration::from_secs(30),
        || async {
            let known = nodes(&cluster).await?;
            ensure!(
                known.values().any(|name| name == "control-plane-4"),
                "{known:?}"
            );
            Ok(known)
        },
    )
    .await?;
    println!("joined {joined:?}");
    ensure!(joined.len() == 4, "{joined:?}");
    mail_flows(&cluster).await?;

    // A wiped volume is another node.
    cluster.kill("control-plane-3")?;
    std::fs::remove_dir_all(cluster.layout.data("control-plane-3"))?;
    cluster.start("control-plane-3")?;
    let wiped = wait::until(
        "control-plane-3 under a new id",
        Duration::from_secs(30),
        || async {
            let known = nodes(&cluster).await?;
            ensure!(
                known
                    .iter()
                    .any(|(id, name)| name == "control-plane-3" && !joined.contains_key(id)),
                "{known:?}"
            );
            Ok(known)
        },
    )
    .await?;
    println!("after the wipe {wiped:?}");
    let newest = wiped
        .iter()
        .filter(|(_, name)| *name == "control-plane-3")
        .map(|(id, _)| *id)
        .max();
    ensure!(
        newest > joined.keys().copied().max(),
        "an old id was given again: {wiped:?}"
    );
    mail_flows(&cluster).await?;

    // It takes the lost one's place, so that the next failure is survived too.
    let newest = newest.context("a new id")?;
    wait::until("the new id votes", Duration::from_secs(60), || async {
        let status = cluster.admin_json(&["cluster", "status"]).await?;
        let groups = status.get("groups").and_then(Value::as_array);
        for group in groups.context("groups")? {
            let voters: Vec<u64> = group
                .get("voters")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .collect();
            ensure!(voters.len() == 3 && voters.contains(&newest), "{group}");
        }
        Ok(())
    })
    .await?;
    cluster.kill("control-plane-1")?;
    mail_flows(&cluster).await?;
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let elsewhere = tempfile::tempdir()?;
    let mut other = Cluster::builder().name("other").layout(elsewhere.path())?;
    other.write()?;
    // The other cluster's admin, asking this cluster.
    other
        .control_planes
        .clone_from(&cluster.layout.control_planes);
    let output = other.admin().args(["cluster", "status"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("other cluster's admin: {}", said.trim());
    ensure!(!output.status.success(), "a stranger was answered");
    // This cluster's relay, asking for what only an admin may.
    let file = cluster.layout.root.join("config").join("policy.yaml");
    let output = cluster
        .layout
        .cli_as("relay-node-1")
        .args(["policy", "apply", "-f"])
        .arg(&file)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("a relay as admin: {}", said.trim());
    ensure!(!output.status.success(), "a relay applied a policy");
    cluster.layout.issue("viewer", "viewer")?;
    let output = cluster
        .layout
        .cli_as("viewer")
        .args(["policy", "apply", "-f"])
        .arg(&file)
        .output()?;
    ensure!(!output.status.success(), "a viewer applied a policy");
    let output = cluster
        .layout
        .cli_as("viewer")
        .args(["cluster", "status"])
        .output()?;
    ensure!(
        output.status.success(),
        "a viewer may look: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Nobody at all.
    let script = format!(
        "printf 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' | timeout 5 openssl s_client -alpn h2 -quiet -connect {} 2>&1",
        cluster.layout.control_planes[0].listen
    );
    let output = Command::new("bash").arg("-c").arg(script).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("alert"), "no certificate, no alert: {said}");
    // A node of the other cluster cannot join here.
    let node = other.control_planes[1].clone();
    let listen = sealane_tests::ports::free()?;
    let text = other
        .control_plane_yaml(&node)
        .replace(&node.listen.to_string(), &listen.to_string());
    std::fs::write(other.config(&node.name), text)?;
    let mut child = other
        .spec(&node.name)?
        .spawn(sealane_tests::process::Lifetime::WithParent)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let known = nodes(&cluster).await?;
    child.kill()?;
    let _reaped = child.wait()?;
    ensure!(known.len() == 3, "a stranger joined: {known:?}");
    mail_flows(&cluster).await?;
    cluster.pass()
}
