//! One attempt from lease to report: its turn → resolve → decide → place → connect → converse → report.
use super::{
    ControlPlane, DeliveryMetrics, DeliveryOptions, Lease, LeaseClock, Renewal, Report, account,
    connect::{Connector, Requirement},
    connection::Connection,
    converse::{Broken, Content},
    facts,
    metrics::{ConnectionKind, OutcomeKind},
    places::{Place, Places, Turn},
    pool::{Pool, PoolKey},
    report::{HopFailure, RecipientOutcome},
};
use crate::{
    resolve::{Hop, HopSource, ResolveError, Resolver, StaticRoute},
    tls::TlsConnector,
};
use sealane_policy::{Destination, PolicySnapshot};
use sealane_runtime::telemetry;
use sealane_shares::Kind;
use sealane_tls_policy::{Judgement, SessionFacts, TlsSession, decide, judge};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

/// A lease waits for its turn at most this long, and at most half of its length; then it goes back.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the QUIT of an idle connection whose place is needed.
const EVICTION: Duration = Duration::from_secs(2);

/// Carries messages to other servers. Shared by all attempts of a relay node.
#[derive(Debug)]
pub struct Courier<C> {
    pub(crate) control: C,
    pub(crate) policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) connector: Connector,
    pub(crate) options: DeliveryOptions,
    pub(crate) metrics: DeliveryMetrics,
    pub(crate) pool: Arc<Pool>,
    pub(crate) places: Places,
    /// Attempts at once, over all destinations.
    pub(crate) running: Semaphore,
    /// Nothing new is started any more.
    pub(crate) stopping: CancellationToken,
}

