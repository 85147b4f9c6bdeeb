//! openraft's state machine on [`sealane_state::apply`] and [`sealane_store`].
//!
//! One write batch per run of entries, last applied position included, unsynced: the log that
//! produced it is earlier in the same WAL. A snapshot is a position, not a copy.
use super::{
    codec,
    log_store::io_error,
    types::{Answer, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig},
};
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use sealane_runtime::blocking;
use sealane_state::Effect;
use sealane_store::{Applied, GroupStore, StagedSnapshot};
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{mpsc, watch};

/// Entries applied in one write batch at most.
const BATCH: usize = 256;

/// What applying a run of entries changed, in log order.
#[derive(Debug)]
pub struct EffectBatch {
    /// The group.
    pub group: GroupId,
    /// Position of the last entry of the run.
    pub applied: u64,
    /// What happened.
    pub effects: Vec<Effect>,
}

/// Bytes of a snapshot: read when sent, or staged on disk after receipt.
#[derive(Debug)]
pub(super) enum SnapshotData {
    Outgoing(GroupStore),
    Incoming(StagedSnapshot),
}

fn stopped() -> io::Error {
    io::Error::other("this instance was stopped")
}

type Pinned = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// The state machine of one group.
#[derive(Debug)]
pub(super) struct StateMachine {
    group: GroupId,
    store: GroupStore,
    applied: Applied,
    effects: mpsc::Sender<EffectBatch>,
    /// Counts batches that found the effect channel full: the consumer rereads everything.
    missed: watch::Sender<u64>,
    /// What the leader said last: see [`Effect::Settled`].
    settled: Arc<AtomicU64>,
    /// Set when another instance takes over the store; held while this one writes.
    retired: Arc<Mutex<bool>>,
}

impl StateMachine {
    pub(super) fn new(
        group: GroupId,
        store: GroupStore,
        effects: mpsc::Sender<EffectBatch>,
        missed: watch::Sender<u64>,
        settled: Arc<AtomicU64>,
        retired: Arc<Mutex<bool>>,
    ) -> io::Result<Self> {
        let applied = store.applied().map_err(io_error)?;
        Ok(Self {
            group,
            store,
            applied,
            effects,
            missed,
            settled,
            retired,
        })
    }

    fn publish(&self, effects: Vec<Effect>) {
        let Some(last) = self.applied.last else {
            return;
        };
        if !effects.is_empty() {
            let batch = EffectBatch {
                group: self.group,
                applied: last.index,
                effects,
            };
            if self.effects.try_send(batch).is_err() {
                self.missed.send_modify(|n| *n += 1);
            }
        }
    }

    /// Applies a run in one batch; the answers are in entry order.
    fn apply_run(&mut self, run: &[Entry]) -> io::Result<(Vec<Answer>, Vec<Effect>)> {
        let retired = self.retired.lock().expect("no panic while held");
        if *retired {
            return Err(stopped());
        }
        let mut txn = self.store.transaction();
        let mut applied = self.applied.clone();
        let mut answers = Vec::with_capacity(run.len());
        let mut effects = Vec::new();
        for entry in run {
            let answer = match &entry.payload {
                EntryPayload::Blank => v1::CommandReply::default(),
                EntryPayload::Membership(m) => {
                    applied.membership_at = Some(codec::position(&entry.log_id));
                    applied.membership = codec::membership_bytes(m);
                    v1::CommandReply::default()
                }
                EntryPayload::Normal(p) => sealane_state::apply(
                    &mut txn,
                    self.group,
                    entry.log_id.index,
                    &p.header,
                    p.body.len(),
                    &mut effects,
                )
                .map_err(io::Error::other)?,
            };
            applied.last = Some(codec::position(&entry.log_id));
            answers.push(Answer(answer));
        }
        txn.set_applied(applied.clone());
        txn.commit().map_err(io_error)?;
        self.applied = applied;
        effects.retain(|e| match e {
            Effect::Settled(index) => {
                self.settled.fetch_max(*index, Ordering::Relaxed);
                false
            }
            _ => true,
        });
        Ok((answers, effects))
    }

    fn current_snapshot(&self) -> io::Result<Option<Pinned>> {
        if self.applied.last.is_none() {
            return Ok(None);
        }
        let meta = SnapshotMeta {
            last_log_id: self.applied.last.map(codec::log_id),
            last_membership: codec::stored_membership(&self.applied)?,
        };
        // Pinned only when it is sent: what is sent is this position or a later one.
        Ok(Some(Pinned {
            meta,
            snapshot: SnapshotData::Outgoing(self.store.clone()),
        }))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((
            self.applied.last.map(codec::log_id),
            codec::stored_membership(&self.applied)?,
        ))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut run: Vec<Entry> = Vec::new();
        let mut responders: Vec<Option<ApplyResponder<TypeConfig>>> = Vec::new();
        let mut ended = false;
        while !ended {
            let mut next = entries.next().await;
            loop {
                match next {
                    None => {
                        ended = true;
                        break;
                    }
                    Some(item) => {
                        let (entry, responder) = item?;
                        run.push(entry);
                        responders.push(responder);
                    }
                }
                if run.len() >= BATCH {
                    break;
                }
                match entries.next().now_or_never() {
                    Some(n) => next = n,
                    None => break,
                }
            }
            if run.is_empty() {
                continue;
            }
            let (answers, effects) = self.apply_run(&run)?;
            run.clear();
            self.publish(effects);
            for (responder, answer) in responders.drain(..).zip(answers) {
                if let Some(r) = responder {
                    r.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder(self.current_snapshot())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Incoming(staged) = snapshot else {
            return Err(io::Error::other(
                "a snapshot of this node was offered to itself",
            ));
        };
        let applied = Applied {
            last: meta.last_log_id.as_ref().map(codec::position),
            membership_at: meta.last_membership.log_id().as_ref().map(codec::position),
            membership: codec::membership_bytes(meta.last_membership.membership()),
        };
        blocking::in_place(|| {
            let retired = self.retired.lock().expect("no panic while held");
            if *retired {
                return Err(stopped());
            }
            self.store
                .install(staged, applied.clone())
                .map_err(io_error)
        })?;
        self.applied = applied;
        // Everything may have changed: consumers reread.
        self.missed.send_modify(|n| *n += 1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Pinned>, io::Error> {
        self.current_snapshot()
    }
}

/// Holds the position that `get_snapshot_builder` saw.
#[derive(Debug)]
pub(super) struct SnapshotBuilder(io::Result<Option<Pinned>>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Pinned, io::Error> {
        match std::mem::replace(&mut self.0, Ok(None)) {
            Ok(Some(s)) => Ok(s),
            Ok(None) => Err(io::Error::other("nothing is applied yet")),
            Err(e) => Err(e),
        }
    }
}
