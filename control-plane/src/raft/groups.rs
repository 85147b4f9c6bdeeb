//! All Raft groups of one control-plane node.
use super::{
    codec,
    gate::{self, Gate},
    instance::{Instance, Starter, nothing_settled},
    state_machine::{EffectBatch, StateMachine},
    types::{Answer, Proposal, TypeConfig},
};
use crate::registry::Registry;
use bytes::Bytes;
use openraft::{
    Instant, Raft, ServerState,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
    impls::ProgressResponder,
    raft::ReadPolicy,
};
use prost::Message;
use sealane_runtime::{blocking, clock::Clock, identity::Identity};
use sealane_store::{GroupStore, LogPosition, Store};
use sealane_types::GroupId;
use sealane_wire::v1;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, info_span};

/// Fewer entries are not worth a purge.
const PURGE_AT_LEAST: u64 = 32;

/// What the groups of a node need to know.
#[derive(Debug)]
pub struct GroupsConfig {
    /// Named in every RPC; requests of other clusters are refused.
    pub cluster_id: String,
    /// This node, as allocated.
    pub node_id: u64,
    /// Queue shards; the groups are 0..=shards.
    pub shards: u32,
    /// A group with fewer voters commits, but takes no mail.
    pub replicas: u32,
    /// For mTLS to the peers.
    pub identity: Identity,
    /// Between heartbeats of a leader.
    pub heartbeat: Duration,
    /// A follower that hears nothing for this long (randomly up to `election_max`) stands for election.
    pub election_min: Duration,
    /// Upper end of that range.
    pub election_max: Duration,
    /// Applied log entries kept per group for members that lag; what every member has goes at once.
    pub keep_entries: u64,
    /// Octets of them.
    pub keep_octets: u64,
    /// What stamps proposals.
    pub clock: Arc<Clock>,
}

/// Why a proposal was not answered with a committed result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Rejected before anything was appended.
    #[error("not the leader of this group")]
    NotLeader {
        /// Where the leader is, if known.
        leader: Option<u64>,
    },
    /// Rejected before anything was appended.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// May or may not be committed. Only a retry of the same idempotent command settles it.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// A committed and applied proposal.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Log index of its entry.
    pub index: u64,
    /// What the state machine answered.
    pub reply: v1::CommandReply,
}

/// A leader that is silent for so many of the longest election timeouts is not there.
const SILENCE: u32 = 4;

#[derive(Debug)]
pub(super) struct RaftGroup {
    pub(super) id: GroupId,
    gate: Gate,
    instance: RwLock<Instance>,
    pub(super) store: GroupStore,
    /// Every member's log holds the entries up to here.
    settled: Arc<AtomicU64>,
    /// When this node last answered a leader.
    heard: Mutex<Option<tokio::time::Instant>>,
}

impl RaftGroup {
    fn new(
        id: GroupId,
        instance: Instance,
        store: GroupStore,
        settled: Arc<AtomicU64>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|group: &Weak<Self>| {
            let group = group.clone();
            Self {
                id,
                gate: Gate::new(gate::PATIENCE, move |proposal, responder| {
                    let raft = group.upgrade().map(|g| g.raft());
                    async move {
                        if let Some(raft) = raft {
                            // A stopped Raft drops the responder, which tells the proposer.
                            let _ = raft.client_write_ff(proposal, Some(responder)).await;
                        }
                    }
                }),
                instance: RwLock::new(instance),
                store,
                settled,
                heard: Mutex::default(),
            }
        })
    }

    /// A leader was answered as one.
    pub(super) fn note_leader(&self) {
        let now = tokio::time::Instant::now();
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    pub(super) fn raft(&self) -> Raft<TypeConfig, StateMachine> {
        self.instance().raft
    }
    fn instance(&self) -> Instance {
        let instance = self.instance.read().unwrap_or_else(PoisonError::into_inner);
        instance.clone()
    }
}

