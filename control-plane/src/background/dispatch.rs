//! Hands due mail to relays: one task per node, for all shards that this node leads.
//!
//! ```text
//!  effects of apply ─► dirty ids ─► read the state again ─► Scheduler (one per led shard)
//!  relay credits ────────────────────────────────────────►    │ next()
//!                                                             ▼
//!                             LeaseOp proposed, granted ─► Lease event to the relay
//! ```
//!
//! The scheduler is an index of the replicated state, never a second truth: after every effect and
//! every proposal the message is read again. A wrong guess costs a lease that is not granted.
use crate::{
    metrics::Metrics,
    policy_view::PolicyView,
    raft::{EffectBatch, Group, Groups, now_ms},
    service::deliver::DeliverDesk,
};
use bytes::Bytes;
use sealane_scheduler::{Scheduler, WorkItem};
use sealane_state::queries::{self, StoredMessage};
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{
    self, command::Op, command_reply::Result as Answer, recipient_record::State,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Time-driven work (due retries, expired leases) is looked at this often.
const TICK: Duration = Duration::from_millis(100);
/// Messages leased in one entry at most.
const BATCH: usize = 128;
/// A lease is taken back this long after its end: the relay's clock may run a little slower.
const LEASE_GRACE_MS: u64 = 2_000;
/// Messages read per page when a shard's index is rebuilt.
const PAGE: usize = 1024;
/// Inputs that wait for the dispatcher; senders wait when it is full.
const INPUTS: usize = 4096;

/// A connected relay, for `sealane node list`.
#[derive(Debug, Clone)]
pub(crate) struct RelayInfo {
    pub(crate) name: String,
    pub(crate) since_ms: u64,
}

/// Relays with a delivery stream to this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct RelayDirectory(Arc<Mutex<BTreeMap<String, RelayInfo>>>);

impl RelayDirectory {
    pub(crate) fn list(&self) -> Vec<RelayInfo> {
        self.0
            .lock()
            .expect("no panic while held")
            .values()
            .cloned()
            .collect()
    }
}

/// What delivery streams tell the dispatcher.
#[derive(Debug)]
pub(crate) enum Input {
    Joined {
        relay: String,
        session: u64,
        events: mpsc::Sender<Result<v1::DeliverEvent, Status>>,
    },
    Left {
        relay: String,
        session: u64,
    },
    Credit {
        relay: String,
        session: u64,
        leases: u32,
    },
    /// A proposed lease batch is settled: these messages are read again.
    Settled {
        group: GroupId,
        ids: Vec<MessageId>,
        relay: String,
        unused_credits: u32,
    },
}

/// The dispatcher's mailbox.
pub(crate) fn mailbox() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUTS)
}

#[derive(Debug)]
struct Relay {
    session: u64,
    events: mpsc::Sender<Result<v1::DeliverEvent, Status>>,
    credits: u32,
}

#[derive(Debug)]
struct Shard {
    term: u64,
    scheduler: Scheduler,
    /// Lease proposed, not settled: not touched until then.
    pending: BTreeSet<MessageId>,
    /// Effects up to here were in the state when the index was built.
    built_at: u64,
}

/// Everything the dispatcher works with.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) groups: Arc<Groups>,
    pub(crate) policy: PolicyView,
    pub(crate) desk: Arc<DeliverDesk>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) directory: RelayDirectory,
    pub(crate) lease: Duration,
    pub(crate) tx: mpsc::Sender<Input>,
    pub(crate) state: DispatcherState,
}

/// Its own memory.
#[derive(Debug, Default)]
pub(crate) struct DispatcherState {
    shards: BTreeMap<GroupId, Shard>,
    relays: HashMap<String, Relay>,
}

