//! Control-plane nodes that come and go, seen through `sealane node list` and `sealane cluster status`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, http_ok, number};
use crate::ledger::{Ledger, Verdict};
use crate::load::{self, Load};
use crate::wait;

/// A step of a membership change takes no longer.
pub const LONG: Duration = Duration::from_secs(120);

/// What `node list` says of the control-plane nodes, by id.
///
/// # Errors
/// When nobody answers.
pub async fn nodes(cluster: &Cluster) -> Result<BTreeMap<u64, Value>> {
    let answer = cluster.admin_json(&["node", "list"]).await?;
    let list = answer.get("nodes").and_then(Value::as_array);
    let list = list.context("nodes")?.iter().cloned();
    Ok(list
        .map(|node| (number(&node, "id"), node))
        .filter(|(id, _)| *id != 0)
        .collect())
}

fn text<'a>(node: &'a Value, key: &str) -> &'a str {
    node.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Ids of a name, oldest first.
///
/// # Errors
/// When nobody answers.
pub async fn ids(cluster: &Cluster, name: &str) -> Result<Vec<u64>> {
    let known = nodes(cluster).await?;
    let named = known.into_iter().filter(|(_, n)| text(n, "name") == name);
    Ok(named.map(|(id, _)| id).collect())
}

/// What the node of that id is: spare, active, removed.
///
/// # Errors
/// When nobody answers or the id is unknown.
pub async fn state(cluster: &Cluster, id: u64) -> Result<String> {
    let known = nodes(cluster).await?;
    let node = known.get(&id).with_context(|| format!("node {id}"))?;
    Ok(text(node, "state").to_owned())
}

/// Waits until the youngest id of a name has that state.
///
/// # Errors
/// When it does not come to it in time.
pub async fn joined(cluster: &Cluster, name: &str, as_what: &str) -> Result<u64> {
    wait::until(&format!("{name} {as_what}"), LONG, || async {
        let id = *ids(cluster, name).await?.last().context("not there")?;
        let now = state(cluster, id).await?;
        ensure!(now == as_what, "{id} is {now}");
        Ok(id)
    })
    .await
}

fn numbers(group: &Value, key: &str) -> BTreeSet<u64> {
    let list = group.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect()
}

fn even(counts: &[u64]) -> bool {
    let most = counts.iter().max().copied().unwrap_or(0);
    let least = counts.iter().min().copied().unwrap_or(0);
    most - least <= 1
}

/// Waits until the active nodes are exactly `names`, and replicas and leaders of the shards are spread
/// evenly over them: counted from the groups' own voters and leaders.
///
/// # Errors
/// When they are not in time.
pub async fn balanced(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let what = format!("balance over {names:?}");
    let counts = wait::until(&what, LONG, || async {
        let known = nodes(cluster).await?;
        let active: BTreeMap<u64, &str> = known
            .iter()
            .filter(|(_, n)| text(n, "state") == "active")
            .map(|(id, n)| (*id, text(n, "name")))
            .collect();
        let active_names: BTreeSet<&str> = active.values().copied().collect();
        ensure!(
            active_names == names.iter().copied().collect(),
            "{active:?}"
        );
        let status = cluster.admin_json(&["cluster", "status"]).await?;
        let groups = status
            .get("groups")
            .and_then(Value::as_array)
            .context("groups")?;
        let mut replicas: BTreeMap<u64, u64> = active.keys().map(|id| (*id, 0)).collect();
        let mut leaders = replicas.clone();
        for group in groups {
            let voters = numbers(group, "voters");
            ensure!(voters.len() == 3, "three different voters: {group}");
            ensure!(
                voters == numbers(group, "wanted"),
                "not where it is to be: {group}"
            );
            if number(group, "group") == 0 {
                continue;
            }
            ensure!(numbers(group, "learners").is_empty(), "{group}");
            for voter in voters {
                *replicas
                    .get_mut(&voter)
                    .context("a voter that is not active")? += 1;
            }
            *leaders
                .get_mut(&number(group, "leader"))
                .context("its leader")? += 1;
        }
        let (replicas, leaders): (Vec<u64>, Vec<u64>) = (
            replicas.into_values().collect(),
            leaders.into_values().collect(),
        );
        ensure!(
            even(&replicas) && even(&leaders),
            "{replicas:?} {leaders:?}"
        );
        ensure!(replicas.iter().sum::<u64>() == 24 && leaders.iter().sum::<u64>() == 8);
        Ok((replicas, leaders))
    })
    .await?;
    println!("{names:?}: replicas {:?}, leaders {:?}", counts.0, counts.1);
    Ok(())
}

async fn accepting(ledger: &Ledger, more: usize) -> Result<()> {
    let now = Instant::now();
    wait::until("mail accepted", LONG, || async {
        let got = ledger.accepted_since(now);
        ensure!(got >= more, "{got} of {more}");
        Ok(())
    })
    .await
}