/// All groups of this node.
#[derive(Debug)]
pub struct Groups {
    starter: Starter,
    pub(super) config: GroupsConfig,
    groups: BTreeMap<GroupId, Arc<RaftGroup>>,
    /// As this node's copy of the metadata group has it; [`Self::refresh_registry`] follows.
    pub(super) registry: watch::Sender<Arc<Registry>>,
    /// Another node says that this one is no member any more.
    pub(super) expelled: watch::Sender<bool>,
}

/// One group of this node: proposals and a view of its state.
#[derive(Debug, Clone)]
pub struct Group {
    pub(super) inner: Arc<RaftGroup>,
    replicas: u32,
    pub(super) node_id: u64,
    election_max: Duration,
    keep_entries: u64,
    keep_octets: u64,
    clock: Arc<Clock>,
}

/// What this node knows of a group right now.
#[derive(Debug, Clone, Default)]
pub struct GroupView {
    /// Current leader, if known.
    pub leader: Option<u64>,
    /// Current term.
    pub term: u64,
    /// A leader spoke to this node lately. One that is cut off knows its last leader for ever: with pre-votes
    /// nothing makes it forget.
    pub heard: bool,
    /// This node leads and heard from a quorum within an election timeout.
    pub quorum: bool,
    /// Last entry in the local log.
    pub last_log: u64,
    /// Last applied entry.
    pub applied: u64,
    /// Entries that a quorum has and that are not applied here; unknown before the leader spoke.
    pub behind: Option<u64>,
    /// Last purged entry.
    pub purged: u64,
    /// Voters of the effective membership.
    pub voters: BTreeSet<u64>,
    /// Learners of the effective membership.
    pub learners: BTreeSet<u64>,
    /// No change of membership is under way.
    pub uniform: bool,
    /// Log index of the membership.
    pub membership: Option<u64>,
    /// It is applied here, so committed.
    pub committed: bool,
    /// On the leader: entries acknowledged by each peer.
    pub matched: BTreeMap<u64, u64>,
}

impl Groups {
    /// Opens every group and starts its Raft.
    ///
    /// `effects` receives what applied entries changed; when it is full, `missed` grows and the
    /// consumer rereads the state.
    pub async fn start(
        config: GroupsConfig,
        store: &Store,
        effects: mpsc::Sender<EffectBatch>,
        missed: watch::Sender<u64>,
    ) -> anyhow::Result<Arc<Self>> {
        let starter = Starter::new(&config, effects, missed)?;
        let mut groups = BTreeMap::new();
        for id in (0..=config.shards).map(GroupId) {
            let group_store = store.group(id);
            let settled = Arc::new(AtomicU64::new(0));
            let instance = starter.start(id, &group_store, &settled).await?;
            groups.insert(id, RaftGroup::new(id, instance, group_store, settled));
        }
        let registry = Registry::read(&store.group(GroupId::META))?;
        Ok(Arc::new(Self {
            starter,
            config,
            groups,
            registry: watch::Sender::new(Arc::new(registry)),
            expelled: watch::Sender::new(false),
        }))
    }

    /// Makes this node the first and only voter of every group that was never initialized.
    pub async fn initialize(&self, address: &str, name: &str) -> anyhow::Result<()> {
        let me = super::types::Peer {
            address: address.to_owned(),
            name: name.to_owned(),
        };
        for group in self.groups.values() {
            if !group.raft().is_initialized().await? {
                group
                    .raft()
                    .initialize(BTreeMap::from([(self.config.node_id, me.clone())]))
                    .await?;
            }
        }
        Ok(())
    }

    /// This node.
    pub fn node_id(&self) -> u64 {
        self.config.node_id
    }
    /// By which time this node judges.
    pub(crate) fn clock(&self) -> &Clock {
        &self.config.clock
    }
    /// Whether this node may say that the time of a message is up. It asks others what time it is, unless
    /// there are none.
    pub(crate) fn may_expire(&self) -> bool {
        let registry = self.registry();
        let me = self.config.node_id;
        let mut others = registry.nodes.keys();
        self.config.clock.is_compared() || others.all(|n| *n == me || registry.refused(*n))
    }
    /// This cluster.
    pub fn cluster_id(&self) -> &str {
        &self.config.cluster_id
    }
    /// Number of queue shards.
    pub fn shards(&self) -> u32 {
        self.config.shards
    }
    /// Configured number of voters.
    pub fn replicas(&self) -> u32 {
        self.config.replicas
    }

