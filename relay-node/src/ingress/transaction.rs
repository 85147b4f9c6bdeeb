//! One message on its way in.
use super::{gatekeeper, intake::Intake};
use sealane_policy::PolicySnapshot;
use sealane_smtp::{MailParameters, server::Listener};
use sealane_types::{Mailbox, ReversePath, TlsFacts};
use sealane_wire::v1;
use std::{net::SocketAddr, sync::Arc, time::SystemTime};
use tracing::{Span, field, info_span};

/// What a connection knows when MAIL comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer<'a> {
    pub(super) address: SocketAddr,
    pub(super) listener: Listener,
    pub(super) helo: &'a str,
    pub(super) tls: &'a TlsFacts,
    pub(super) submitter: Option<&'a str>,
}

/// From MAIL to the reply after the final dot. The policy of MAIL decides to the end.
#[derive(Debug)]
pub(super) struct Transaction {
    /// `smtp.receive`: the root of the message's trace.
    pub(super) span: Span,
    pub(super) policy: Arc<PolicySnapshot>,
    pub(super) reverse_path: ReversePath,
    eight_bit: bool,
    pub(super) recipients: Vec<Mailbox>,
    pub(super) intake: Option<Intake>,
}

impl Transaction {
    pub(super) fn new(
        policy: Arc<PolicySnapshot>,
        peer: Peer<'_>,
        reverse_path: ReversePath,
        parameters: &MailParameters,
    ) -> Self {
        let span = info_span!(
            parent: None,
            "smtp.receive",
            peer = %peer.address,
            listener = peer.listener.as_str(),
            helo = peer.helo,
            tls.version = peer.tls.version,
            tls.cipher = peer.tls.cipher,
            tls.group = peer.tls.group,
            submitter = peer.submitter.unwrap_or_default(),
            message.id = field::Empty,
            message.size = field::Empty,
            recipients = field::Empty,
            outcome = field::Empty,
        );
        Self {
            span,
            policy,
            reverse_path,
            eight_bit: parameters.eight_bit,
            recipients: Vec::new(),
            intake: None,
        }
    }

    /// The same mailbox twice is delivered to once.
    pub(super) fn add(&mut self, mailbox: Mailbox) {
        if !self.recipients.contains(&mailbox) {
            self.recipients.push(mailbox);
        }
    }

    pub(super) fn envelope(&self) -> v1::Envelope {
        let body_type = if self.eight_bit {
            v1::BodyType::BodyType8bitmime
        } else {
            v1::BodyType::BodyType7bit
        };
        v1::Envelope {
            reverse_path: self.reverse_path.to_string(),
            recipients: self
                .recipients
                .iter()
                .map(|m| v1::Recipient {
                    mailbox: m.to_string(),
                    orcpt: String::new(),
                })
                .collect(),
            body_type: body_type.into(),
            envid: String::new(),
        }
    }

    /// INV-2: who brought it, and what let it in.
    pub(super) fn entry(&self, peer: Peer<'_>, relay: &str) -> v1::EntryRecord {
        v1::EntryRecord {
            listener: peer.listener.as_str().to_owned(),
            peer: peer.address.to_string(),
            helo: peer.helo.to_owned(),
            tls: Some(peer.tls.clone().into()),
            submitter: peer.submitter.unwrap_or_default().to_owned(),
            rule: self
                .recipients
                .first()
                .map(|first| gatekeeper::rule(peer.listener, peer.submitter, first))
                .unwrap_or_default(),
            policy_revision: self.policy.revision(),
            relay: relay.to_owned(),
            accepted_at_ms: now_ms(),
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
