//! One running Raft of one group. Usually for as long as the process; a replica that was emptied gets another.
use super::{
    groups::GroupsConfig,
    log_store::LogStore,
    network::{Connections, NetworkFactory},
    state_machine::{EffectBatch, StateMachine},
    types::TypeConfig,
};
use openraft::{Config, Raft, SnapshotPolicy};
use sealane_store::GroupStore;
use sealane_types::GroupId;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// What every instance of this node is made of.
#[derive(Debug)]
pub(super) struct Starter {
    node_id: u64,
    config: Arc<Config>,
    connections: Arc<Connections>,
    effects: mpsc::Sender<EffectBatch>,
    missed: watch::Sender<u64>,
}

/// A started Raft, and the latch that ends its state machine.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) raft: Raft<TypeConfig, StateMachine>,
    retired: Arc<Mutex<bool>>,
}

impl Starter {
    pub(super) fn new(
        config: &GroupsConfig,
        effects: mpsc::Sender<EffectBatch>,
        missed: watch::Sender<u64>,
    ) -> anyhow::Result<Self> {
        let raft = Config {
            cluster_name: config.cluster_id.clone(),
            heartbeat_interval: millis(config.heartbeat),
            election_timeout_min: millis(config.election_min),
            election_timeout_max: millis(config.election_max),
            install_snapshot_timeout: 600_000,
            snapshot_policy: SnapshotPolicy::Never,
            // Purging is asked for: see `Group::compact`.
            max_in_snapshot_log_to_keep: u64::MAX / 2,
            max_payload_entries: 256,
            replication_lag_threshold: config.keep_entries,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            allow_log_reversion: None,
            // Until the registry was looked at: see `Group::may_elect`.
            enable_elect: false,
            ..Config::default()
        };
        Ok(Self {
            node_id: config.node_id,
            config: Arc::new(raft.validate()?),
            connections: Connections::new(
                config.cluster_id.clone(),
                config.node_id,
                config.identity.clone(),
            ),
            effects,
            missed,
        })
    }

    /// Starts from what the store holds.
    pub(super) async fn start(
        &self,
        id: GroupId,
        store: &GroupStore,
        settled: &Arc<AtomicU64>,
    ) -> anyhow::Result<Instance> {
        let retired = Arc::new(Mutex::new(false));
        let machine = StateMachine::new(
            id,
            store.clone(),
            self.effects.clone(),
            self.missed.clone(),
            settled.clone(),
            retired.clone(),
        )?;
        let raft = Raft::new(
            self.node_id,
            self.config.clone(),
            NetworkFactory::new(self.connections.clone(), id),
            LogStore::new(store.clone()),
            machine,
        )
        .await?;
        Ok(Instance { raft, retired })
    }
}

impl Instance {
    /// Stops it for good: nothing of it writes to the store any more when this returns.
    pub(super) async fn retire(&self) -> anyhow::Result<()> {
        self.raft.shutdown().await?;
        // openraft does not wait for its state machine: what it still would apply is refused.
        *self.retired.lock().expect("no panic while held") = true;
        Ok(())
    }
}

/// What the leader said about purging belongs to the log that was emptied.
pub(super) fn nothing_settled(settled: &AtomicU64) {
    settled.store(0, Ordering::Relaxed);
}
