//! One attempt from lease to report: resolve → decide → connect → converse → report.
use super::{
    ControlPlane, DeliveryMetrics, DeliveryOptions, Lease, LeaseClock, Renewal, Report, account,
    connect::{Connector, Requirement},
    connection::Connection,
    converse::{Broken, Content},
    facts,
    gate::Gates,
    metrics::{ConnectionKind, OutcomeKind},
    pool::{Pool, PoolKey},
    report::{HopFailure, RecipientOutcome},
};
use crate::{
    resolve::{Hop, HopSource, ResolveError, Resolver, StaticRoute},
    tls::TlsConnector,
};
use sealane_policy::{Destination, PolicySnapshot};
use sealane_runtime::telemetry;
use sealane_tls_policy::{Judgement, SessionFacts, TlsSession, decide, judge};
use std::sync::Arc;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

/// Carries messages to other servers. Shared by all attempts of a relay node.
#[derive(Debug)]
pub struct Courier<C> {
    pub(crate) control: C,
    pub(crate) policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) connector: Connector,
    pub(crate) options: DeliveryOptions,
    pub(crate) metrics: DeliveryMetrics,
    pub(crate) pool: Pool,
    pub(crate) gates: Gates,
    /// Attempts at once, over all destinations.
    pub(crate) places: Semaphore,
    /// Nothing new is started any more.
    pub(crate) stopping: CancellationToken,
}

/// An attempt without outcomes.
enum Ended {
    /// The lease ended before the content was sent: nothing happened that could be reported.
    LeaseLost,
    /// The relay stops, and nothing was done yet.
    NotStarted,
}

impl<C: ControlPlane> Courier<C> {
    /// `hostname` is our name in EHLO.
    pub fn new(
        hostname: String,
        control: C,
        policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
        resolver: Arc<Resolver>,
        tls: TlsConnector,
        options: DeliveryOptions,
        metrics: DeliveryMetrics,
    ) -> Self {
        let connector = Connector::new(hostname, tls, resolver.guard(), options.clone());
        let pool = Pool::new(options.idle.0);
        let gates = Gates::default();
        let places = Semaphore::new(options.credits as usize);
        let stopping = CancellationToken::new();
        Self {
            control,
            policy,
            resolver,
            connector,
            options,
            metrics,
            pool,
            gates,
            places,
            stopping,
        }
    }

    /// Idle connections whose time is over; say [`Self::farewell`] to them.
    pub(crate) fn idle_over(&self) -> Vec<Connection> {
        self.pool.expired()
    }

    /// All idle connections.
    pub(crate) fn idle_all(&self) -> Vec<Connection> {
        self.pool.drain()
    }

    /// QUIT.
    pub(crate) async fn farewell(&self, connection: Connection) {
        connection.quit(&self.options).await;
    }

    /// From now on leases that wait for their turn are given back.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Works on a lease until every recipient is reported, or the lease is lost. The lease is
    /// renewed every third of its length meanwhile.
    ///
    /// # Cancel safety
    /// The connection is dropped without the final dot, or the outcome of the final dot is lost:
    /// then the lease runs out and the message may be sent twice.
    pub async fn deliver(&self, lease: Lease, clock: LeaseClock) {
        self.metrics.attempt();
        let span = attempt_span(&lease);
        telemetry::set_parent(&span, &lease.trace);
        async {
            let outcomes = tokio::select! {
                outcomes = self.attempt(&lease, &clock) => outcomes,
                never = self.keep(&lease, &clock) => match never {},
            };
            match outcomes {
                Ok(recipients) => {
                    account::settle(&lease, &recipients, &self.metrics);
                    self.control.report(Report { key: lease.key, recipients }).await;
                }
                Err(Ended::NotStarted) => {
                    Span::current().record("outcome", "given back");
                    self.control.give_back(lease.key).await;
                }
                Err(Ended::LeaseLost) => {
                    self.metrics.lease_lost();
                    Span::current().record("outcome", "lease lost");
                    tracing::warn!(message_id = %lease.key.id, epoch = lease.key.epoch, "lease lost, attempt ends before the content was sent");
                }
            }
        }
        .instrument(span)
        .await;
    }

    /// Renews the lease for ever; a lost one is noted in the clock, where the conversation sees it.
    async fn keep(&self, lease: &Lease, clock: &LeaseClock) -> std::convert::Infallible {
        let pause = lease.length / 3;
        loop {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            match tokio::time::timeout(pause, self.control.renew(lease.key)).await {
                Ok(Renewal::Renewed(length)) => clock.renewed(asked, length),
                Ok(Renewal::Lost) => {
                    clock.lost();
                    std::future::pending::<()>().await;
                }
                Ok(Renewal::Unknown) | Err(_) => {}
            }
        }
    }

