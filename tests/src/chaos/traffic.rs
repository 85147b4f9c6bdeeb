//! The mail that flows while things go wrong, and the account of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::quantities::{Quantities, terms};
use crate::cluster::Cluster;
use crate::ledger::Ledger;
use crate::load::{self, Load};

/// Deliveries that one relay node may have in the air (its default credits).
const IN_FLIGHT: usize = 100;

/// Small and large messages to all listeners, until it is ended.
pub(super) struct Traffic {
    pub(super) ledger: Arc<Ledger>,
    pub(super) began: Instant,
    small: load::Running,
    large: load::Running,
    terms: u64,
}

impl Traffic {
    pub(super) async fn start(cluster: &Cluster) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let small = Load::new(cluster.all_targets(), 10).pause(Duration::from_millis(30));
        // Bodies that go to blob files, and ones that travel in pieces.
        let large = Load::new(cluster.all_targets(), 2)
            .size((100 << 10)..=(4 << 20))
            .pause(Duration::from_millis(450));
        Ok(Self {
            began: Instant::now(),
            terms: terms(cluster).await?,
            small: load::start(small, &ledger),
            large: load::start(large, &ledger),
            ledger,
        })
    }

    /// Stops it, waits at most `limit` until the queue is empty, judges, and prints. The folder of a run
    /// that did not hold stays.
    pub(super) async fn end(
        self,
        cluster: Cluster,
        mut quantities: Quantities,
        limit: Duration,
    ) -> Result<Quantities> {
        self.small.stop().await;
        self.large.stop().await;
        quantities.verdict = self.ledger.settle(cluster.sink.store(), limit).await?;
        quantities.disks = cluster.disk_statistics()?;
        quantities.terms = terms(&cluster).await?.saturating_sub(self.terms);
        quantities.seconds = self.began.elapsed().as_secs_f32();
        // What was in the air on both relay nodes when a fault struck may be given out again.
        let faults = quantities.faults.values().sum::<usize>();
        quantities.explained = quantities.verdict.unknown + faults * 2 * IN_FLIGHT;
        println!("{quantities}");
        if quantities.hold().is_ok() {
            cluster.pass()?;
        }
        Ok(quantities)
    }
}
