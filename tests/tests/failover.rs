//! Show 3: kill -9 of a shard's leader, of a follower, of a relay node, of the whole control plane,
//! with mail flowing from 20 connections. Whatever got 250 arrives.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::wait;

/// Deliveries that one relay node may have in the air (its default credits).
const IN_FLIGHT: usize = 100;

/// How long acceptance is watched after a fault.
const WATCH: Duration = Duration::from_secs(6);

async fn accepting(ledger: &Ledger, more: usize) -> Result<()> {
    let now = Instant::now();
    wait::until("mail accepted", Duration::from_secs(60), || async {
        ensure!(
            ledger.accepted_since(now) >= more,
            "{} of {more}",
            ledger.accepted_since(now)
        );
        Ok(())
    })
    .await
}

/// Longest time without a 250 from the fault on.
async fn gap(ledger: &Ledger, fault: Instant, what: &str) -> Result<()> {
    tokio::time::sleep(WATCH).await;
    let gap = ledger.longest_gap(fault, Instant::now());
    let count = ledger.accepted_since(fault);
    println!(
        "{what}: longest gap {:.2} s, {count} accepted in the {} s after",
        gap.as_secs_f32(),
        WATCH.as_secs()
    );
    ensure!(
        count > 0,
        "{what}: nothing accepted for {} s",
        WATCH.as_secs()
    );
    ensure!(
        gap <= Duration::from_secs(3),
        "{what}: acceptance stood still for {gap:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_got_250_survives_kill_9() -> Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    let load = load::start(Load::new(cluster.all_targets(), 20), &ledger);
    accepting(&ledger, 100).await?;

    let (leader, _) = cluster.leader_and_follower(1).await?;
    let fault = Instant::now();
    cluster.kill(&leader)?;
    gap(&ledger, fault, &format!("leader {leader} killed")).await?;
    cluster.start(&leader)?;
    cluster.ready(&leader, Duration::from_secs(30)).await?;

    let (_, follower) = cluster.leader_and_follower(1).await?;
    let fault = Instant::now();
    cluster.kill(&follower)?;
    gap(&ledger, fault, &format!("follower {follower} killed")).await?;
    cluster.start(&follower)?;
    cluster.ready(&follower, Duration::from_secs(30)).await?;

    let fault = Instant::now();
    cluster.kill("relay-node-1")?;
    gap(&ledger, fault, "relay-node-1 killed").await?;
    cluster.start("relay-node-1")?;
    cluster
        .ready("relay-node-1", Duration::from_secs(30))
        .await?;
    accepting(&ledger, 50).await?;

    load.stop().await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    let bound = verdict.unknown + 3 * IN_FLIGHT;
    println!(
        "faults=3 {verdict}\nduplicates {} of at most {bound}",
        verdict.duplicates
    );
    verdict.holds()?;
    ensure!(
        verdict.duplicates <= bound,
        "too many duplicates: {verdict}"
    );
    ensure!(
        verdict.permanent == 0,
        "a fault of ours became a 5xx: {verdict}"
    );
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_missing_after_the_whole_control_plane_was_killed() -> Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    let load = load::start(Load::new(cluster.all_targets(), 20), &ledger);
    accepting(&ledger, 150).await?;
    let names: Vec<String> = cluster
        .layout
        .control_planes
        .iter()
        .map(|node| node.name.clone())
        .collect();
    let before = ledger.judge(cluster.sink.store())?;
    for name in &names {
        cluster.kill(name)?;
    }
    let fault = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let meanwhile = ledger.accepted_since(fault + Duration::from_millis(500));
    ensure!(
        meanwhile == 0,
        "{meanwhile} messages got 250 without any control plane"
    );
    for name in &names {
        cluster.start(name)?;
    }
    cluster.control_plane_ready(Duration::from_secs(60)).await?;
    accepting(&ledger, 50).await?;
    load.stop().await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    println!(
        "waiting at the kill: {}; faults=3 (at once) {verdict}",
        before.lost.len()
    );
    verdict.holds()?;
    ensure!(
        verdict.duplicates <= verdict.unknown + 2 * IN_FLIGHT,
        "too many duplicates: {verdict}"
    );
    cluster.pass()
}
