//! Counters of delivery.
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Prometheus counters; every label has a closed set of values.
#[derive(Debug, Clone, Default)]
pub struct DeliveryMetrics {
    attempts: Counter,
    recipients: Family<OutcomeLabel, Counter>,
    connections: Family<ConnectionLabel, Counter>,
    tls_sessions: Family<TlsLabel, Counter>,
    leases_lost: Counter,
    body_bytes: Gauge,
    places: Gauge,
    place_waits: Counter,
    given_back: Counter,
    questions: Family<DealtLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DealtLabel {
    dealt: YesNo,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: OutcomeKind,
    tls_caused: YesNo,
}

/// How an attempt ended for one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum OutcomeKind {
    /// 2yz after the content.
    Delivered,
    /// To be tried again.
    Deferred,
    /// Given up.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum YesNo {
    Yes,
    No,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabel {
    kind: ConnectionKind,
}

/// How a transaction came to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ConnectionKind {
    /// A new one.
    Opened,
    /// One that carried mail before.
    Reused,
    /// None: the connection, TLS or its check failed.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TlsLabel {
    version: TlsVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's value")]
enum TlsVersion {
    TLSv1_2,
    TLSv1_3,
    Other,
}

impl DeliveryMetrics {
    /// Registers `sealane_delivery_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register(
            "sealane_delivery_attempts",
            "Leases worked on",
            m.attempts.clone(),
        );
        registry.register(
            "sealane_delivery_recipients",
            "Recipients by outcome of an attempt",
            m.recipients.clone(),
        );
        registry.register(
            "sealane_delivery_connections",
            "Connections to other servers",
            m.connections.clone(),
        );
        registry.register(
            "sealane_delivery_tls_sessions",
            "TLS sessions to other servers by version",
            m.tls_sessions.clone(),
        );
        registry.register(
            "sealane_delivery_leases_lost",
            "Leases lost before the content was sent",
            m.leases_lost.clone(),
        );
        registry.register(
            "sealane_delivery_body_bytes",
            "Octets of the budget for outgoing bodies in use",
            m.body_bytes.clone(),
        );
        registry.register(
            "sealane_delivery_places",
            "Connections that this relay may have open, over all destinations in use",
            m.places.clone(),
        );
        registry.register(
            "sealane_delivery_place_waits",
            "Attempts that waited for their turn at a destination",
            m.place_waits.clone(),
        );
        registry.register(
            "sealane_delivery_given_back",
            "Leases given back because their destination had no place in time, or the relay stops",
            m.given_back.clone(),
        );
        registry.register(
            "sealane_delivery_share_questions",
            "Questions for shares of destinations",
            m.questions.clone(),
        );
        m
    }
    /// Octets of the budget for outgoing bodies in use.
    pub(crate) fn body_bytes(&self) -> &Gauge {
        &self.body_bytes
    }
    /// A lease is worked on.
    pub fn attempt(&self) {
        self.attempts.inc();
    }
    /// A recipient is settled for this attempt.
    pub fn recipient(&self, outcome: OutcomeKind, tls_caused: bool) {
        let tls_caused = if tls_caused { YesNo::Yes } else { YesNo::No };
        self.recipients
            .get_or_create(&OutcomeLabel {
                outcome,
                tls_caused,
            })
            .inc();
    }
    /// A connection was made, reused or failed.
    pub fn connection(&self, kind: ConnectionKind) {
        self.connections
            .get_or_create(&ConnectionLabel { kind })
            .inc();
    }
    /// Transactions by the kind of their connection so far.
    pub fn connections(&self, kind: ConnectionKind) -> u64 {
        self.connections
            .get_or_create(&ConnectionLabel { kind })
            .get()
    }
    /// A handshake succeeded.
    pub fn tls_session(&self, version: &str) {
        let version = match version {
            "TLSv1.2" => TlsVersion::TLSv1_2,
            "TLSv1.3" => TlsVersion::TLSv1_3,
            _ => TlsVersion::Other,
        };
        self.tls_sessions.get_or_create(&TlsLabel { version }).inc();
    }
    /// What may be open now.
    pub(crate) fn places(&self, held: u32) {
        self.places.set(i64::from(held));
    }
    /// An attempt waits for its turn.
    pub(crate) fn waited_for_place(&self) {
        self.place_waits.inc();
    }
    /// A lease goes back.
    pub(crate) fn gave_back(&self) {
        self.given_back.inc();
    }
    /// The dealer was asked, and answered or not.
    pub(crate) fn asked(&self, dealt: bool) {
        let dealt = if dealt { YesNo::Yes } else { YesNo::No };
        self.questions.get_or_create(&DealtLabel { dealt }).inc();
    }
    /// A lease ran out or was taken away before the final dot.
    pub fn lease_lost(&self) {
        self.leases_lost.inc();
    }
}
