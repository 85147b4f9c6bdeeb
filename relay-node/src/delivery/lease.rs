//! A lease as received, checked once.
use sealane_types::{DomainName, MAX_RECIPIENTS, Mailbox, MessageId, ReversePath, TraceContext};
use sealane_wire::{FieldError, message_id, v1};
use std::time::Duration;

/// Names one lease; the epoch fences off earlier holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// The message.
    pub id: MessageId,
    /// Raft index of the lease.
    pub epoch: u64,
}

/// The right and duty to deliver one message to recipients of one destination.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Its name.
    pub key: LeaseKey,
    /// From receipt.
    pub length: Duration,
    /// The domain that all recipients share.
    pub destination: DomainName,
    /// For MAIL FROM.
    pub reverse_path: ReversePath,
    /// Content has octets above 127 (RFC 6152).
    pub eight_bit: bool,
    /// Never empty.
    pub recipients: Vec<LeasedRecipient>,
    /// Octets of the content.
    pub size: u64,
    /// The span that accepted the message.
    pub trace: TraceContext,
}

/// One recipient of a lease.
#[derive(Debug, Clone)]
pub struct LeasedRecipient {
    /// Number within the envelope.
    pub number: u32,
    /// For RCPT TO.
    pub mailbox: Mailbox,
    /// Before this one.
    pub attempts: u32,
}

impl Lease {
    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.recipients
            .iter()
            .map(|r| r.attempts)
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }
}

impl TryFrom<v1::Lease> for Lease {
    type Error = FieldError;
    fn try_from(l: v1::Lease) -> Result<Self, FieldError> {
        let key = LeaseKey {
            id: message_id("lease.id", &l.id)?,
            epoch: l.epoch,
        };
        if l.recipients.is_empty() || l.recipients.len() > MAX_RECIPIENTS {
            return Err(FieldError::new("lease.recipients", "empty or too many"));
        }
        let recipients = l
            .recipients
            .into_iter()
            .map(|r| {
                let mailbox = Mailbox::parse(&r.mailbox)
                    .map_err(|e| FieldError::new("lease.recipients.mailbox", e))?;
                Ok(LeasedRecipient {
                    number: r.recipient,
                    mailbox,
                    attempts: r.attempts,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            key,
            length: Duration::from_millis(l.lease_ms),
            destination: DomainName::parse(&l.destination)
                .map_err(|e| FieldError::new("lease.destination", e))?,
            reverse_path: ReversePath::parse(&l.reverse_path)
                .map_err(|e| FieldError::new("lease.reverse_path", e))?,
            eight_bit: l.body_type == v1::BodyType::BodyType8bitmime as i32,
            recipients,
            size: l.size,
            trace: l.trace.map(Into::into).unwrap_or_default(),
        })
    }
}
