//! From acceptance to delivery on the same node: the lease that came with the enqueue, and the body.
use crate::kept::KeptBodies;
use bytes::Bytes;
use sealane_client::{DeliverClient, Durable, Submission};
use sealane_wire::v1;

/// The way from ingress to delivery. Nothing is lost when it fails: the lease runs out, the queue has the body.
#[derive(Debug, Clone)]
pub struct Handover {
    pub(crate) deliver: DeliverClient,
    pub(crate) kept: KeptBodies,
}

/// The domain that all recipients share, lower case; `None` if they do not.
fn destination(envelope: &v1::Envelope) -> Option<String> {
    let domain = |r: &v1::Recipient| {
        r.mailbox
            .rsplit_once('@')
            .map(|(_, d)| d.to_ascii_lowercase())
    };
    let mut domains = envelope.recipients.iter().map(domain);
    let first = domains.next()??;
    domains.all(|d| d.as_ref() == Some(&first)).then_some(first)
}

impl Handover {
    /// Whether to ask for the lease with the enqueue.
    pub(crate) fn wanted(&self, envelope: &v1::Envelope) -> bool {
        !self.deliver.is_paused() && destination(envelope).is_some()
    }

    /// The message is durable: its body stays here for a while, and if it is leased to us, delivery begins.
    pub(crate) fn accepted(&self, submission: &Submission, durable: &Durable, body: Bytes) {
        self.kept.keep(durable.id(), body);
        let Some(grant) = durable.grant() else {
            return;
        };
        let envelope = &submission.envelope;
        let Some(destination) = destination(envelope) else {
            return;
        };
        let recipients = envelope.recipients.iter().zip(0..);
        let lease = v1::Lease {
            id: durable.id().as_bytes().to_vec().into(),
            epoch: grant.epoch,
            lease_ms: u64::try_from(grant.length.as_millis()).unwrap_or(u64::MAX),
            destination,
            reverse_path: envelope.reverse_path.clone(),
            body_type: envelope.body_type,
            envid: envelope.envid.clone(),
            recipients: recipients
                .map(|(r, n)| v1::LeasedRecipient {
                    recipient: n,
                    mailbox: r.mailbox.clone(),
                    attempts: 0,
                    orcpt: r.orcpt.clone(),
                })
                .collect(),
            size: submission.size,
            trace: Some(submission.trace.clone().into()),
            accepted_at_ms: submission.entry.accepted_at_ms,
            since_ms: 0,
        };
        self.deliver.granted(lease, grant.node, grant.since);
    }
}
