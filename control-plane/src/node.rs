//! The composition root: every task and channel of a control-plane node is made here.
use crate::{
    access,
    background::{
        compaction,
        dispatch::Dispatch,
        leadership::{self, LeaderClaims},
        membership, readiness, reclaim, report, scrub, standing,
        tokens::TokenKeeper,
    },
    bootstrap,
    config::ControlPlaneConfig,
    metrics::Metrics,
    policy_view::PolicyView,
    raft::{EffectBatch, Groups, GroupsConfig, RaftTransport},
    service::{
        admin::AdminRpc,
        backup::BackupRpc,
        cluster::{ClusterRpc, Proposer},
        deliver::DeliverDesk,
        policy::PolicyRpc,
        queue::QueueRpc,
        results::ResultsBatcher,
        shares::DealerDesk,
        submit::{Admission, SubmitDesk},
    },
};
use anyhow::Context;
use prometheus_client::registry::Registry;
use sealane_runtime::{
    blocking, clock::Clock, grpc, http, identity::Identity, shutdown, telemetry, world::Listener,
};
use sealane_store::{Options, Store};
use sealane_types::GroupId;
use sealane_wire::v1::{
    self, admin_server::AdminServer, backup_server::BackupServer, cluster_server::ClusterServer,
    command::Op, policy_server::PolicyServer, queue_server::QueueServer,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Runs of applied entries that the dispatcher has not seen yet; beyond, it rebuilds its index.
const EFFECTS: usize = 1024;
/// Most octets of one gRPC message.
const MAX_MESSAGE: usize = 8 << 20;
/// Leadership is handed over for at most this long at shutdown.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Open streams get this long to end after the last leadership is gone.
const CUT: Duration = Duration::from_millis(500);

/// Runs a node until SIGTERM or SIGINT.
pub async fn run(config: ControlPlaneConfig) -> anyhow::Result<()> {
    let identity = Identity::load(&config.identity).context("identity")?;
    let guard = telemetry::init("control-plane", &config.name, &config.telemetry)?;
    let stop = shutdown::token();
    let renewing = tokio::spawn(identity.clone().keep());
    let result = Box::pin(serve(&config, identity, stop)).await;
    renewing.abort();
    guard.shutdown();
    result
}

async fn serve(
    config: &ControlPlaneConfig,
    identity: Identity,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let data_dir = config.data_dir.clone();
    let options = store_options(config);
    let store = tokio::task::spawn_blocking(move || Store::open(&data_dir, options))
        .await?
        .with_context(|| format!("dataDir: {}", config.data_dir.display()))?;
    Box::pin(serve_on(config, identity, Arc::new(store), stop)).await
}

/// Runs a node on a volume that is open already, until `stop`. What the process of [`run`] adds is
/// the volume, telemetry, signals and the renewal of its identity.
pub async fn serve_on(
    config: &ControlPlaneConfig,
    identity: Identity,
    store: Arc<Store>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    store.register(&mut registry);
    identity.figures().register(&mut registry);

    let (ready_tx, ready) = watch::channel(false);
    // The HTTP server and the gRPC server outlive `stop`: the node is observed, and hands over, while it drains.
    let last = CancellationToken::new();
    let end_serving = last.child_token();
    let tasks = TaskTracker::new();
    if let Some(address) = config.metrics_listen {
        let http = TcpListener::bind(address)
            .await
            .with_context(|| format!("metricsListen: {address}"))?;
        tasks.spawn(http::serve(
            http,
            Arc::new(Mutex::new(registry)),
            ready,
            last.clone(),
        ));
    }

    let membership = tokio::select! {
        m = bootstrap::identity(config, &identity, &store) => m?,
        () = stop.cancelled() => return Ok(()),
    };
    let node_id = membership.identity.node_id;
    let clock = Arc::new(Clock::new(standing::FRESH));
    let standing = standing::before_start(config, &identity, &membership.identity, &clock).await;
    if standing.removed {
        rest(config, node_id, &stop, last, tasks).await;
        return Ok(());
    }
    standing
        .check(&store)
        .with_context(|| format!("dataDir: {}", config.data_dir.display()))?;
    let listener = Listener::bind(config.listen)
        .await
        .with_context(|| format!("listen: {}", config.listen))?;
    tracing::info!(node_id = membership.identity.node_id, cluster = %membership.identity.cluster_id, "starting");

    let (effects_tx, effects) = mpsc::channel::<EffectBatch>(EFFECTS);
    let missed_tx = watch::Sender::new(0);
    let missed = missed_tx.subscribe();
    let groups = Groups::start(
        GroupsConfig {
            cluster_id: membership.identity.cluster_id.clone(),
            node_id: membership.identity.node_id,
            shards: membership.identity.shards,
            replicas: membership.identity.replicas,
            identity: identity.clone(),
            heartbeat: config.raft.heartbeat.0,
            election_min: config.raft.election_min.0,
            election_max: config.raft.election_max.0,
            keep_entries: config.raft.keep_entries,
            keep_octets: config.raft.keep_size.0,
            clock: clock.clone(),
        },
        &store,
        effects_tx,
        missed_tx,
    )
    .await?;
    let policy = PolicyView::new(groups.meta().store().clone())?;
    let proposer = Proposer {
        groups: groups.clone(),
        identity: identity.clone(),
    };

    let claims = LeaderClaims::new();
    let disk_full = Arc::new(AtomicBool::new(false));
    let closing = Arc::new(AtomicBool::new(false));
    let dispatch = Dispatch::new(
        groups.clone(),
        policy.clone(),
        metrics.clone(),
        config.lease.0,
    );
    let desk = Arc::new(DeliverDesk {
        groups: groups.clone(),
        policy: policy.clone(),
        metrics: metrics.clone(),
        dispatch: dispatch.clone(),
        lease: config.lease.0,
        hostname: config.hostname.clone(),
        node: config.name.clone(),
        sessions: AtomicU64::new(1),
        results: groups
            .iter()
            .filter(|g| g.id() != GroupId::META)
            .map(|g| (g.id(), ResultsBatcher::start(g)))
            .collect(),
    });
    let submit = SubmitDesk::new(
        groups.clone(),
        policy.clone(),
        claims.clone(),
        metrics.clone(),
        (dispatch.clone(), config.lease.0),
        Admission {
            in_flight: usize::try_from(config.in_flight.0).unwrap_or(usize::MAX),
            disk_full: disk_full.clone(),
            closing: closing.clone(),
        },
    );

    let dealer = Arc::new(DealerDesk::new(
        groups.clone(),
        policy.clone(),
        metrics.clone(),
    ));
    let queue = QueueRpc {
        groups: groups.clone(),
        submit,
        deliver: desk.clone(),
        dealer: dealer.clone(),
    };
    let tokens = TokenKeeper {
        dispatch: dispatch.clone(),
        desk: dealer,
        identity: identity.clone(),
        name: config.name.clone(),
    };
    let admin = AdminRpc {
        groups: groups.clone(),
        policy: policy.clone(),
        dispatch: dispatch.clone(),
        cluster_name: membership.identity.cluster_name.clone(),
        proposer: proposer.clone(),
    };
    let backup = BackupRpc::new(
        groups.clone(),
        proposer.clone(),
        membership.identity.cluster_name.clone(),
        (disk_full.clone(), closing.clone()),
    );
    let (health_reporter, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(RaftTransport::server(groups.clone()))
        .add_service(ClusterServer::new(ClusterRpc {
            proposer: proposer.clone(),
        }))
        .add_service(
            QueueServer::new(queue)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            PolicyServer::new(PolicyRpc {
                view: policy.clone(),
                proposer: proposer.clone(),
            })
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(AdminServer::new(admin).max_encoding_message_size(MAX_MESSAGE))
        .add_service(
            BackupServer::new(backup)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(health);
    let server = grpc::serve(
        listener,
        routes,
        access::TABLE,
        identity.clone(),
        end_serving.clone(),
    );
    tasks.spawn(async move {
        if let Err(e) = server.await {
            tracing::error!(error = %format!("{e:#}"), "gRPC server ended");
        }
    });

    // Work ends at shutdown, and when this node is no member any more.
    let work = stop.child_token();
    tasks.spawn(leadership::run(groups.clone(), claims, work.clone()));
    tasks.spawn(membership::run(groups.clone(), work.clone()));
    tasks.spawn(report::run(groups.clone(), proposer.clone(), work.clone()));
    tasks.spawn(reclaim::run(groups.clone(), proposer.clone(), work.clone()));
    tasks.spawn(standing::run(
        config.clone(),
        identity.clone(),
        (groups.clone(), clock),
        metrics.clone(),
        work.clone(),
    ));
    tasks.spawn(compaction::run(
        groups.clone(),
        store.clone(),
        config.disk_reserve.0,
        disk_full,
        work.clone(),
    ));
    tasks.spawn(scrub::run(
        store.clone(),
        config.scrub.clone(),
        metrics.clone(),
        work.clone(),
    ));
    tasks.spawn(dispatch.clone().watch(desk.clone(), work.clone()));
    tasks.spawn(tokens.run(work.clone()));
    tasks.spawn(dispatch.run(desk, effects, missed, work.clone()));
    if membership.founder {
        found(config, &groups, &proposer, &membership.identity).await?;
    }
    tasks.spawn(readiness::keep(
        groups.clone(),
        ready_tx,
        health_reporter,
        work.clone(),
    ));

    tokio::select! {
        () = stop.cancelled() => tracing::info!("shutting down: handing leadership over"),
        () = groups.until_removed() => standing::say_removed(config, node_id),
    }
    work.cancel();
    closing.store(true, Ordering::Relaxed);
    groups.shutdown(HAND_OVER).await;
    end_serving.cancel();
    if !stop.is_cancelled() {
        blocking::in_place(|| store.shutdown());
        // Not ready, but observable: whoever runs this process decides when it ends.
        stop.cancelled().await;
    }
    last.cancel();
    tasks.close();
    // Peers and relays hold their streams open for ever: they are cut after a moment.
    let _ = tokio::time::timeout(CUT, tasks.wait()).await;
    blocking::in_place(|| store.shutdown());
    Ok(())
}

/// A node that was removed while it was away starts nothing: it says so, and waits to be stopped.
async fn rest(
    config: &ControlPlaneConfig,
    node_id: u64,
    stop: &CancellationToken,
    last: CancellationToken,
    tasks: TaskTracker,
) {
    standing::say_removed(config, node_id);
    stop.cancelled().await;
    last.cancel();
    tasks.close();
    let _ = tokio::time::timeout(CUT, tasks.wait()).await;
}

/// Makes this node the first member and records the cluster. Both are idempotent: a founder that died half-way resumes.
async fn found(
    config: &ControlPlaneConfig,
    groups: &Groups,
    proposer: &Proposer,
    identity: &sealane_store::NodeIdentity,
) -> anyhow::Result<()> {
    groups
        .initialize(&config.advertised(), &config.name)
        .await?;
    let recorded = sealane_state::queries::cluster(&groups.meta().store().reader())?.is_some();
    if recorded {
        return Ok(());
    }
    let op = Op::InitCluster(v1::InitClusterOp {
        cluster_id: identity.cluster_id.clone(),
        cluster_name: identity.cluster_name.clone(),
        shards: identity.shards,
        replicas: identity.replicas,
        first: Some(v1::NodeRecord {
            id: identity.node_id,
            name: config.name.clone(),
            address: config.advertised(),
            joined_at_ms: groups.clock().wall_ms(),
            ..Default::default()
        }),
    });
    proposer
        .propose(GroupId::META, op)
        .await
        .map_err(|s| anyhow::anyhow!("founding: {}", s.message()))?;
    Ok(())
}

/// A write that waits for the disk must not keep a worker from heartbeats.
fn store_options(config: &ControlPlaneConfig) -> Options {
    Options {
        ballast: config.disk_ballast.0,
        on_stall: std::sync::Arc::new(|write| tokio::task::block_in_place(write)),
        ..Options::default()
    }
}