impl Dispatcher {
    /// Runs until `stop`.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut effects: mpsc::Receiver<EffectBatch>,
        mut missed: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(batch) = effects.recv() => {
                    self.effects(batch);
                    while let Ok(batch) = effects.try_recv() {
                        self.effects(batch);
                    }
                }
                Some(input) = inputs.recv() => {
                    self.input(input);
                    while let Ok(input) = inputs.try_recv() {
                        self.input(input);
                    }
                }
                Ok(()) = missed.changed() => {
                    missed.mark_unchanged();
                    tracing::info!("state changed beyond the effect channel: rebuilding the delivery index");
                    self.state.shards.clear();
                    self.policy.refresh();
                }
                _ = ticks.tick() => {
                    self.follow_leadership();
                    self.expire();
                }
            }
            self.dispatch();
        }
    }

    // ---- inputs

    fn input(&mut self, input: Input) {
        match input {
            Input::Joined {
                relay,
                session,
                events,
            } => {
                let info = RelayInfo {
                    name: relay.clone(),
                    since_ms: now_ms(),
                };
                self.directory
                    .0
                    .lock()
                    .expect("no panic while held")
                    .insert(relay.clone(), info);
                self.state.relays.insert(
                    relay,
                    Relay {
                        session,
                        events,
                        credits: 0,
                    },
                );
                self.metrics.relays(self.state.relays.len());
            }
            Input::Left { relay, session } => {
                if self
                    .state
                    .relays
                    .get(&relay)
                    .is_some_and(|r| r.session == session)
                {
                    self.state.relays.remove(&relay);
                    self.directory
                        .0
                        .lock()
                        .expect("no panic while held")
                        .remove(&relay);
                    for shard in self.state.shards.values_mut() {
                        shard.scheduler.worker_gone(&relay);
                    }
                    self.metrics.relays(self.state.relays.len());
                }
            }
            Input::Credit {
                relay,
                session,
                leases,
            } => {
                if let Some(r) = self
                    .state
                    .relays
                    .get_mut(&relay)
                    .filter(|r| r.session == session)
                {
                    // 0 withdraws all: the relay drains.
                    r.credits = if leases == 0 {
                        0
                    } else {
                        r.credits.saturating_add(leases)
                    };
                }
            }
            Input::Settled {
                group,
                ids,
                relay,
                unused_credits,
            } => {
                if let Some(r) = self.state.relays.get_mut(&relay) {
                    r.credits = r.credits.saturating_add(unused_credits);
                }
                if let Some(shard) = self.state.shards.get_mut(&group) {
                    for id in &ids {
                        shard.pending.remove(id);
                    }
                    self.reread(group, ids);
                }
            }
        }
    }

    fn effects(&mut self, batch: EffectBatch) {
        if batch.group == GroupId::META {
            self.policy.refresh();
            return;
        }
        let Some(shard) = self.state.shards.get(&batch.group) else {
            return;
        };
        if batch.applied <= shard.built_at {
            return;
        }
        let ids: BTreeSet<MessageId> = batch
            .effects
            .iter()
            .filter_map(sealane_state::Effect::message)
            .collect();
        self.reread(
            batch.group,
            ids.into_iter()
                .filter(|id| !shard.pending.contains(id))
                .collect(),
        );
    }

    // ---- the index

    fn follow_leadership(&mut self) {
        for group in self.groups.iter().filter(|g| g.id() != GroupId::META) {
            let term = group.leading();
            let known = self.state.shards.get(&group.id()).map(|s| s.term);
            match (term, known) {
                (None, Some(_)) => {
                    self.state.shards.remove(&group.id());
                    self.metrics.shard(group.id().0, None);
                }
                (Some(t), k) if k != Some(t) => match block_in_place(|| self.build(&group, t)) {
                    Ok(shard) => {
                        self.state.shards.insert(group.id(), shard);
                    }
                    Err(e) => {
                        tracing::error!(shard = %group.id(), error = %e, "delivery index not built, will retry")
                    }
                },
                _ => {}
            }
        }
        let now = now_ms();
        for id in self.state.shards.keys() {
            if let Some(group) = self.groups.group(*id) {
                let reader = group.store().reader();
                let depth = queries::count(&reader).unwrap_or(0);
                let oldest = queries::oldest_ms(&reader)
                    .ok()
                    .flatten()
                    .map_or(0, |at| now.saturating_sub(at));
                self.metrics
                    .shard(id.0, Some((depth, Duration::from_millis(oldest))));
            }
        }
    }

    fn build(&self, group: &Group, term: u64) -> anyhow::Result<Shard> {
        let built_at = group.view().applied;
        let reader = group.store().reader();
        let mut shard = Shard {
            term,
            scheduler: Scheduler::new(),
            pending: BTreeSet::new(),
            built_at,
        };
        let mut after = None;
        loop {
            let page = queries::list(&reader, after, PAGE, None)?;
            for m in &page {
                self.index(&mut shard.scheduler, m);
            }
            match page.last() {
                Some(m) if page.len() == PAGE => after = Some(m.id),
                _ => return Ok(shard),
            }
        }
    }

    fn reread(&mut self, group: GroupId, ids: Vec<MessageId>) {
        let Some(g) = self.groups.group(group) else {
            return;
        };
        let Some(mut shard) = self.state.shards.remove(&group) else {
            return;
        };
        let reader = g.store().reader();
        for id in ids {
            shard.scheduler.remove_message(id);
            match queries::message(&reader, id) {
                Ok(Some(m)) => self.index(&mut shard.scheduler, &m),
                Ok(None) => {}
                Err(e) => tracing::error!(message = %id, error = %e, "message unreadable"),
            }
        }
        self.state.shards.insert(group, shard);
    }

    /// Puts the open recipients of a message into the index, one item per destination.
    fn index(&self, scheduler: &mut Scheduler, m: &StoredMessage) {
        let envelope = m.record.envelope.as_ref();
        let mut waiting: BTreeMap<&str, WorkItem> = BTreeMap::new();
        for (n, r) in m.recipients.iter().enumerate() {
            let mailbox = envelope
                .and_then(|e| e.recipients.get(n))
                .map_or("", |r| r.mailbox.as_str());
            let destination = mailbox.rsplit_once('@').map_or("", |(_, d)| d);
            let number = u32::try_from(n).unwrap_or(u32::MAX);
            match r.state() {
                State::Waiting => {
                    let item = waiting.entry(destination).or_insert_with(|| WorkItem {
                        id: m.id,
                        destination: destination.to_ascii_lowercase(),
                        recipients: Vec::new(),
                        due_ms: r.due_ms,
                        attempts: r.attempts,
                        expires_ms: m.record.expires_at_ms,
                    });
                    item.recipients.push(number);
                    item.due_ms = item.due_ms.min(r.due_ms);
                }
                State::Leased => scheduler.leased(
                    m.id,
                    &destination.to_ascii_lowercase(),
                    r.epoch,
                    &r.holder,
                    r.lease_until_ms,
                ),
                _ => {}
            }
        }
        for item in waiting.into_values() {
            scheduler.upsert(item);
        }
    }

    // ---- work

    fn expire(&mut self) {
        let now = now_ms();
        for (id, shard) in &mut self.state.shards {
            let Some(group) = self.groups.group(*id) else {
                continue;
            };
            let leases = shard
                .scheduler
                .expired_leases(now.saturating_sub(LEASE_GRACE_MS), BATCH);
            if !leases.is_empty() {
                self.metrics.lease_expired(leases.len() as u64);
                tracing::info!(shard = %id, leases = leases.len(), "taking back leases of a silent relay");
                let leases = leases
                    .into_iter()
                    .map(|l| v1::LeaseRef {
                        id: Bytes::copy_from_slice(l.id.as_bytes()),
                        epoch: l.epoch,
                    })
                    .collect();
                let group = group.clone();
                tokio::spawn(async move {
                    if let Err(e) = group
                        .propose(Op::Release(v1::ReleaseOp { leases }), Bytes::new())
                        .await
                    {
                        tracing::debug!(error = %e, "expired leases not released, will retry");
                    }
                });
            }
            for message in shard.scheduler.expired_messages(now, BATCH) {
                shard.pending.insert(message);
                let (desk, tx, group) = (self.desk.clone(), self.tx.clone(), *id);
                tokio::spawn(async move {
                    desk.expire(message).await;
                    let settled = Input::Settled {
                        group,
                        ids: vec![message],
                        relay: String::new(),
                        unused_credits: 0,
                    };
                    let _ = tx.send(settled).await;
                });
            }
        }
    }

    fn dispatch(&mut self) {
        let now = now_ms();
        let ids: Vec<GroupId> = self.state.shards.keys().copied().collect();
        let policy = self.policy.current().parsed;
        for id in ids {
            let (Some(group), Some(shard)) =
                (self.groups.group(id), self.state.shards.get_mut(&id))
            else {
                continue;
            };
            for (name, relay) in &self.state.relays {
                shard.scheduler.worker(name, relay.credits);
            }
            let limit = |destination: &str| policy.destination(destination).limits.connections;
            for assignment in shard.scheduler.next(now, BATCH, &limit) {
                let Some(relay) = self.state.relays.get_mut(&assignment.worker) else {
                    continue;
                };
                let n = u32::try_from(assignment.items.len()).unwrap_or(u32::MAX);
                relay.credits = relay.credits.saturating_sub(n);
                shard.pending.extend(assignment.items.iter().map(|i| i.id));
                // One batch names a message once: its epoch then names one lease.
                for items in rounds(assignment.items) {
                    let grant = Grant {
                        group: group.clone(),
                        relay: assignment.worker.clone(),
                        events: relay.events.clone(),
                        items,
                        lease: self.lease,
                        metrics: self.metrics.clone(),
                    };
                    tokio::spawn(grant.run(self.tx.clone()));
                }
            }
        }
    }
}

