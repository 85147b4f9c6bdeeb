//! The composition root of `operator run`: every task is made here.
//!
//! ```text
//!   probes, metrics ───────────────────────────── until the end
//!   Leader::acquire ──► Leader::keep ──────────── lost: the process ends with an error, at once
//!                       controllers (a pair for each scope) ── SIGTERM: passes under way are finished, the Lease is released
//! ```
use crate::{
    cli::RunArgs,
    context::Context,
    controller::{self, Scope},
    events::Events,
    leader::{Leader, Terms},
    metrics::Metrics,
};
use anyhow::Context as _;
use data_encoding::HEXLOWER;
use futures_util::future::join_all;
use kube::Client;
use prometheus_client::registry::Registry;
use sealane_runtime::{http, identity, shutdown, telemetry};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// Passes under way may take this long to finish after SIGTERM.
const FINISH: Duration = Duration::from_secs(20);
/// Whoever reads metrics just then may take this long.
const PROBES: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT, or until the Lease is lost.
pub(crate) async fn run(args: RunArgs) -> anyhow::Result<()> {
    // Two implementations may be linked in; ours is aws-lc.
    let _already = Arc::unwrap_or_clone(identity::provider()).install_default();
    let instance = instance();
    let guard = telemetry::init("operator", &instance, &args.telemetry.config())?;
    let stop = shutdown::token();
    let result = Box::pin(serve(args, &instance, stop)).await;
    guard.shutdown();
    result
}

async fn serve(args: RunArgs, instance: &str, stop: CancellationToken) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("neither a service account of a cluster nor a kubeconfig can be used")?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let listener = TcpListener::bind(args.metrics_listen)
        .await
        .with_context(|| format!("--metrics-listen {}", args.metrics_listen))?;
    let (ready_tx, ready) = watch::channel(false);
    let last = CancellationToken::new();
    let probes = tokio::spawn(http::serve(
        listener,
        Arc::new(Mutex::new(registry)),
        ready,
        last.clone(),
    ));
    let events = Events::new(client.clone(), instance);
    let context = Arc::new(Context::new(
        client,
        events,
        metrics,
        args.allow_endpoint_override,
        Duration::from_secs(args.secret_propagation),
    ));
    let result = act(&args, instance, context, &ready_tx, stop).await;
    last.cancel();
    let _ended = timeout(PROBES, probes).await;
    result
}

/// Who waits for the Lease is ready too: it answers, and would follow.
async fn act(
    args: &RunArgs,
    instance: &str,
    context: Arc<Context>,
    ready: &watch::Sender<bool>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(lease) = &args.leader_election else {
        let version = context.client.apiserver_version().await;
        let version = version.context("the API server does not answer")?;
        tracing::info!(server = %version.git_version, "no leader election: only one operator may run");
        ready.send_replace(true);
        context.metrics.leads(true);
        controllers(args, context, stop).await;
        return Ok(());
    };
    let mut leader = Leader::new(
        context.client.clone(),
        lease,
        instance.to_owned(),
        Terms::default(),
    );
    tokio::select! {
        () = leader.acquire(|| { ready.send_replace(true); }) => {}
        () = stop.cancelled() => return Ok(()),
    }
    context.metrics.leads(true);
    tokio::select! {
        // Whatever is under way is dropped with the process.
        lost = leader.keep() => return Err(lost.into()),
        () = controllers(args, context, stop) => {}
    }
    leader.release().await;
    Ok(())
}

/// All scopes, until `stop` and a little longer.
async fn controllers(args: &RunArgs, context: Arc<Context>, stop: CancellationToken) {
    let scopes = Scope::of(&args.namespace);
    tracing::info!(namespaces = ?args.namespace, "watching");
    let all = scopes.iter().flat_map(|scope| {
        [
            controller::clusters(scope, context.clone(), stop.clone()),
            controller::orphans(scope, context.clone(), stop.clone()),
        ]
    });
    let all = join_all(all);
    tokio::pin!(all);
    tokio::select! {
        _ = &mut all => return,
        () = stop.cancelled() => {}
    }
    if timeout(FINISH, all).await.is_err() {
        tracing::warn!("passes were cut off: the next operator finds what they left and goes on");
    }
}

/// Another one for every process: its pod, and chance.
fn instance() -> String {
    let pod = std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| "operator".to_owned());
    format!("{pod}_{}", HEXLOWER.encode(&rand::random::<[u8; 4]>()))
}
