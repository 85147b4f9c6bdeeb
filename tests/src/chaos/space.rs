//! Disks that are full and disks that are slow, on a leader, on a follower, and everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::damage::hold;
use super::quantities::{Quantities, terms};
use crate::cluster::Cluster;
use crate::ledger::{Ledger, Verdict};
use crate::load::{self, Load};
use crate::wait;

const LONG: Duration = Duration::from_secs(60);
/// Free octets of a full disk: half of the default reserve.
const FULL: u64 = 256 << 20;
/// How long a slow disk is watched.
const SLOW: Duration = Duration::from_secs(12);
/// New terms of one group, in a minute, from which on it is a storm.
const STORM: f32 = 6.0;
const GROUPS: f32 = 9.0;

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Leader,
    Follower,
    Everywhere,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ill {
    Full,
    /// Not one octet is left: below the reserve, by somebody else's fault. The node ends; started again it has
    /// its ballast to go on with.
    Exhausted,
    /// A sync takes so many milliseconds.
    Slow(u64),
}

/// Runs the cases one after another on a cluster of three nodes; only without an octet a process may end.
///
/// # Errors
/// When mail is accepted to a full disk, deliveries stop, elections storm, or a node needs a restart.
pub async fn run(cases: &[(Ill, Place)]) -> Result<Quantities> {
    let mut cluster = Cluster::builder().disks().start().await?;
    let began = Instant::now();
    let ledger = Arc::new(Ledger::default());
    let mut quantities = Quantities::default();
    let terms_before = terms(&cluster).await?;
    let mut failures = Vec::new();
    for &(ill, place) in cases {
        let (leader, follower) = cluster.leader_and_follower(1).await?;
        let names = match place {
            Place::Leader => vec![leader],
            Place::Follower => vec![follower],
            Place::Everywhere => cluster.disk_names(),
        };
        let outcome = match ill {
            Ill::Exhausted => Box::pin(exhausted(&mut cluster, &ledger, &names)).await,
            Ill::Full => Box::pin(full(&mut cluster, &ledger, &names)).await,
            Ill::Slow(time) => Box::pin(slow(&mut cluster, &ledger, &names, time)).await,
        };
        match outcome {
            Ok(said) => println!("{ill:?} {place:?} {names:?}: {said}"),
            Err(error) => {
                println!("{ill:?} {place:?} {names:?}: FAILED: {error:#}");
                failures.push(format!("{ill:?} {place:?}: {error:#}"));
            }
        }
        cluster.sink.script().clear();
        for name in cluster.disk_names() {
            cluster.disk(&name)?.tell("slow 0")?;
            cluster.disk(&name)?.tell("space unlimited")?;
        }
        cluster.all_alive()?;
        for name in cluster.layout.names() {
            cluster.ready(&name, LONG).await?;
        }
        quantities.took_effect(&format!("{ill:?} {place:?}"));
    }
    quantities.verdict = ledger.settle(cluster.sink.store(), LONG).await?;
    quantities.disks = cluster.disk_statistics()?;
    quantities.terms = terms(&cluster).await?.saturating_sub(terms_before);
    quantities.seconds = began.elapsed().as_secs_f32();
    // A slow disk may hold a result up until the lease of its delivery is over.
    quantities.explained = quantities.verdict.unknown + 100 * cases.len();
    println!("{quantities}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    if quantities.hold().is_ok() {
        cluster.pass()?;
    }
    Ok(quantities)
}

/// Process ids of the control plane: the same afterwards, or somebody was started again.
fn pids(cluster: &Cluster) -> Result<BTreeMap<String, u32>> {
    let names = cluster.disk_names();
    names
        .into_iter()
        .map(|name| Ok((name.clone(), cluster.pid(&name)?)))
        .collect()
}

/// How often 452 was said for want of space.
fn insufficient_storage(verdict: &Verdict) -> usize {
    let said = verdict.refusals.iter();
    said.filter(|(text, _)| text.contains("452 4.3.1"))
        .map(|(_, times)| *times)
        .sum()
}

async fn full(cluster: &mut Cluster, ledger: &Arc<Ledger>, names: &[String]) -> Result<String> {
    let before = pids(cluster)?;
    hold(cluster);
    load::run(Load::new(cluster.all_targets(), 10).messages(150), ledger).await;
    for name in names {
        cluster.disk(name)?.tell(&format!("space {FULL}"))?;
    }
    wait::until("the node notices that its disk is full", LONG, || async {
        for name in names {
            let log = cluster.log(name);
            let last = log
                .lines()
                .rfind(|line| line.contains("crossed the reserve"));
            let last = last.context("not noticed")?;
            ensure!(last.contains("full=true"), "{last}");
        }
        Ok(())
    })
    .await?;
    let everywhere = names.len() == cluster.disk_names().len();
    // What comes now is refused for the time being, or taken by a shard that is led elsewhere.
    let earlier = ledger.judge(cluster.sink.store())?;
    let offered = 60;
    load::run(
        Load::new(cluster.all_targets(), 6).messages(offered).once(),
        ledger,
    )
    .await;
    let now = ledger.judge(cluster.sink.store())?;
    let accepted = now.accepted - earlier.accepted;
    let insufficient = insufficient_storage(&now) - insufficient_storage(&earlier);
    if everywhere {
        ensure!(
            accepted == 0 && insufficient == offered,
            "not 452 for all: {now}"
        );
    }
    ensure!(now.permanent == 0, "{now}");
    // Deliveries go on.
    cluster.sink.script().clear();
    let verdict = ledger.settle(cluster.sink.store(), LONG).await?;
    ensure!(verdict.lost.is_empty(), "deliveries stopped: {verdict}");
    for name in names {
        cluster.disk(name)?.tell("space unlimited")?;
    }
    let since = Instant::now();
    load::run(Load::new(cluster.all_targets(), 6).messages(30), ledger).await;
    let recovered = since.elapsed();
    ensure!(recovered < LONG, "not accepted again for {recovered:?}");
    cluster.all_alive()?;
    ensure!(before == pids(cluster)?, "a node was started again");
    Ok(format!(
        "{accepted} of {offered} accepted, {insufficient} times 452, all delivered while full, 30 accepted {:.1} s after there was space",
        recovered.as_secs_f32()
    ))
}

