//! How long nobody is taken in when a leader is killed, for a client that may use any relay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sealane_tests::load::Kind;
use sealane_tests::policy;
use serde::Serialize;

use crate::cases::Case;
use crate::load;
use crate::run::{Bed, runtime};
use crate::times::Times;

/// Between the start of the load and the kill, and between the kill and the end of the watch.
const CALM: Duration = Duration::from_secs(3);
const WATCH: Duration = Duration::from_secs(6);
/// A killed node is a follower again within this time.
const BACK: Duration = Duration::from_secs(60);

/// Gaps without a single 250, milliseconds, one per kill, shortest first.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) gaps_ms: Vec<f64>,
}

impl Figures {
    pub(crate) fn longest_ms(&self) -> f64 {
        self.gaps_ms.last().copied().unwrap_or(0.0)
    }
}

/// Kills the leader of one shard after the other with -9 while `connections` offer mail.
///
/// # Errors
/// When the cluster does not recover.
pub(crate) fn run(kills: usize) -> Result<Figures> {
    let mut bed = Bed::start(3, 8, false)?;
    let mut gaps = Vec::new();
    for kill in 0..kills {
        let shard = 1 + (kill as u64 * 3) % 8;
        gaps.push(one(&mut bed, shard)?.as_secs_f64() * 1000.0);
        eprintln!(
            "   leader of shard {shard} killed: longest gap {:.0} ms",
            gaps.last().copied().unwrap_or(0.0)
        );
    }
    gaps.sort_by(f64::total_cmp);
    bed.cluster.pass()?;
    Ok(Figures { gaps_ms: gaps })
}

fn one(bed: &mut Bed, shard: u64) -> Result<Duration> {
    // More than can be sent: the load is cut off when it was watched long enough.
    let case = Case {
        messages: 1_000_000,
        ..Case::base()
    };
    let times = Arc::new(Times::new(case.messages));
    bed.sink.record(Arc::clone(&times));
    times.begin();
    let loads = runtime("load", 1)?;
    let (table, targets) = (Arc::clone(&times), bed.targets(Kind::Mx));
    let load = loads.spawn(async move { load::run(&case, targets, policy::SERVED, table).await });
    std::thread::sleep(CALM);
    let leader = bed.main.block_on(bed.cluster.leader_and_follower(shard))?.0;
    let fault = Instant::now();
    bed.cluster.kill(&leader)?;
    std::thread::sleep(WATCH);
    let gap = times.longest_gap(fault).context("no gap")?;
    load.abort();
    loads.shutdown_timeout(Duration::from_secs(1));
    bed.cluster.start(&leader)?;
    let back = bed.cluster.ready(&leader, BACK);
    bed.main.block_on(back)?;
    Ok(gap)
}
