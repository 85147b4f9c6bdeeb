//! Random faults under load, large and small mail mixed: whatever got 250 arrives, whatever happens.
//! `SEED=n` repeats a run's choice of faults.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};

const FAULTS: usize = 10;
/// Deliveries that one relay node may have in the air (its default credits).
const IN_FLIGHT: usize = 100;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL, started again at once.
    Kill,
    /// SIGTERM, started again when it ended.
    Terminate,
    /// SIGSTOP and, seconds later, SIGCONT: it comes back with old beliefs.
    Pause,
    /// SIGKILL of this and of the next one in the list, started again in the other order.
    KillTwo,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_lose_nothing() -> Result<()> {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    println!("SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    let small = load::start(Load::new(cluster.all_targets(), 12), &ledger);
    let large = load::start(
        Load::new(cluster.all_targets(), 2)
            .size((2 << 20)..=(4 << 20))
            .pause(Duration::from_millis(300)),
        &ledger,
    );
    let names = cluster.layout.names();
    for round in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..1500))).await;
        let at = rng.random_range(0..names.len());
        let (name, other) = (&names[at], &names[(at + 1) % names.len()]);
        let fault = match rng.random_range(0..4) {
            0 => Fault::Kill,
            1 => Fault::Terminate,
            2 => Fault::Pause,
            _ => Fault::KillTwo,
        };
        let began = Instant::now();
        match fault {
            Fault::Kill => {
                cluster.kill(name)?;
                cluster.start(name)?;
            }
            Fault::Terminate => {
                cluster.terminate(name, Duration::from_secs(60)).await?;
                cluster.start(name)?;
            }
            Fault::Pause => {
                cluster.signal(name, Signal::SIGSTOP)?;
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..4000))).await;
                cluster.signal(name, Signal::SIGCONT)?;
            }
            Fault::KillTwo => {
                cluster.kill(name)?;
                cluster.kill(other)?;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
                cluster.start(other)?;
                cluster.start(name)?;
            }
        }
        println!(
            "{round}: {fault:?} {name}, {:.1} s, {} accepted so far",
            began.elapsed().as_secs_f32(),
            ledger.accepted()
        );
    }
    for name in &names {
        cluster.ready(name, Duration::from_secs(60)).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    small.stop().await;
    large.stop().await;
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(120))
        .await?;
    println!("faults={FAULTS} {verdict}");
    verdict.holds()?;
    ensure!(
        verdict.duplicates <= verdict.unknown + FAULTS * IN_FLIGHT,
        "too many duplicates: {verdict}"
    );
    ensure!(verdict.accepted > 100, "hardly anything flowed: {verdict}");
    ensure!(
        verdict.permanent == 0,
        "a fault of ours became a 5xx: {verdict}"
    );
    cluster.pass()
}
