//! Show 7: every process is restarted, one at a time, under load.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing_and_repeats_nothing() -> Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    let load = load::start(
        Load::new(cluster.all_targets(), 10).pause(Duration::from_millis(50)),
        &ledger,
    );
    let mut restarts = 0;
    for name in cluster.layout.names() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        cluster.terminate(&name, Duration::from_secs(30)).await?;
        let ended = began.elapsed();
        cluster.start(&name)?;
        cluster.ready(&name, Duration::from_secs(30)).await?;
        restarts += 1;
        println!(
            "{name}: ended after {:.1} s, ready after {:.1} s, longest gap {:.1} s",
            ended.as_secs_f32(),
            began.elapsed().as_secs_f32(),
            ledger.longest_gap(began, Instant::now()).as_secs_f32()
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.stop().await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    println!("restarts={restarts} {verdict}");
    verdict.holds()?;
    ensure!(restarts == 5, "restarted {restarts}");
    ensure!(verdict.permanent == 0, "a 5xx under restarts: {verdict}");
    ensure!(
        verdict.unknown == 0,
        "a connection broke behind the final dot: {verdict}"
    );
    ensure!(verdict.duplicates == 0, "{verdict}");
    cluster.pass()
}
