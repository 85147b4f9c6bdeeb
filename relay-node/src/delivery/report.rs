//! Outcomes of an attempt, per recipient.
use super::{Lease, LeaseKey, metrics::OutcomeKind};
use sealane_types::{EnhancedStatus, Reply, TlsFacts, sanitize};
use sealane_wire::v1;

/// Outcomes of (some) recipients of one lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The lease.
    pub key: LeaseKey,
    /// At least one.
    pub recipients: Vec<RecipientOutcome>,
}

/// What happened to one recipient.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipientOutcome {
    /// Number within the envelope.
    pub number: u32,
    /// The verdict.
    pub kind: OutcomeKind,
    /// Our or the peer's last word; code 0 is ours. Text is printable ASCII.
    pub reply: Reply,
    /// "mx.example [192.0.2.1]:25"; empty if never connected.
    pub remote: String,
    /// The session it happened in, if there was one.
    pub tls: Option<TlsFacts>,
    /// The shorter TLS lifetime applies.
    pub tls_caused: bool,
}

/// Why no transaction took place with a hop, or not to its end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HopFailure {
    pub(crate) kind: OutcomeKind,
    pub(crate) reply: Reply,
    pub(crate) remote: String,
    pub(crate) tls: Option<TlsFacts>,
    pub(crate) tls_caused: bool,
}

impl HopFailure {
    /// A failure of our own finding; class 5 is permanent.
    pub(crate) fn own(status: (u8, u16, u16), text: impl Into<String>) -> Self {
        let (class, subject, detail) = status;
        let kind = if class == 5 {
            OutcomeKind::Failed
        } else {
            OutcomeKind::Deferred
        };
        let reply = Reply {
            code: 0,
            enhanced: Some(EnhancedStatus(class, subject, detail)),
            text: text.into(),
        };
        Self {
            kind,
            reply,
            remote: String::new(),
            tls: None,
            tls_caused: false,
        }
    }
    /// The peer sent us away before it heard of a message: temporary, whatever it said, because
    /// nothing was said about this message (RFC 5321 section 3.1 leaves 5yz greetings to us).
    pub(crate) fn refused(reply: Reply) -> Self {
        Self {
            kind: OutcomeKind::Deferred,
            reply,
            remote: String::new(),
            tls: None,
            tls_caused: false,
        }
    }
    pub(crate) fn within(mut self, tls: &TlsFacts) -> Self {
        self.tls = Some(tls.clone());
        self
    }
    pub(crate) fn at(mut self, remote: &str) -> Self {
        remote.clone_into(&mut self.remote);
        self
    }
    pub(crate) fn tls_caused(mut self) -> Self {
        self.tls_caused = true;
        self
    }
    /// The same failure for every recipient of the lease.
    pub(crate) fn for_all(&self, lease: &Lease) -> Vec<RecipientOutcome> {
        lease
            .recipients
            .iter()
            .map(|r| RecipientOutcome {
                number: r.number,
                kind: self.kind,
                reply: self.reply.clone(),
                remote: self.remote.clone(),
                tls: self.tls.clone(),
                tls_caused: self.tls_caused,
            })
            .collect()
    }
}

impl From<Report> for v1::Report {
    fn from(r: Report) -> Self {
        Self {
            id: r.key.id.as_bytes().to_vec().into(),
            epoch: r.key.epoch,
            recipients: r.recipients.into_iter().map(Into::into).collect(),
            // Of the lease: the client knows them.
            destination: String::new(),
            trace: None,
        }
    }
}

/// Octets of a reply that are kept, once per recipient: peers choose them.
const REPLY_TEXT: usize = 512;

impl From<RecipientOutcome> for v1::RecipientReport {
    fn from(r: RecipientOutcome) -> Self {
        let outcome = match r.kind {
            OutcomeKind::Delivered => v1::Outcome::Delivered,
            OutcomeKind::Deferred => v1::Outcome::Deferred,
            OutcomeKind::Failed => v1::Outcome::Failed,
        };
        Self {
            recipient: r.number,
            outcome: outcome.into(),
            reply: Some(v1::Reply {
                code: u32::from(r.reply.code),
                enhanced: r.reply.enhanced.map(|e| e.to_string()).unwrap_or_default(),
                text: sanitize(r.reply.text.replace('\n', " ").as_bytes(), REPLY_TEXT),
                remote: r.remote,
            }),
            tls: r.tls.map(Into::into),
            tls_caused: r.tls_caused,
        }
    }
}
