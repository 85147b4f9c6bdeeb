//! Hands due mail to relays: one index per node, for all shards that this node leads.
//!
//! ```text
//!  effects of apply ─► changed ids ─► read the state again ─┐
//!  new leadership ─► build: the shard's messages, in pages ─┤► Scheduler
//!  enqueue of a relay that would deliver at once ─ reserve ─┤    │ next()
//!  relay credits ───────────────────────────────────────────┘    ▼
//!                              LeaseOp proposed, granted ─► Lease event to the relay   (grant.rs)
//! ```
//!
//! The index never is a second truth: a wrong guess costs a lease that is not granted. It is shared
//! by the dispatcher's task and by the streams of relays, under one lock that is never held across
//! a wait or a write.
mod build;
mod grant;
mod index;
mod watchdog;

use crate::{
    metrics::Metrics,
    policy_view::PolicyView,
    raft::{EffectBatch, Groups},
};
use bytes::Bytes;
use grant::Grant;
use index::{Index, Moment, Relay, RelayInfo};
use rand::Rng;
use sealane_policy::PolicySnapshot;
use sealane_runtime::clock::Now;
use sealane_scheduler::{Limit, Outcome, Short, retry_at};
use sealane_state::{Effect, queries};
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{self, command::Op};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Time-driven work (due retries, expired leases) is looked at this often.
const TICK: Duration = Duration::from_millis(50);
/// Leadership, limits and the numbers for operators.
const LOOK: Duration = Duration::from_millis(100);
/// Messages leased in one entry at most.
const BATCH: usize = 128;
/// A lease is taken back this long after its end, by this node's steady clock from when it proposed or found the
/// lease: the relay's may run a little slower.
const LEASE_GRACE_MS: u64 = 2_000;
/// Leases given out per connection that a destination may have: a connection never waits for the
/// commit of its next lease.
const LEASES_PER_CONNECTION: u32 = 8;

/// Destinations that are asked tokens for at once.
const MOST_SHORT: usize = 10_000;

/// Pause after an expiry that was not recorded.
const EXPIRE_AGAIN: Duration = Duration::from_secs(5);

/// Events to a relay.
pub(crate) type Events = mpsc::Sender<Result<v1::DeliverEvent, Status>>;

/// The shared handle.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    groups: Arc<Groups>,
    policy: PolicyView,
    metrics: Arc<Metrics>,
    lease: Duration,
    index: Mutex<Index>,
    /// Something may be assigned.
    work: Notify,
    /// Somebody may wait for tokens.
    short: Notify,
}

/// Who ends messages whose time is up.
pub(crate) trait Expire: Send + Sync + 'static {
    /// Returns what waits of a message, with its report; false if that was not recorded.
    fn expire(&self, id: MessageId) -> impl Future<Output = bool> + Send;
}

fn limits(policy: &PolicySnapshot) -> impl Fn(&str) -> Limit + '_ {
    |destination: &str| {
        let limits = policy.destination(destination).limits;
        // Where there is a rate, nobody is kept waiting by the commit of a lease.
        let rated = limits.messages_per_minute.or(limits.connections_per_minute);
        let each = rated.map_or(LEASES_PER_CONNECTION, |_| 1);
        Limit {
            leases: limits.connections.saturating_mul(each),
            first: limits.connections,
            rated: limits.messages_per_minute.is_some(),
        }
    }
}

impl Dispatch {
    pub(crate) fn new(
        groups: Arc<Groups>,
        policy: PolicyView,
        metrics: Arc<Metrics>,
        lease: Duration,
    ) -> Self {
        Self(Arc::new(Shared {
            groups,
            policy,
            metrics,
            lease,
            index: Mutex::default(),
            work: Notify::new(),
            short: Notify::new(),
        }))
    }

    fn now(&self) -> Now {
        self.0.groups.clock().now()
    }