    async fn attempt(
        &self,
        lease: &Lease,
        clock: &LeaseClock,
    ) -> Result<Vec<RecipientOutcome>, Ended> {
        let mut policies = self.policy.clone();
        let policy = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(Ended::NotStarted),
            first = policies.wait_for(Option::is_some) => first.ok().and_then(|p| p.clone()),
        };
        let Some(policy) = policy else {
            return Err(Ended::NotStarted);
        };
        let destination = policy.destination(lease.destination.as_str());
        let turn = async {
            let gate = self
                .gates
                .enter(lease.destination.as_str(), destination.limits.connections)
                .await;
            (gate, self.places.acquire().await.expect("never closed"))
        };
        let _turn = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(Ended::NotStarted),
            turn = turn => turn,
        };
        let hops = match self.resolve(lease, &destination).await {
            Ok(hops) => hops,
            Err(error) => return Ok(resolve_failure(&error).for_all(lease)),
        };
        let mut worst: Option<HopFailure> = None;
        for hop in hops {
            if !clock.holds(self.options.lease_margin.0) {
                return Err(Ended::LeaseLost);
            }
            match self.hop(lease, clock, &destination, hop).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(HopEnd::Lost) => return Err(Ended::LeaseLost),
                Err(HopEnd::Final(failure)) => return Ok(failure.for_all(lease)),
                Err(HopEnd::Next(failure)) => worst = Some(worse(worst, failure)),
            }
        }
        let failure = worst.unwrap_or_else(|| HopFailure::own((4, 4, 1), "no host to connect to"));
        Ok(failure.for_all(lease))
    }

    async fn resolve(
        &self,
        lease: &Lease,
        destination: &Destination,
    ) -> Result<Vec<Hop>, ResolveError> {
        let route = destination.route.as_ref().map(|r| StaticRoute {
            host: r.host.clone(),
            port: u16::try_from(r.port).unwrap_or(0),
            implicit_tls: r.implicit_tls,
        });
        self.resolver
            .resolve(&lease.destination, route.as_ref())
            .await
    }

    /// Decides, connects or reuses, converses.
    async fn hop(
        &self,
        lease: &Lease,
        clock: &LeaseClock,
        destination: &Destination,
        hop: Hop,
    ) -> Result<Vec<RecipientOutcome>, HopEnd> {
        let decision = decide(facts::hop_facts(&destination.tls));
        Span::current().record("decision", tracing::field::display(decision));
        if !decision.connects() {
            let not_tried = SessionFacts {
                tls: TlsSession::NotTried,
                offers_require_tls: false,
            };
            let Judgement::Refuse {
                status, tls_caused, ..
            } = judge(decision, not_tried)
            else {
                return Err(HopEnd::Final(HopFailure::own(
                    (4, 7, 5),
                    "TLS decision without a connection",
                )));
            };
            let text =
                "the TLS level that the policy requires cannot be reached with this destination";
            let failure = HopFailure::own(status, text);
            return Err(HopEnd::Final(if tls_caused {
                failure.tls_caused()
            } else {
                failure
            }));
        }
        // A name that only DNS gave proves nothing about the destination.
        let expected = match hop.source {
            HopSource::Exchange => lease.destination.as_str(),
            HopSource::Route | HopSource::Literal => &hop.host,
        };
        let certificate = facts::certificate_requirement(&destination.tls, expected)
            .map_err(|e| HopEnd::Final(HopFailure::own((4, 7, 5), e.to_string()).tls_caused()))?;
        let key = PoolKey {
            hop: hop.clone(),
            requirement: certificate.key(),
        };
        let requirement = Requirement {
            decision,
            certificate,
        };

        let mut reused = self.pool.take(&key);
        loop {
            let fresh = reused.is_none();
            let mut connection = match reused.take() {
                Some(connection) => {
                    self.metrics.connection(ConnectionKind::Reused);
                    connection
                }
                None => match self.connector.open(&hop, &requirement).await {
                    Ok(connection) => {
                        self.metrics.connection(ConnectionKind::Opened);
                        self.metrics.tls_session(&connection.tls().version);
                        connection
                    }
                    Err(failure) => {
                        self.metrics.connection(ConnectionKind::Failed);
                        return Err(HopEnd::Next(failure));
                    }
                },
            };
            account::record_session(connection.remote(), connection.tls());
            let content = Content {
                control: &self.control,
                clock,
                options: &self.options,
            };
            match connection.transact(lease, content).await {
                Ok(outcomes) => {
                    let limit = destination.limits.messages_per_connection;
                    if connection.reusable() && connection.transactions() < limit {
                        self.pool.put(key, connection);
                    } else {
                        self.pool.retire(connection);
                    }
                    return Ok(outcomes);
                }
                // The peer closed while the connection waited: nothing was said about this message.
                Err(Broken::Silent(_)) if !fresh => {}
                Err(Broken::Silent(failure) | Broken::BeforeContent(failure)) => {
                    return Err(HopEnd::Next(failure));
                }
                Err(Broken::Settled(failure)) => return Err(HopEnd::Final(failure)),
                Err(Broken::LeaseOver) => return Err(HopEnd::Lost),
            }
        }
    }
}

/// How a hop ended without outcomes per recipient.
enum HopEnd {
    /// Another address may do better.
    Next(HopFailure),
    /// It holds for the destination as a whole.
    Final(HopFailure),
    /// The lease ended.
    Lost,
}

/// Of two failures the one that is reported: temporary before permanent, and among equals one that
/// TLS did not cause, because its longer lifetime is the right one when some host merely was down.
fn worse(a: Option<HopFailure>, b: HopFailure) -> HopFailure {
    let rank = |f: &HopFailure| (f.kind == OutcomeKind::Deferred, !f.tls_caused);
    match a {
        Some(a) if rank(&a) > rank(&b) => a,
        _ => b,
    }
}

fn resolve_failure(error: &ResolveError) -> HopFailure {
    let text = match error {
        ResolveError::Temporary(cause) => {
            tracing::debug!(cause, "DNS lookup failed");
            "DNS lookup failed".to_owned()
        }
        other => other.to_string(),
    };
    HopFailure::own(error.status(), text)
}

fn attempt_span(lease: &Lease) -> Span {
    tracing::info_span!(
        parent: None,
        "delivery.attempt",
        message_id = %lease.key.id,
        destination = %lease.destination,
        attempt = lease.attempt(),
        recipients = lease.recipients.len(),
        remote = Empty,
        tls.version = Empty,
        tls.cipher = Empty,
        tls.group = Empty,
        tls.verification = Empty,
        decision = Empty,
        code = Empty,
        outcome = Empty,
    )
}