    pub(super) fn raft_group(&self, id: GroupId) -> Option<&RaftGroup> {
        self.groups.get(&id).map(AsRef::as_ref)
    }

    /// The same for whoever outlives the call.
    pub(super) fn shared_group(&self, id: GroupId) -> Option<Arc<RaftGroup>> {
        self.groups.get(&id).cloned()
    }

    /// A group, if there is one of that number.
    pub fn group(&self, id: GroupId) -> Option<Group> {
        self.groups.get(&id).map(|inner| Group {
            inner: inner.clone(),
            replicas: self.config.replicas,
            node_id: self.config.node_id,
            election_max: self.config.election_max,
            keep_entries: self.config.keep_entries,
            keep_octets: self.config.keep_octets,
            clock: self.config.clock.clone(),
        })
    }

    /// The metadata group.
    pub fn meta(&self) -> Group {
        self.group(GroupId::META).expect("group 0 always exists")
    }

    /// Every group, in order.
    pub fn iter(&self) -> impl Iterator<Item = Group> + '_ {
        self.groups.keys().filter_map(|id| self.group(*id))
    }

    /// Empties this node's replica of a group that it is no member of any more, if `may` says so after
    /// the replica has stopped to take part. Its Raft starts anew in any case.
    pub(crate) async fn forget(
        &self,
        id: GroupId,
        may: impl Future<Output = bool>,
    ) -> anyhow::Result<bool> {
        let Some(group) = self.groups.get(&id) else {
            return Ok(false);
        };
        group.instance().retire().await?;
        let yes = may.await;
        if yes {
            blocking::in_place(|| group.store.forget())?;
            nothing_settled(&group.settled);
        }
        let new = self.starter.start(id, &group.store, &group.settled).await?;
        *group
            .instance
            .write()
            .unwrap_or_else(PoisonError::into_inner) = new;
        Ok(yes)
    }

    /// Hands every leadership over to a caught-up voter, waits until it is gone or `limit` has passed, then stops.
    pub async fn shutdown(&self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let led: Vec<Group> = self.iter().filter(Group::is_leader).collect();
            let alone = led.iter().all(|g| g.view().voters.len() < 2);
            if led.is_empty() || alone || tokio::time::Instant::now() >= deadline {
                break;
            }
            for group in led {
                if let Some(to) = group.most_caught_up_peer() {
                    group.transfer_to(to).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for group in self.groups.values() {
            if let Err(e) = group.raft().shutdown().await {
                tracing::warn!(group = %group.id, error = %e, "raft did not stop cleanly");
            }
        }
    }
}

impl Group {
    /// Its number.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Its storage, for reading.
    pub fn store(&self) -> &GroupStore {
        &self.inner.store
    }

    /// Whether openraft says that this node leads.
    pub fn is_leader(&self) -> bool {
        self.inner.raft().is_leader()
    }

    /// Proposes `command` with this node's clock and waits until it is fsynced on a majority and applied here.
    ///
    /// # Cancel safety
    /// A dropped call leaves the outcome unknown.
    pub async fn propose(
        &self,
        op: v1::command::Op,
        body: Bytes,
    ) -> Result<Committed, ProposeError> {
        let command = v1::Command {
            now_ms: self.clock.wall_ms(),
            settled: self.inner.settled.load(Ordering::Relaxed),
            op: Some(op),
        };
        let proposal = Proposal {
            header: command.encode_to_vec().into(),
            body,
        };
        let (responder, commit, complete) = ProgressResponder::new();
        let span = info_span!(
            "raft.commit",
            group = self.id().0,
            bytes = proposal.body.len(),
            index = tracing::field::Empty
        );
        async {
            let under_way = self.inner.gate.enter(proposal, responder).await;
            let under_way = under_way
                .ok_or_else(|| ProposeError::Unavailable("the group is stopped".into()))?;
            if let Ok(id) = commit.await {
                tracing::Span::current().record("index", id.index);
            }
            drop(under_way);
            Ok(())
        }
        .instrument(span)
        .await?;
        let answer = complete
            .instrument(info_span!("queue.apply", group = self.id().0))
            .await;
        match answer {
            Ok(Ok(response)) => {
                let Answer(reply) = response.data;
                Ok(Committed {
                    index: response.log_id.index,
                    reply,
                })
            }
            Ok(Err(ClientWriteError::ForwardToLeader(f))) => Err(ProposeError::NotLeader {
                leader: f.leader_id.filter(|l| *l != self.node_id),
            }),
            Ok(Err(e)) => Err(ProposeError::Unknown(e.to_string())),
            Err(_) => Err(ProposeError::Unknown("raft stopped".into())),
        }
    }

    /// The term in which this node may take mail for this group: it leads, its state machine holds an entry of its own term,
    /// a quorum answered lately, and the group has all its replicas.
    pub fn leading(&self) -> Option<u64> {
        let voters = {
            let m = self.inner.raft().metrics();
            let m = m.borrow_watched();
            m.membership_config.membership().voter_ids().count()
        };
        let full = voters >= usize::try_from(self.replicas).unwrap_or(usize::MAX);
        self.leads().filter(|_| full)
    }

    /// The term in which this node leads this group: it holds an entry of its own term, and a quorum
    /// answered within the time that followers wait before they elect another. So it says no more
    /// when it was replaced `overlap` ago.
    pub fn leads(&self) -> Option<u64> {
        let m = self.inner.raft().metrics();
        let m = m.borrow_watched();
        let caught_up = m
            .last_applied
            .is_some_and(|l| l.leader_id.term == m.current_term);
        let alone = m.membership_config.membership().voter_ids().count() == 1;
        let fresh = alone
            || m.last_quorum_acked
                .is_some_and(|at| at.elapsed() < self.election_max);
        (m.state == ServerState::Leader && caught_up && fresh).then_some(m.current_term)
    }

    /// The longest time for which two nodes may both say that they lead.
    pub fn overlap(&self) -> Duration {
        self.election_max
    }

    /// Returns once a quorum confirmed that this node leads, and what is applied here holds everything
    /// that was acknowledged before the call.
    pub async fn confirm_leading(&self) -> Result<(), ProposeError> {
        match self
            .inner
            .raft()
            .ensure_linearizable(ReadPolicy::ReadIndex)
            .await
        {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(f))) => {
                Err(ProposeError::NotLeader {
                    leader: f.leader_id.filter(|l| *l != self.node_id),
                })
            }
            Err(e) => Err(ProposeError::Unavailable(e.to_string())),
        }
    }

    /// What this node knows of the group.
    pub fn view(&self) -> GroupView {
        let m = self.inner.raft().metrics();
        let m = m.borrow_watched();
        let membership = m.membership_config.membership();
        let index = |l: &Option<super::types::LogId>| l.map_or(0, |l| l.index);
        GroupView {
            leader: m.current_leader,
            term: m.current_term,
            heard: self
                .inner
                .heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some_and(|at| at.elapsed() < self.election_max * SILENCE),
            quorum: m.state == ServerState::Leader
                && (membership.voter_ids().count() == 1
                    || m.last_quorum_acked
                        .is_some_and(|at| at.elapsed() < self.election_max)),
            last_log: m.last_log_index.unwrap_or(0),
            applied: index(&m.last_applied),
            behind: m
                .cluster_committed
                .map(|c| c.index.saturating_sub(index(&m.last_applied))),
            purged: index(&m.purged),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            uniform: membership.get_joint_config().len() <= 1,
            membership: m.membership_config.log_id().as_ref().map(|l| l.index),
            committed: m.membership_config.log_id().as_ref().map(|l| l.index)
                <= m.last_applied.map(|l| l.index),
            matched: m
                .replication
                .iter()
                .flatten()
                .map(|(node, at)| (*node, at.as_ref().map_or(0, |l| l.index)))
                .collect(),
        }
    }

    /// How far another node said that its log of this group is durable, if this node leads it.
    pub(crate) fn durable_at(&self, node: u64) -> Option<v1::LogId> {
        self.leads()?;
        let m = self.inner.raft().metrics();
        let m = m.borrow_watched();
        let at = m.replication.as_ref()?.get(&node)?.as_ref()?;
        Some(codec::wire_log_id(at))
    }

    /// How far the logs of other members are durable and committed, if this node leads: what they can never be
    /// without again.
    pub(crate) fn witnessed(&self) -> Option<BTreeMap<u64, LogPosition>> {
        self.leads()?;
        let m = self.inner.raft().metrics();
        let m = m.borrow_watched();
        let committed = codec::position(m.last_applied.as_ref()?);
        let of = m.replication.as_ref()?.iter();
        let of = of.filter(|(node, _)| **node != self.node_id);
        Some(
            of.filter_map(|(node, at)| {
                let durable = codec::position(at.as_ref()?);
                Some((*node, durable.min(committed)))
            })
            .collect(),
        )
    }

    /// Members with their addresses.
    pub fn members(&self) -> BTreeMap<u64, String> {
        let m = self.inner.raft().metrics();
        let m = m.borrow_watched();
        m.membership_config
            .membership()
            .nodes()
            .map(|(id, p)| (*id, p.address.clone()))
            .collect()
    }

    /// A voter other than this node that holds (nearly) all of the log.
    pub fn most_caught_up_peer(&self) -> Option<u64> {
        let v = self.view();
        v.matched
            .iter()
            .filter(|(n, _)| v.voters.contains(n) && **n != self.node_id)
            .max_by_key(|(_, at)| **at)
            .map(|(n, _)| *n)
    }

    /// Whether this node stands for election. It does not where its log does not hold the last membership
    /// that is known to be committed: it could not win among those, and must not among members of
    /// old. An emptied replica that is filled again reads memberships in which it was alone (pitfall P7).
    pub fn may_elect(&self, yes: bool) {
        self.inner.raft().runtime_config().elect(yes);
    }

    /// Asks `to` to take leadership over.
    pub async fn transfer_to(&self, to: u64) {
        if let Err(e) = self.inner.raft().trigger().transfer_leader(to).await {
            tracing::debug!(group = %self.id(), to, error = %e, "leadership transfer not started");
        }
    }

    /// Drops the part of the log that is applied here and that every member has, and what exceeds the
    /// limits for members that lag. A snapshot is a position here: this is cheap.
    ///
    /// The sooner an entry goes, the better: a body that is deleted while it still is in the memtable
    /// is never written again.
    pub async fn compact(&self) {
        let v = self.view();
        if v.leader == Some(self.node_id) {
            let others = v
                .voters
                .iter()
                .chain(&v.learners)
                .filter(|n| **n != self.node_id);
            let least = others.map(|n| v.matched.get(n).copied().unwrap_or(0)).min();
            let settled = least.unwrap_or(v.applied);
            self.inner.settled.fetch_max(settled, Ordering::Relaxed);
        }
        let settled = self.inner.settled.load(Ordering::Relaxed);
        let by_count = v.applied.saturating_sub(self.keep_entries);
        let by_size = self.inner.store.oldest_within(self.keep_octets);
        let upto = settled.max(by_count).max(by_size).min(v.applied);
        if upto.saturating_sub(v.purged) < PURGE_AT_LEAST {
            return;
        }
        let raft = self.inner.raft();
        let trigger = raft.trigger();
        let asked = async {
            trigger.snapshot().await?;
            trigger.purge_log(upto).await
        };
        if let Err(e) = asked.await {
            tracing::warn!(group = %self.id(), error = %e, "log not compacted");
        }
    }
}
