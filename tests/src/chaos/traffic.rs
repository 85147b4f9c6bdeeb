//! The mail that flows while things go wrong, and the account of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::quantities::{Quantities, terms};
use crate::awake;
use crate::cluster::{Cluster, number};
use crate::ledger::Ledger;
use crate::load::{self, Load, Mail};
use crate::sink::Counts;

/// Deliveries that one relay node may have in the air (its default credits).
const IN_FLIGHT: usize = 100;

/// How long after the last first delivery second ones are waited for: a lease, and its grace.
const LATE: Duration = Duration::from_secs(15);

/// Small and large messages to all listeners, until it is ended.
pub(super) struct Traffic {
    pub(super) ledger: Arc<Ledger>,
    pub(super) began: Instant,
    small: load::Running,
    large: load::Running,
    terms: u64,
}

impl Traffic {
    /// Mail of all kinds, and no more than a disk has room for in hours: what arrived right is deleted.
    pub(super) async fn for_long(cluster: &Cluster) -> Result<Self> {
        let ledger = Arc::new(Ledger::thrifty());
        let small = Load::new(cluster.all_targets(), 8)
            .mails(Mail::everything())
            .pause(Duration::from_millis(100));
        let large = Load::new(cluster.all_targets(), 1)
            .size((100 << 10)..=(3 << 20))
            .pause(Duration::from_millis(1500));
        Self::of(cluster, small, large, ledger).await
    }

    pub(super) async fn start(cluster: &Cluster) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let small = Load::new(cluster.all_targets(), 10).pause(Duration::from_millis(30));
        // Bodies that go to blob files, and ones that travel in pieces.
        let large = Load::new(cluster.all_targets(), 2)
            .size((100 << 10)..=(4 << 20))
            .pause(Duration::from_millis(450));
        Self::of(cluster, small, large, ledger).await
    }

    async fn of(cluster: &Cluster, small: Load, large: Load, ledger: Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            terms: terms(cluster).await?,
            small: load::start(small, &ledger),
            large: load::start(large, &ledger),
            ledger,
        })
    }

    /// Stops it, waits at most `limit` until the queue is empty, judges, and prints. The folder of a run
    /// that did not hold, or that is to be looked at, stays.
    pub(super) async fn end(
        self,
        cluster: Cluster,
        mut quantities: Quantities,
        limit: Duration,
        keep: bool,
    ) -> Result<Quantities> {
        // Who is refused is patient: where nothing is accepted any more, this would never end.
        let _in_time = tokio::time::timeout(limit, self.small.stop()).await;
        let _in_time = tokio::time::timeout(limit, self.large.stop()).await;
        quantities.verdict = self.ledger.settle(cluster.sink.store(), limit).await?;
        // What is delivered twice comes after what is delivered once.
        tokio::time::sleep(LATE).await;
        quantities.verdict = self.ledger.judge(cluster.sink.store())?;
        quantities.waiting = waiting(&cluster, limit).await?;
        quantities.disks = cluster.disk_statistics()?;
        quantities.terms = terms(&cluster).await?.saturating_sub(self.terms);
        quantities.seconds = self.began.elapsed().as_secs_f32();
        quantities.stops = awake::stops(self.began);
        quantities.clear_commands = Counts::get(&cluster.sink.counts().clear_commands);
        // What was in the air on both relay nodes when a fault struck may be given out again.
        let strikes = quantities.may_repeat + quantities.stops;
        quantities.explained =
            quantities.verdict.unknown + quantities.kept_and_dropped + strikes * 2 * IN_FLIGHT;
        println!("{quantities}");
        if !keep && quantities.hold().is_ok() {
            cluster.pass()?;
        }
        Ok(quantities)
    }
}

/// Messages that wait in the queue when nothing of the ledger is missing any more: none, at last (I8).
async fn waiting(cluster: &Cluster, limit: Duration) -> Result<u64> {
    let began = Instant::now();
    loop {
        let list = cluster
            .admin_json(&["queue", "list", "--limit", "1"])
            .await?;
        ensure!(list.get("totalWaiting").is_some(), "totalWaiting: {list}");
        let waiting = number(&list, "totalWaiting");
        if waiting == 0 || awake::since(began) >= limit {
            return Ok(waiting);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