    /// By which the index counts.
    pub(crate) fn steady_ms(&self) -> u64 {
        self.0.groups.clock().steady_ms()
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.0.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// What stored times mean now.
    fn at<T>(&self, read: impl FnOnce(&Moment<'_>) -> T) -> T {
        let policy = self.0.policy.current().parsed;
        let longest = |destination: &str, attempts: u32| match attempts {
            0 => 0,
            n => retry_at(&policy.destination(destination).retry.delays_ms, n, 0, 999),
        };
        read(&Moment {
            now: self.now(),
            lease_ms: self.lease_ms(),
            longest: &longest,
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().expect("no panic while held")
    }

    /// Relays with a delivery stream to this node.
    pub(crate) fn relays(&self) -> Vec<RelayInfo> {
        self.index().relays()
    }

    // ---- from delivery streams

    pub(crate) fn joined(&self, name: &str, session: u64, events: Events) {
        let relay = Relay {
            session,
            events,
            since_ms: self.now().wall_ms,
            shows: None,
        };
        let relays = self.index().joined(name, relay);
        self.0.metrics.relays(relays);
    }

    pub(crate) fn left(&self, name: &str, session: u64) {
        let relays = self.index().left(name, session);
        self.0.metrics.relays(relays);
    }

    /// What the relay's own clock showed when it sent what was just received; 0: it did not say.
    pub(crate) fn shows(&self, name: &str, session: u64, sent_ms: u64) {
        if sent_ms > 0 {
            let received = self.steady_ms();
            self.index().shows(name, session, (sent_ms, received));
        }
    }

    /// The relay can take `leases` more; 0 withdraws all that it gave.
    pub(crate) fn credit(&self, name: &str, session: u64, leases: u32) {
        self.index().credit(name, Some(session), leases);
        self.0.work.notify_one();
    }

    /// What a destination said to a relay, as far as it concerns all mail for it.
    pub(crate) fn outcome(&self, destination: &str, outcome: Outcome) {
        let policy = self.0.policy.current().parsed;
        let jitter = rand::rng().random_range(0..1000);
        self.index().scheduler.outcome(
            destination,
            outcome,
            self.steady_ms(),
            jitter,
            &limits(&policy),
        );
    }

    /// These leases come back because they found no place at their destinations.
    pub(crate) fn crowded(&self, leases: &[(MessageId, u64)]) {
        let policy = self.0.policy.current().parsed;
        let (now, limits) = (self.steady_ms(), limits(&policy));
        let mut index = self.index();
        for (id, epoch) in leases {
            index.scheduler.crowded(*id, *epoch, now, &limits);
        }
    }

    // ---- from the dealer

    /// Destinations that wait for nothing but tokens.
    pub(crate) fn short(&self) -> Vec<Short> {
        let policy = self.0.policy.current().parsed;
        let limits = limits(&policy);
        self.index()
            .scheduler
            .short(self.steady_ms(), MOST_SHORT, &limits)
    }

    /// Messages that may begin until then, by [`Self::steady_ms`].
    pub(crate) fn tokens(&self, destination: &str, tokens: u32, until_ms: u64) {
        self.index().scheduler.tokens(destination, tokens, until_ms);
        self.0.work.notify_one();
    }

    /// Waits until [`Self::short`] may name somebody new.
    pub(crate) async fn more_short(&self) {
        self.0.short.notified().await;
    }

    // ---- from submit streams

    /// Takes a place for a message that `relay` is enqueueing and would deliver at once. True: propose
    /// the enqueue with its lease, and call [`Self::unreserve`] unless it was committed so.
    pub(crate) fn reserve(&self, id: MessageId, destination: &str, relay: &str) -> bool {
        let policy = self.0.policy.current().parsed;
        self.index()
            .reserve(id, destination, relay, self.steady_ms(), &limits(&policy))
    }

    /// The enqueue was not committed with its lease (`certain`), or nobody knows.
    pub(crate) fn unreserve(&self, id: MessageId, relay: &str, certain: bool) {
        self.index().unreserve(id, relay, certain);
        self.0.work.notify_one();
    }

    // ---- the task

    /// Runs until `stop`.
    pub(crate) async fn run(
        self,
        expire: Arc<impl Expire>,
        mut effects: mpsc::Receiver<EffectBatch>,
        mut missed: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut batches = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                n = effects.recv_many(&mut batches, 64) => {
                    if n == 0 { return; }
                    batches.drain(..).for_each(|b| self.effects(b));
                }
                () = self.0.work.notified() => {}
                Ok(()) = missed.changed() => {
                    missed.mark_unchanged();
                    tracing::info!("state changed beyond the effect channel: rebuilding the delivery index");
                    self.index().forget_all();
                    self.0.policy.refresh();
                    self.0.groups.refresh_registry();
                }
                _ = looks.tick() => {
                    self.follow_leadership();
                    self.index().scheduler.limits_changed();
                }
                _ = ticks.tick() => self.expire(&expire),
            }
            self.assign();
        }
    }

    fn effects(&self, batch: EffectBatch) {
        if batch.group == GroupId::META {
            if batch.effects.contains(&Effect::Nodes) {
                self.0.groups.refresh_registry();
            }
            self.0.policy.refresh();
            return;
        }
        let lease_end = self.steady_ms().saturating_add(self.lease_ms());
        let again = self.index().effects(&batch, lease_end);
        self.reread(batch.group, again);
    }

    /// Reads messages again and puts them where they belong now.
    fn reread(&self, group: GroupId, ids: Vec<MessageId>) {
        let Some(g) = self.0.groups.group(group).filter(|_| !ids.is_empty()) else {
            return;
        };
        let reader = g.store().reader();
        self.at(|at| {
            for id in ids {
                match queries::message(&reader, id) {
                    Ok(m) => self.index().replace(id, m.as_ref(), at),
                    Err(e) => tracing::error!(message = %id, error = %e, "message unreadable"),
                }
            }
        });
    }

    /// Builds what this node began to lead, forgets what it does not lead any more.
    fn follow_leadership(&self) {
        for group in self.0.groups.iter().filter(|g| g.id() != GroupId::META) {
            let term = group.leading();
            if let Some(build) = self.index().follow(group.id(), term) {
                tokio::spawn(self.clone().build(group.clone(), build));
            }
            if term.is_none() {
                self.0.metrics.shard(group.id().0, None);
            }
        }
        let now = self.now().wall_ms;
        let led = self.index().led();
        for id in led {
            let Some(group) = self.0.groups.group(id) else {
                continue;
            };
            let reader = group.store().reader();
            let depth = queries::count(&reader).unwrap_or(0);
            let floor = self.index().floor(id);
            let oldest = queries::oldest(&reader, floor).ok().flatten();
            let age = oldest.map_or(0, |at| now.saturating_sub(at.time_ms()));
            self.index().raise_floor(id, floor, oldest);
            self.0
                .metrics
                .shard(id.0, Some((depth, Duration::from_millis(age))));
        }
    }

    /// Takes back what silent relays hold, ends what is too old.
    fn expire(&self, expire: &Arc<impl Expire>) {
        let now = self.steady_ms();
        let (leases, messages) = self.index().expired(now, LEASE_GRACE_MS, BATCH);
        for (group, leases) in leases {
            let Some(group) = self.0.groups.group(group) else {
                continue;
            };
            self.0.metrics.lease_expired(leases.len() as u64);
            tracing::info!(shard = %group.id(), leases = leases.len(), "taking back leases of a silent relay");
            let ids: Vec<MessageId> = leases.iter().map(|l| l.id).collect();
            let leases = leases.iter().map(index::Over::reference).collect();
            let dispatch = self.clone();
            tokio::spawn(async move {
                let op = Op::Release(v1::ReleaseOp {
                    leases,
                    expired: true,
                });
                if let Err(e) = group.propose(op, Bytes::new()).await {
                    tracing::debug!(error = %e, "expired leases not released, will retry");
                }
                // One that was prolonged meanwhile was not taken back: its new end is read.
                dispatch.reread(group.id(), ids);
            });
        }
        for id in messages {
            let (expire, dispatch) = (expire.clone(), self.clone());
            tokio::spawn(async move {
                if !expire.expire(id).await {
                    // Not now: the log is not to be, or the group's time is behind our clock.
                    tokio::time::sleep(EXPIRE_AGAIN).await;
                }
                dispatch.settled(id.shard().group(), vec![id], "", 0);
            });
        }
    }

    /// A proposal about these messages came to its end: what the index did not hear of is read again.
    fn settled(&self, group: GroupId, ids: Vec<MessageId>, relay: &str, unused_credits: u32) {
        {
            let mut index = self.index();
            index.credit(relay, None, unused_credits);
            index.settle(group, &ids);
        }
        self.reread(group, ids);
        self.0.work.notify_one();
    }

    fn assign(&self) {
        let policy = self.0.policy.current().parsed;
        let grants = self
            .index()
            .assign(self.steady_ms(), BATCH, &limits(&policy));
        let more = grants.len() >= BATCH;
        if self.index().scheduler.is_short() {
            self.0.short.notify_one();
        }
        for batch in grants {
            let Some(group) = self.0.groups.group(batch.group) else {
                continue;
            };
            let grant = Grant {
                dispatch: self.clone(),
                group,
                batch,
            };
            tokio::spawn(grant.run());
        }
        if more {
            self.0.work.notify_one();
        }
    }
}
