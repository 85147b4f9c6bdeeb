//! The composition root: every task and channel of a relay node is made here.
use crate::{
    config::RelayNodeConfig,
    delivery::{self, DeliveryContext, DeliveryMetrics},
    ingress::{self, Handover, IngressContext},
    kept::KeptBodies,
    metrics::IngressMetrics,
    resolve::{Resolver, ResolverOptions},
    tls::TlsConnector,
};
use anyhow::Context;
use prometheus_client::registry::Registry;
use sealane_client::{DeliverClient, Members, PolicyWatch, ShareClient, SubmitClient, mtls};
use sealane_policy::PolicySnapshot;
use sealane_runtime::{http, identity::Identity, shutdown, telemetry};
use sealane_smtp::server::Listener;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tasks that have nothing left to do end within this.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs a node until SIGTERM or SIGINT, then drains it.
pub async fn run(config: RelayNodeConfig) -> anyhow::Result<()> {
    let identity = Identity::load(&config.identity).context("identity")?;
    let guard = telemetry::init("relay-node", &config.name, &config.telemetry)?;
    let stop = shutdown::token();
    let result = Box::pin(serve(&config, identity, stop)).await;
    // Blocks for at most two seconds; nothing else runs any more.
    guard.shutdown();
    result
}

async fn serve(
    config: &RelayNodeConfig,
    identity: Identity,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for (kind, address) in [
        (Listener::Mx, config.listeners.mx),
        (Listener::Submission, config.listeners.submission),
        (Listener::Submissions, config.listeners.submissions),
    ] {
        if let Some(address) = address {
            let bound = TcpListener::bind(address)
                .await
                .with_context(|| format!("listeners.{}: {address}", kind.as_str()))?;
            listeners.push((kind, bound));
        }
    }

    let mut registry = Registry::default();
    let metrics = IngressMetrics::register(&mut registry);
    let delivery_metrics = DeliveryMetrics::register(&mut registry);
    let figures = identity.figures().clone();
    figures.register(&mut registry);
    let tls = ingress::public_tls(&config.certificate, figures).context("certificate")?;
    let (ready_tx, ready) = watch::channel(false);
    // Observed, and heard by the control plane, while it drains.
    let last = CancellationToken::new();
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

    // Certificates are renewed until the last connection is gone.
    let (renewed, shown, over) = (identity.clone(), tls.clone(), last.clone());
    tasks.spawn(async move {
        let renewing = async { tokio::join!(renewed.keep(), shown.keep()) };
        over.run_until_cancelled(renewing).await;
    });

    let members = Members::new(config.control_plane.clone(), mtls(identity))
        .called(&config.name)
        .context("name")?;
    let submit = SubmitClient::start(&config.name, members.clone(), &tasks, last.clone());
    let policy = PolicyWatch::start(&config.name, members.clone(), &tasks, last.clone());
    let shares = ShareClient::new(members.clone());
    let deliver = DeliverClient::start(
        &config.name,
        members,
        submit.clone(),
        config.delivery.credits,
        &tasks,
        last.clone(),
    );
    tasks.spawn(readiness(
        submit.clone(),
        policy.clone(),
        ready_tx,
        stop.clone(),
    ));

    let resolver = Resolver::new(ResolverOptions {
        nameservers: config.resolver.nameservers.clone(),
        allow_private: config.allow_private_destinations,
        own_name: config.hostname.to_ascii_lowercase(),
        ..ResolverOptions::default()
    })
    .context("resolver")?;
    let kept = KeptBodies::new(config.body_budget.0 / 4);
    let handover = Handover {
        deliver: deliver.clone(),
        kept: kept.clone(),
    };
    let delivery = DeliveryContext {
        hostname: config.hostname.clone(),
        control: deliver,
        shares,
        policy: policy.clone(),
        resolver: Arc::new(resolver),
        tls: TlsConnector::webpki(),
        options: config.delivery.clone(),
        body_budget: config.body_budget.0 / 4,
        kept: kept.clone(),
        metrics: delivery_metrics,
        drain_timeout: config.drain_timeout.0,
    };
    let ingress = Arc::new(IngressContext::new(
        config, tls, submit, policy, handover, metrics,
    )?);

    tracing::info!(name = %config.name, "relay node started");
    tokio::join!(
        Box::pin(ingress::run(ingress, listeners, stop.clone())),
        Box::pin(delivery::run(delivery, stop.clone())),
    );
    last.cancel();
    tasks.close();
    let _ = timeout(LAST_WORDS, tasks.wait()).await;
    tracing::info!("relay node drained");
    Ok(())
}

/// Ready: there is a policy and at least one shard that takes mail; and no drain.
async fn readiness(
    submit: SubmitClient,
    mut policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut leaders = submit.changes();
    while !stop.is_cancelled() {
        let now = policy.borrow_and_update().is_some() && submit.led_shards() > 0;
        let changed = ready.send_if_modified(|was| std::mem::replace(was, now) != now);
        if changed {
            tracing::info!(
                ready = now,
                shards = submit.led_shards(),
                "readiness changed"
            );
        }
        tokio::select! {
            alive = leaders.changed() => if !alive { break },
            alive = policy.changed() => if alive.is_err() { break },
            () = stop.cancelled() => {}
        }
    }
    ready.send_replace(false);
}
