//! The task that takes leases and keeps attempts going.
use super::{
    Courier, DeliveryMetrics, DeliveryOptions, Lease, LeaseClock, QueueControl,
    connection::Connection, shares,
};
use crate::{budget::BodyBudget, kept::KeptBodies, resolve::Resolver, tls::TlsConnector};
use sealane_client::{DeliverClient, LeasedWork, ShareClient};
use sealane_policy::PolicySnapshot;
use sealane_wire::v1;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// For the QUITs at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Everything delivery needs.
#[derive(Debug)]
pub struct DeliveryContext {
    /// Our name in EHLO.
    pub hostname: String,
    /// Leases and outcomes. It must live until [`run`] returns.
    pub control: DeliverClient,
    /// Places at destinations.
    pub shares: ShareClient,
    /// The policy in force.
    pub policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    /// Addresses of destinations.
    pub resolver: Arc<Resolver>,
    /// Outbound TLS.
    pub tls: TlsConnector,
    /// Octets of bodies fetched from the queue in memory at once.
    pub body_budget: u64,
    /// Bodies that this node accepted itself.
    pub(crate) kept: KeptBodies,
    /// Limits and deadlines.
    pub options: DeliveryOptions,
    /// Counters.
    pub metrics: DeliveryMetrics,
    /// How long running attempts may take after `shutdown`.
    pub drain_timeout: Duration,
}

/// Delivers until `shutdown`; then takes no more leases, gives back those not begun, lets the others
/// finish within the drain timeout and waits for their outcomes to be recorded.
///
/// # Cancel safety
/// All attempts end at once, as if the process died.
pub async fn run(context: DeliveryContext, shutdown: CancellationToken) {
    let client = context.control.clone();
    let budget = BodyBudget::new(context.body_budget, context.metrics.body_bytes().clone());
    let courier = Arc::new(Courier::new(
        context.hostname,
        QueueControl::new(context.control, budget, context.kept.clone()),
        context.policy,
        context.resolver,
        context.tls,
        context.options,
        context.metrics,
    ));
    let last_share = CancellationToken::new();
    let keeper = tokio::spawn(shares::keep(
        courier.places.clone(),
        courier.pool.clone(),
        context.shares,
        courier.metrics.clone(),
        last_share.clone(),
    ));
    let mut attempts = JoinSet::new();
    let mut farewells = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = attempts.join_next() => note(ended),
            Some(ended) = farewells.join_next() => note(ended),
            _ = sweep.tick() => {
                context.kept.sweep();
                part(&courier, courier.idle_over(), &mut farewells);
            }
            () = courier.pool.woken() => part(&courier, courier.idle_over(), &mut farewells),
            work = client.lease() => match work {
                Some(work) => start(&courier, work, &mut attempts),
                None => break,
            },
        }
    }
    drain(&courier, &mut attempts, context.drain_timeout).await;
    part(&courier, courier.idle_all(), &mut farewells);
    let _ = tokio::time::timeout(FAREWELL, async {
        while farewells.join_next().await.is_some() {}
        // Nothing is open any more: others may have our places at once.
        last_share.cancel();
        let _ = keeper.await;
    })
    .await;
}

/// Says QUIT on connections that are done with.
fn part(
    courier: &Arc<Courier<QueueControl>>,
    connections: Vec<Connection>,
    farewells: &mut JoinSet<()>,
) {
    for connection in connections {
        let courier = Arc::clone(courier);
        farewells.spawn(async move { courier.farewell(connection).await });
    }
}

fn start(courier: &Arc<Courier<QueueControl>>, work: LeasedWork, attempts: &mut JoinSet<()>) {
    let reference = v1::LeaseRef {
        id: work.lease.id.clone(),
        epoch: work.lease.epoch,
        until_ms: 0,
    };
    match Lease::try_from(work.lease) {
        Ok(lease) => {
            let clock = LeaseClock::new(work.received, lease.length);
            let courier = Arc::clone(courier);
            attempts.spawn(async move { courier.deliver(lease, clock).await });
        }
        Err(error) => {
            // Ours or the control plane's mistake: the lease runs out, and every holder logs it.
            tracing::error!(%error, epoch = reference.epoch, "lease not understood");
        }
    }
}

async fn drain(courier: &Courier<QueueControl>, attempts: &mut JoinSet<()>, patience: Duration) {
    let end = Instant::now() + patience;
    let client = courier.control.client();
    client.pause();
    courier.stop();
    let late = async {
        // Leases that were on their way when we paused.
        while let Some(work) = client.lease().await {
            client.give_back(vec![v1::LeaseRef {
                id: work.lease.id,
                epoch: work.lease.epoch,
                until_ms: 0,
            }]);
        }
        std::future::pending::<()>().await;
    };
    let running = async {
        while let Some(ended) = attempts.join_next().await {
            note(ended);
        }
        client.settled().await;
    };
    tokio::select! {
        () = running => {}
        () = late => {}
        () = tokio::time::sleep_until(end) => {}
    }
    if !attempts.is_empty() {
        tracing::warn!(
            attempts = attempts.len(),
            "drain timeout: running attempts are cut off"
        );
        attempts.shutdown().await;
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a delivery task panicked; its lease runs out");
    }
}
