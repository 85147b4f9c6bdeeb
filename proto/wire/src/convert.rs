//! Conversions between generated messages and domain types. Bytes from outside end here: an error
//! names the field.
use crate::v1;
use sealane_shares::{Grant, Need, PerKind};
use sealane_types::{Mailbox, MessageId, ReversePath, TlsFacts, TraceContext};

/// A field of a received message is missing or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Path of the field, as in the `.proto` file.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: &'static str, reason: impl ToString) -> Self {
        Self {
            field,
            reason: reason.to_string(),
        }
    }
}

impl From<TlsFacts> for v1::TlsFacts {
    fn from(t: TlsFacts) -> Self {
        Self {
            version: t.version,
            cipher: t.cipher,
            group: t.group,
            server_name: t.server_name,
            verification: t.verification,
            peer_certificate_sha256: t.peer_certificate_sha256.into(),
        }
    }
}

impl From<v1::TlsFacts> for TlsFacts {
    fn from(t: v1::TlsFacts) -> Self {
        Self {
            version: t.version,
            cipher: t.cipher,
            group: t.group,
            server_name: t.server_name,
            verification: t.verification,
            peer_certificate_sha256: t.peer_certificate_sha256.to_vec(),
        }
    }
}

impl From<TraceContext> for v1::TraceContext {
    fn from(t: TraceContext) -> Self {
        Self {
            traceparent: t.traceparent,
            tracestate: t.tracestate,
        }
    }
}

impl From<v1::TraceContext> for TraceContext {
    fn from(t: v1::TraceContext) -> Self {
        Self {
            traceparent: t.traceparent,
            tracestate: t.tracestate,
        }
    }
}

/// Parses the `id` field that many messages carry.
pub fn message_id(field: &'static str, bytes: &[u8]) -> Result<MessageId, FieldError> {
    MessageId::from_slice(bytes).map_err(|e| FieldError::new(field, e))
}

impl v1::Envelope {
    /// Checks every address; nothing of an invalid envelope is used.
    pub fn validate(&self) -> Result<(), FieldError> {
        ReversePath::parse(&self.reverse_path)
            .map_err(|e| FieldError::new("envelope.reverse_path", e))?;
        if self.recipients.is_empty() {
            return Err(FieldError::new("envelope.recipients", "empty"));
        }
        if self.recipients.len() > sealane_types::MAX_RECIPIENTS {
            return Err(FieldError::new("envelope.recipients", "too many"));
        }
        for r in &self.recipients {
            let mailbox = Mailbox::parse(&r.mailbox)
                .map_err(|e| FieldError::new("envelope.recipients.mailbox", e))?;
            if mailbox.domain().is_none() {
                let reason = format!("{mailbox}: domain is missing");
                return Err(FieldError::new("envelope.recipients.mailbox", reason));
            }
        }
        Ok(())
    }
}

impl v1::ShareNeed {
    /// What a holder says about `destination`.
    pub fn of(destination: &str, need: Need) -> Self {
        Self {
            destination: destination.to_owned(),
            holds: need.holds,
            needs: need.needs,
            open: need.open,
            connection_tokens: need.tokens.connections,
            message_tokens: need.tokens.messages,
            lease_tokens: need.tokens.leases,
        }
    }

    /// Without the destination.
    pub fn need(&self) -> Need {
        Need {
            holds: self.holds,
            needs: self.needs,
            open: self.open,
            tokens: PerKind {
                connections: self.connection_tokens,
                messages: self.message_tokens,
                leases: self.lease_tokens,
            },
        }
    }
}

impl From<Grant> for v1::Share {
    fn from(g: Grant) -> Self {
        Self {
            places: g.places,
            connection_tokens: g.tokens.connections,
            message_tokens: g.tokens.messages,
            lease_tokens: g.tokens.leases,
        }
    }
}

impl From<&v1::Share> for Grant {
    fn from(s: &v1::Share) -> Self {
        Self {
            places: s.places,
            tokens: PerKind {
                connections: s.connection_tokens,
                messages: s.message_tokens,
                leases: s.lease_tokens,
            },
        }
    }
}