async fn exhausted(
    cluster: &mut Cluster,
    ledger: &Arc<Ledger>,
    names: &[String],
) -> Result<String> {
    for name in names {
        cluster.has_ballast(name, LONG).await?;
    }
    hold(cluster);
    load::run(Load::new(cluster.all_targets(), 10).messages(150), ledger).await;
    let before = cluster.disk_statistics()?.no_space;
    let from: Vec<u64> = names.iter().map(|name| cluster.log_length(name)).collect();
    for name in names {
        cluster.disk(name)?.tell("space 0")?;
    }
    let load = load::start(Load::new(cluster.all_targets(), 6), ledger);
    for (name, from) in names.iter().zip(from) {
        cluster.ended(name, from, LONG).await?;
    }
    let refused = cluster.disk_statistics()?.no_space - before;
    ensure!(refused > 0, "the disk was never asked for space");
    // Nobody gave it space: it starts, refuses mail, and delivers what it has.
    let since = Instant::now();
    for name in names {
        cluster.start(name)?;
    }
    for name in names {
        cluster.ready(name, LONG).await.context("while full")?;
        ensure!(
            cluster.log(name).contains("the ballast is deleted"),
            "{name} started without its ballast"
        );
    }
    let ready = since.elapsed();
    cluster.sink.script().clear();
    if names.len() == cluster.disk_names().len() {
        // Nobody takes mail, so what waits is what was taken before.
        let verdict = ledger.settle(cluster.sink.store(), LONG).await?;
        ensure!(verdict.lost.is_empty(), "deliveries stopped: {verdict}");
    }
    cluster.all_alive()?;
    for name in names {
        cluster.disk(name)?.tell("space unlimited")?;
    }
    for name in names {
        cluster.has_ballast(name, LONG).await?;
    }
    let spacious = Instant::now();
    wait::until("accepting again", LONG, || async {
        let now = ledger.accepted_since(spacious);
        ensure!(now >= 30, "{now}");
        Ok(())
    })
    .await?;
    load.stop().await;
    let verdict = ledger.settle(cluster.sink.store(), LONG).await?;
    ensure!(verdict.lost.is_empty(), "deliveries stopped: {verdict}");
    Ok(format!(
        "{refused} writes found no space and the nodes ended; on the full disk they were ready again after {:.1} s and \
         delivered what waited; 30 accepted {:.1} s after there was space",
        ready.as_secs_f32(),
        spacious.elapsed().as_secs_f32()
    ))
}

async fn slow(
    cluster: &mut Cluster,
    ledger: &Arc<Ledger>,
    names: &[String],
    time: u64,
) -> Result<String> {
    let before = (pids(cluster)?, terms(cluster).await?);
    let load = load::start(Load::new(cluster.all_targets(), 12), ledger);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for name in names {
        cluster.disk(name)?.tell(&format!("slow {time}"))?;
    }
    let start = Instant::now();
    tokio::time::sleep(SLOW).await;
    let accepted = ledger.accepted_since(start);
    let gap = ledger.longest_gap(start, Instant::now());
    for name in names {
        cluster.disk(name)?.tell("slow 0")?;
    }
    let healed = Instant::now();
    wait::until("accepting at full speed", LONG, || async {
        let now = ledger.accepted_since(healed);
        ensure!(now >= 100, "{now}");
        Ok(())
    })
    .await?;
    let recovered = healed.elapsed();
    load.stop().await;
    let passed = terms(cluster).await?.saturating_sub(before.1);
    cluster.all_alive()?;
    ensure!(before.0 == pids(cluster)?, "a node was started again");
    let storm = passed as f32 / GROUPS / (SLOW.as_secs_f32() / 60.0);
    ensure!(storm < STORM, "{passed} new terms: an election storm");
    ensure!(accepted > 0, "nothing was accepted with slow disks");
    Ok(format!(
        "{accepted} accepted in {} s, longest gap {:.1} s, {passed} new terms, 100 accepted {:.1} s after it was fast again",
        SLOW.as_secs(),
        gap.as_secs_f32(),
        recovered.as_secs_f32()
    ))
}