/// An attempt without outcomes.
enum Ended {
    /// The lease ended before the content was sent: nothing happened that could be reported.
    LeaseLost,
    /// The relay stops, or the destination has no place for it, and nothing was done yet.
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
        let pool = Arc::new(Pool::new(options.idle.0));
        let places = Places::new(metrics.clone());
        let running = Semaphore::new(options.credits as usize);
        let stopping = CancellationToken::new();
        Self {
            control,
            policy,
            resolver,
            connector,
            options,
            metrics,
            pool,
            places,
            running,
            stopping,
        }
    }

    /// Connections that are done with, whose time is over or whose place is gone; say
    /// [`Self::farewell`] to them.
    pub(crate) fn idle_over(&self) -> Vec<Connection> {
        self.pool.over(&self.places)
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
                ended = self.keep(&lease, &clock) => Err(ended),
            };
            match outcomes {
                Ok(recipients) => {
                    account::settle(&lease, &recipients, &self.metrics);
                    self.control.report(Report { key: lease.key, recipients }).await;
                }
                Err(Ended::NotStarted) => {
                    Span::current().record("outcome", "given back");
                    self.metrics.gave_back();
                    self.control.give_back(lease.key).await;
                }
                Err(Ended::LeaseLost) => {
                    self.metrics.lease_lost();
                    Span::current().record("outcome", "lease lost");
                    tracing::warn!(message_id = %lease.key.id, epoch = lease.key.epoch, "lease lost, attempt ends before the content was sent");
                    // What expired meanwhile is not renewed, but still counts as ours: its sender is not to
                    // wait for the lease's end. Where it is another's by now, this epoch is refused.
                    self.control.give_back(lease.key).await;
                }
            }
        }
        .instrument(span)
        .await;
    }

    /// Renews the lease for ever, or until it is lost before the final dot.
    async fn keep(&self, lease: &Lease, clock: &LeaseClock) -> Ended {
        let pause = lease.length / 3;
        loop {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            match tokio::time::timeout(pause, self.control.renew(lease.key)).await {
                Ok(Renewal::Renewed(length)) => clock.renewed(asked, length),
                Ok(Renewal::Lost) => {
                    if clock.lost() {
                        return Ended::LeaseLost;
                    }
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
        let until = Instant::now() + (lease.length / 2).min(PATIENCE);
        let turn = self
            .places
            .enter(lease.destination.as_str(), &destination.limits);
        let turn = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(Ended::NotStarted),
            turn = timeout_at(until, turn) => turn.map_err(|_| Ended::NotStarted)?,
        };
        let at = At {
            turn: &turn,
            destination: &destination,
            until,
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
            match self.hop(lease, clock, &at, hop).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(HopEnd::Lost) => return Err(Ended::LeaseLost),
                // What another host said is worth a report.
                Err(HopEnd::NoPlace) if worst.is_some() => break,
                Err(HopEnd::NoPlace) => return Err(Ended::NotStarted),
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

    /// An idle connection, at the place of this destination.
    async fn reuse(
        &self,
        at: &At<'_>,
        mut connection: Connection,
        key: &PoolKey,
    ) -> Result<Connection, HopEnd> {
        // Several destinations may share a host.
        if !connection.is_at(at.turn.destination()) {
            match self.place(at).await {
                Some(place) => connection.move_to(place),
                None => {
                    self.pool.put(key.clone(), connection);
                    return Err(HopEnd::NoPlace);
                }
            }
        }
        self.metrics.connection(ConnectionKind::Reused);
        Ok(connection)
    }

    /// A new connection.
    async fn open(
        &self,
        at: &At<'_>,
        hop: &Hop,
        requirement: &Requirement,
    ) -> Result<Connection, HopEnd> {
        let place = self.place(at).await.ok_or(HopEnd::NoPlace)?;
        let _running = self
            .run(at, Kind::Connection)
            .await
            .ok_or(HopEnd::NoPlace)?;
        // Boxed: a warm connection's attempt does not carry the handshake's state.
        match Box::pin(self.connector.open(hop, requirement, place)).await {
            Ok(connection) => {
                self.metrics.connection(ConnectionKind::Opened);
                self.metrics.tls_session(&connection.tls().version);
                Ok(connection)
            }
            Err(failure) => {
                self.metrics.connection(ConnectionKind::Failed);
                Err(HopEnd::Next(failure))
            }
        }
    }

    /// A place for a connection; idle ones to the same destination make room.
    async fn place(&self, at: &At<'_>) -> Option<Place> {
        let changed = at.turn.changed();
        loop {
            let notified = changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(place) = at.turn.open() {
                return Some(place);
            }
            if let Some(idle) = self.pool.evict(at.turn.destination()) {
                // Closed with its place if the peer does not answer.
                let _ = timeout(EVICTION, Box::pin(self.farewell(idle))).await;
                continue;
            }
            self.patiently(at, notified).await?;
        }
    }

    /// A permit to run, with a token where something of this kind needs one: who waits for a token keeps
    /// nobody from running, and who has one uses it at once.
    async fn run(&self, at: &At<'_>, kind: Kind) -> Option<SemaphorePermit<'_>> {
        if !at.is_limited(kind) {
            return self.running.acquire().await.ok();
        }
        let changed = at.turn.changed();
        let mut wants = None;
        loop {
            let notified = changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let running = self.running.acquire().await.ok()?;
            if at.turn.spend(kind) {
                return Some(running);
            }
            drop(running);
            wants.get_or_insert_with(|| at.turn.wants_token(kind));
            self.patiently(at, notified).await?;
        }
    }

    /// Waits for `change`; `None`: it takes too long, or the relay stops.
    async fn patiently(&self, at: &At<'_>, change: impl Future<Output = ()>) -> Option<()> {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            changed = timeout_at(at.until, change) => changed.ok(),
        }
    }

    /// After a message: for the next one, if there may be one and its place still is ours.
    fn keep_or_retire(&self, at: &At<'_>, key: PoolKey, connection: Connection) {
        let limit = at.destination.limits.messages_per_connection;
        let more = connection.reusable() && connection.transactions() < limit;
        if more && !self.places.exceeds(at.turn.destination()) {
            self.pool.put(key, connection);
        } else {
            self.pool.retire(connection);
        }
    }

    /// Decides, connects or reuses, converses.
    async fn hop(
        &self,
        lease: &Lease,
        clock: &LeaseClock,
        at: &At<'_>,
        hop: Hop,
    ) -> Result<Vec<RecipientOutcome>, HopEnd> {
        let destination = at.destination;
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

        let mut reused = self.pool.take(&key, at.turn.destination());
        loop {
            let fresh = reused.is_none();
            let mut connection = match reused.take() {
                Some(connection) => self.reuse(at, connection, &key).await?,
                None => self.open(at, &hop, &requirement).await?,
            };
            let Some(_running) = self.run(at, Kind::Message).await else {
                self.keep_or_retire(at, key, connection);
                return Err(HopEnd::NoPlace);
            };
            account::record_session(connection.remote(), connection.tls());
            let content = Content {
                control: &self.control,
                clock,
                options: &self.options,
            };
            match connection.transact(lease, content).await {
                Ok(outcomes) => {
                    self.keep_or_retire(at, key, connection);
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

/// Where an attempt is.
struct At<'a> {
    turn: &'a Turn,
    destination: &'a Destination,
    /// It begins by then, or not at all.
    until: Instant,
}

impl At<'_> {
    /// Whether something of this kind spends a token.
    fn is_limited(&self, kind: Kind) -> bool {
        let limits = &self.destination.limits;
        match kind {
            Kind::Connection => limits.connections_per_minute.is_some(),
            Kind::Message => limits.messages_per_minute.is_some(),
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
    /// There was no place for a connection in time.
    NoPlace,
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
