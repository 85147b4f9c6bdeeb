//! Prometheus metrics of accepting mail. Labels come from closed sets only.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    listener: &'static str,
    reason: &'static str,
}

/// Why mail was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 530 before TLS.
    Plaintext,
    /// Sender not allowed.
    Sender,
    /// Recipient not served or not allowed.
    Recipient,
    /// Syntax of the message: bare line ends, too many hops.
    Content,
    /// Above the size limit.
    Size,
    /// No memory or disk for it now.
    Resources,
    /// The queue cannot take it now.
    Queue,
    /// No policy yet.
    Policy,
    /// TLS handshake failed.
    Handshake,
    /// Too slow.
    Timeout,
    /// Too many from one address.
    Connections,
    /// No PROXY header, or a malformed one, from where one has to come.
    Proxy,
}

impl Refusal {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Plaintext => "plaintext",
            Refusal::Sender => "sender",
            Refusal::Recipient => "recipient",
            Refusal::Content => "content",
            Refusal::Size => "size",
            Refusal::Resources => "resources",
            Refusal::Queue => "queue",
            Refusal::Policy => "policy",
            Refusal::Handshake => "handshake",
            Refusal::Timeout => "timeout",
            Refusal::Connections => "connections",
            Refusal::Proxy => "proxy",
        }
    }
}

/// All of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IngressMetrics {
    accepted: Family<ListenerLabel, Counter>,
    accepted_bytes: Family<ListenerLabel, Counter>,
    refused: Family<RefusalLabel, Counter>,
    sessions: Family<ListenerLabel, Counter>,
    open_sessions: Family<ListenerLabel, Gauge>,
    auth_failures: Family<ListenerLabel, Counter>,
    unknown: Counter,
    enqueue_seconds: Histogram,
    body_bytes: Gauge,
}

impl IngressMetrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self {
            accepted: Family::default(),
            accepted_bytes: Family::default(),
            refused: Family::default(),
            sessions: Family::default(),
            open_sessions: Family::default(),
            auth_failures: Family::default(),
            unknown: Counter::default(),
            enqueue_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 17)),
            body_bytes: Gauge::default(),
        };
        let r = registry.sub_registry_with_prefix("sealane_relay");
        r.register("accepted", "Messages that got 250", m.accepted.clone());
        r.register("accepted_bytes", "Their octets", m.accepted_bytes.clone());
        r.register(
            "refused",
            "Commands and messages refused, by reason",
            m.refused.clone(),
        );
        r.register("sessions", "SMTP connections accepted", m.sessions.clone());
        r.register(
            "open_sessions",
            "SMTP connections open now",
            m.open_sessions.clone(),
        );
        r.register(
            "auth_failures",
            "Failed authentications",
            m.auth_failures.clone(),
        );
        r.register(
            "unknown_outcomes",
            "Connections closed without a reply because nobody knew whether the message is durable",
            m.unknown.clone(),
        );
        r.register(
            "enqueue_seconds",
            "From the final dot to the reply",
            m.enqueue_seconds.clone(),
        );
        r.register(
            "body_bytes",
            "Octets of the budget for incoming bodies in use",
            m.body_bytes.clone(),
        );
        m
    }
    pub(crate) fn accepted(&self, listener: &'static str, octets: u64, took: Duration) {
        self.accepted
            .get_or_create(&ListenerLabel { listener })
            .inc();
        self.accepted_bytes
            .get_or_create(&ListenerLabel { listener })
            .inc_by(octets);
        self.enqueue_seconds.observe(took.as_secs_f64());
    }
    pub(crate) fn refused(&self, listener: &'static str, why: Refusal) {
        self.refused
            .get_or_create(&RefusalLabel {
                listener,
                reason: why.as_str(),
            })
            .inc();
    }
    pub(crate) fn opened(&self, listener: &'static str) {
        self.sessions
            .get_or_create(&ListenerLabel { listener })
            .inc();
        self.open_sessions
            .get_or_create(&ListenerLabel { listener })
            .inc();
    }
    pub(crate) fn closed(&self, listener: &'static str) {
        self.open_sessions
            .get_or_create(&ListenerLabel { listener })
            .dec();
    }
    pub(crate) fn auth_failed(&self, listener: &'static str) {
        self.auth_failures
            .get_or_create(&ListenerLabel { listener })
            .inc();
    }
    pub(crate) fn unknown(&self) {
        self.unknown.inc();
    }
    pub(crate) fn body_bytes(&self) -> &Gauge {
        &self.body_bytes
    }
}