/// Splits items so that no part names a message twice.
fn rounds(items: Vec<WorkItem>) -> Vec<Vec<WorkItem>> {
    let mut out: Vec<(BTreeSet<MessageId>, Vec<WorkItem>)> = Vec::new();
    for item in items {
        match out.iter_mut().find(|(seen, _)| !seen.contains(&item.id)) {
            Some((seen, part)) => {
                seen.insert(item.id);
                part.push(item);
            }
            None => out.push((BTreeSet::from([item.id]), vec![item])),
        }
    }
    out.into_iter().map(|(_, part)| part).collect()
}

/// One lease batch on its way through the log to a relay.
#[derive(Debug)]
struct Grant {
    group: Group,
    relay: String,
    events: mpsc::Sender<Result<v1::DeliverEvent, Status>>,
    items: Vec<WorkItem>,
    lease: Duration,
    metrics: Arc<Metrics>,
}

impl Grant {
    async fn run(self, tx: mpsc::Sender<Input>) {
        let ids: Vec<MessageId> = self
            .items
            .iter()
            .map(|i| i.id)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let offered = self.items.len();
        let granted = self.propose().await;
        let settled = Input::Settled {
            group: self.group.id(),
            ids,
            relay: self.relay.clone(),
            unused_credits: u32::try_from(offered.saturating_sub(granted)).unwrap_or(0),
        };
        let _ = tx.send(settled).await;
    }