fn short(name: &str) -> String {
    format!("control-plane-{name}")
}

/// What came of 3 → 5 → 3 nodes.
#[derive(Debug)]
pub struct Grown {
    /// From the first message to the last step.
    pub seconds: f64,
    /// Messages accepted, on average over all steps.
    pub per_second: f64,
    pub verdict: Verdict,
}

/// Three nodes become five and three again, two of the first ones leave, while `connections` offer mail with
/// a pause between messages.
///
/// # Errors
/// When mail is lost, damaged, doubled, refused for good or of unknown outcome; when replicas and leaders are not
/// spread evenly after a step.
pub async fn three_five_three(connections: usize, pause: Duration) -> Result<Grown> {
    let names: Vec<String> = (1..=5).map(|n| short(&n.to_string())).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut cluster = Cluster::builder()
        .control_planes(5)
        .founders(3)
        .start()
        .await?;
    balanced(&cluster, &names[..3]).await?;
    let ledger = Arc::new(Ledger::default());
    let began = Instant::now();
    let load = load::start(
        Load::new(cluster.all_targets(), connections).pause(pause),
        &ledger,
    );
    accepting(&ledger, 200).await?;

    for (n, name) in [(4, names[3]), (5, names[4])] {
        cluster.start(name)?;
        joined(&cluster, name, "spare").await?;
        cluster.ready(name, LONG).await?;
        balanced(&cluster, &names[..n - 1]).await?;
        cluster.admin_json(&["node", "add", name]).await?;
        balanced(&cluster, &names[..n]).await?;
        accepting(&ledger, 200).await?;
        // The relay nodes were never told of it.
        let address = cluster.layout.control_planes[n - 1].listen.to_string();
        wait::until("relays reach it", LONG, || async {
            for relay in ["relay-node-1", "relay-node-2"] {
                let log = cluster.log(relay);
                let mut lines = log.lines();
                let open = lines.any(|l| l.contains("submit stream open") && l.contains(&address));
                ensure!(open, "{relay} has no stream to {address}");
            }
            Ok(())
        })
        .await?;
    }

    // What moved away gives its space back.
    wait::until("old replicas are deleted", LONG, || async {
        for name in &names[..3] {
            let log = cluster.log(name);
            ensure!(
                log.contains("a replica that was moved away is deleted"),
                "{name}"
            );
        }
        Ok(())
    })
    .await?;

    // The founder and another one that every relay node has in its configuration.
    for (left, name) in [(1, names[0]), (2, names[1])] {
        let id = *ids(&cluster, name).await?.last().context("id")?;
        cluster.admin_json(&["node", "remove", name]).await?;
        let now = state(&cluster, id).await?;
        ensure!(now == "removed", "{name} is {now}");
        balanced(&cluster, &names[left..]).await?;
        wait::until("it knows that it was removed", LONG, || async {
            ensure!(
                cluster
                    .log(name)
                    .contains("is no member of the cluster any more")
            );
            let metrics = cluster.layout.metrics(name).context("metrics")?;
            ensure!(http_ok(metrics, "/readyz").await.is_err(), "ready");
            Ok(())
        })
        .await?;
        cluster.terminate(name, Duration::from_secs(30)).await?;
        accepting(&ledger, 200).await?;
    }

    // Relay nodes do not go on with the policy of a node that hears of none.
    let text = crate::policy::demo(cluster.sink.address(), "[1s, 7s]");
    cluster.apply_policy(&text).await?;
    wait::until("the new policy", LONG, || async {
        for relay in ["relay-node-1", "relay-node-2"] {
            let log = cluster.log(relay);
            let in_force = |l: &str| l.contains("policy in force") && l.contains("revision=2");
            ensure!(log.lines().any(in_force), "{relay}");
        }
        Ok(())
    })
    .await?;

    // Three copies need three nodes.
    let refused = cluster.admin_json(&["node", "remove", names[2]]).await;
    let refused = refused.expect_err("the third was removed").to_string();
    ensure!(refused.contains("active nodes would be left"), "{refused}");

    let seconds = began.elapsed().as_secs_f64();
    load.stop().await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    verdict.holds()?;
    ensure!(verdict.duplicates == 0, "{verdict}");
    ensure!(verdict.permanent == 0, "a 5xx for our own sake: {verdict}");
    ensure!(
        verdict.unknown == 0,
        "a connection broke behind the final dot: {verdict}"
    );
    cluster.pass()?;
    Ok(Grown {
        seconds,
        per_second: verdict.accepted as f64 / seconds,
        verdict,
    })
}

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "3 → 5 → 3 nodes in {:.0} s, {:.0} accepted a second meanwhile, {}",
            self.seconds, self.per_second, self.verdict
        )
    }
}
