//! Keeps the logs short, sweeps what is forgotten, and watches the disk.
use crate::raft::{Group, Groups};
use bytes::Bytes;
use sealane_state::REMEMBER_MS;
use sealane_store::Store;
use sealane_types::GroupId;
use sealane_wire::v1::{self, command::Op, command_reply::Result as Answer};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Logs are shortened this often: a body whose entry goes before its memtable is flushed is written once.
const LOOK: Duration = Duration::from_millis(200);
const WATCH: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_secs(60);
/// An upload that was not completed by then is dropped.
const UPLOAD_MS: u64 = 3600 * 1000;
const SWEEP_LIMIT: u32 = 1000;
/// Rounds of one sweep: a shard may finish this many thousand messages a minute.
const SWEEP_ROUNDS: usize = 1000;

/// Runs until `stop`.
pub(crate) async fn run(
    groups: Arc<Groups>,
    store: Arc<Store>,
    reserve: u64,
    disk_full: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let mut next_watch = tokio::time::Instant::now();
    let mut next_sweep = tokio::time::Instant::now() + SWEEP;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        if tokio::time::Instant::now() >= next_watch {
            next_watch = tokio::time::Instant::now() + WATCH;
            watch_disk(&store, reserve, &disk_full);
        }
        for group in groups.iter() {
            group.compact().await;
        }
        if tokio::time::Instant::now() >= next_sweep {
            next_sweep = tokio::time::Instant::now() + SWEEP;
            for group in groups
                .iter()
                .filter(|g| g.is_leader() && g.id() != GroupId::META)
            {
                sweep(&group, groups.clock().wall_ms()).await;
            }
        }
    }
}

/// Refuses new mail below the reserve, takes it again above one and a quarter of it. The ballast comes back
/// only where it does not take that.
fn watch_disk(store: &Store, reserve: u64, disk_full: &AtomicBool) {
    let enough = reserve.saturating_add(reserve / 4);
    if let Err(e) = sealane_runtime::blocking::in_place(|| store.keep_ballast(enough)) {
        tracing::warn!(error = %e, "no ballast: a node whose volume is full cannot start again");
    }
    match sealane_runtime::blocking::in_place(|| store.free_bytes()) {
        Ok(free) => {
            let was = disk_full.load(Ordering::Relaxed);
            let now = if was { free < enough } else { free < reserve };
            if now != was {
                tracing::warn!(
                    free,
                    reserve,
                    full = now,
                    "free space on the volume crossed the reserve"
                );
                disk_full.store(now, Ordering::Relaxed);
            }
        }
        Err(e) => tracing::warn!(error = %e, "free space unknown"),
    }
}

async fn sweep(group: &Group, now: u64) {
    for _ in 0..SWEEP_ROUNDS {
        let op = Op::Sweep(v1::SweepOp {
            dedupe_before_ms: now.saturating_sub(REMEMBER_MS),
            upload_before_ms: now.saturating_sub(UPLOAD_MS),
            limit: SWEEP_LIMIT,
        });
        match group.propose(op, Bytes::new()).await {
            Ok(c) => match c.reply.result {
                Some(Answer::Counted(c)) if c.effective >= SWEEP_LIMIT => {}
                _ => return,
            },
            Err(e) => {
                tracing::debug!(group = %group.id(), error = %e, "sweep not committed");
                return;
            }
        }
    }
}