    /// How many leases reached the relay.
    async fn propose(&self) -> usize {
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let op = Op::Lease(v1::LeaseOp {
            holder: self.relay.clone(),
            until_ms: now_ms().saturating_add(lease_ms),
            items: self
                .items
                .iter()
                .map(|i| v1::LeaseItem {
                    id: Bytes::copy_from_slice(i.id.as_bytes()),
                    recipients: i.recipients.clone(),
                })
                .collect(),
        });
        // The relay counts from receipt, which is later than this: its deadline must not be.
        let started = tokio::time::Instant::now();
        let leased = match self.group.propose(op, Bytes::new()).await {
            Ok(c) => match c.reply.result {
                Some(Answer::Leased(l)) => l,
                _ => return 0,
            },
            Err(e) => {
                tracing::debug!(shard = %self.group.id(), error = %e, "leases not granted");
                return 0;
            }
        };
        let spent = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let left = lease_ms.saturating_sub(spent);
        let events = self.events(&leased, left);
        self.metrics.leased(events.len() as u64);
        let mut sent = 0;
        let mut unsent = Vec::new();
        for lease in events {
            let reference = v1::LeaseRef {
                id: lease.id.clone(),
                epoch: lease.epoch,
            };
            let event = v1::DeliverEvent {
                frame: Some(v1::deliver_event::Frame::Lease(lease)),
            };
            match self.events.send(Ok(event)).await {
                Ok(()) => sent += 1,
                Err(_) => unsent.push(reference),
            }
        }
        if !unsent.is_empty() {
            // The stream closed before the relay was told: nobody holds these.
            let _ = self
                .group
                .propose(Op::Release(v1::ReleaseOp { leases: unsent }), Bytes::new())
                .await;
        }
        sent
    }

    fn events(&self, leased: &v1::Leased, lease_ms: u64) -> Vec<v1::Lease> {
        let reader = self.group.store().reader();
        let mut out = Vec::with_capacity(leased.granted.len());
        for item in &leased.granted {
            let Ok(id) = MessageId::from_slice(&item.id) else {
                continue;
            };
            let Ok(Some(m)) = queries::message(&reader, id) else {
                continue;
            };
            let envelope = m.record.envelope.clone().unwrap_or_default();
            let recipients: Vec<v1::LeasedRecipient> = item
                .recipients
                .iter()
                .filter_map(|n| {
                    let i = usize::try_from(*n).ok()?;
                    let (e, r) = (envelope.recipients.get(i)?, m.recipients.get(i)?);
                    Some(v1::LeasedRecipient {
                        recipient: *n,
                        mailbox: e.mailbox.clone(),
                        attempts: r.attempts.saturating_sub(1),
                        orcpt: e.orcpt.clone(),
                    })
                })
                .collect();
            let destination = recipients
                .first()
                .and_then(|r| r.mailbox.rsplit_once('@'))
                .map_or("", |(_, d)| d);
            out.push(v1::Lease {
                id: item.id.clone(),
                epoch: leased.epoch,
                lease_ms,
                destination: destination.to_ascii_lowercase(),
                reverse_path: envelope.reverse_path.clone(),
                body_type: envelope.body_type,
                envid: envelope.envid.clone(),
                size: m.record.size,
                trace: m.record.trace.clone(),
                accepted_at_ms: m.record.enqueued_at_ms,
                recipients,
            });
        }
        out
    }
}
