//! One lease batch on its way through the log to a relay.
use super::{
    Dispatch,
    index::{Batch, Moment},
};
use crate::raft::Group;
use bytes::Bytes;
use sealane_mutants::{Mutant::M20, mutant};
use sealane_scheduler::WorkItem;
use sealane_state::queries::{self, StoredMessage};
use sealane_types::MessageId;
use sealane_wire::v1::{
    self, command::Op, command_reply::Result as Answer, recipient_record::State,
};

/// Pause after a proposal that was refused.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(50);

pub(super) struct Grant {
    pub(super) dispatch: Dispatch,
    pub(super) group: Group,
    pub(super) batch: Batch,
}

/// A message as it was read for its lease.
struct Offer {
    item: WorkItem,
    message: StoredMessage,
    recipients: Vec<u32>,
}

impl Grant {
    pub(super) async fn run(self) {
        let relay = self.batch.relay.clone();
        let offered = self.batch.items.len();
        let ids: Vec<MessageId> = self.batch.items.iter().map(|i| i.id).collect();
        let (dispatch, group) = (self.dispatch.clone(), self.group.id());
        let granted = self.propose().await;
        let left: Vec<MessageId> = ids.into_iter().filter(|id| !granted.contains(id)).collect();
        let unused = u32::try_from(offered.saturating_sub(granted.len())).unwrap_or(0);
        dispatch.settled(group, left, &relay, unused);
    }

    /// Due recipients of the items.
    fn offers(&self) -> Vec<Offer> {
        self.dispatch.at(|at| self.offers_at(at))
    }

    fn offers_at(&self, at: &Moment<'_>) -> Vec<Offer> {
        let reader = self.group.store().reader();
        let mut out = Vec::with_capacity(self.batch.items.len());
        for item in &self.batch.items {
            let message = match queries::message(&reader, item.id) {
                Ok(Some(m)) => m,
                Ok(None) => continue,
                Err(e) => {
                    tracing::error!(message = %item.id, error = %e, "message unreadable");
                    continue;
                }
            };
            let envelope = message.record.envelope.as_ref();
            let given = envelope.map_or(&[][..], |e| &e.recipients);
            let recipients: Vec<u32> = given
                .iter()
                .zip(&message.recipients)
                .zip(0u32..)
                .filter(|((g, r), _)| {
                    let domain = g.mailbox.rsplit_once('@').map_or("", |(_, d)| d);
                    (r.state() == State::Waiting || (r.state() == State::Leased && mutant(M20)))
                        && domain.eq_ignore_ascii_case(&item.destination)
                        && at.may_go(domain, r)
                })
                .map(|(_, n)| n)
                .collect();
            if !recipients.is_empty() {
                out.push(Offer {
                    item: item.clone(),
                    message,
                    recipients,
                });
            }
        }
        out
    }

    /// The messages whose leases reached the relay.
    async fn propose(self) -> Vec<MessageId> {
        let lease_ms = self.dispatch.lease_ms();
        let until_ms = self.dispatch.now().wall_ms.saturating_add(lease_ms);
        let offers = self.offers();
        if offers.is_empty() {
            return Vec::new();
        }
        let op = Op::Lease(v1::LeaseOp {
            holder: self.batch.relay.clone(),
            until_ms,
            items: offers
                .iter()
                .map(|o| v1::LeaseItem {
                    id: Bytes::copy_from_slice(o.item.id.as_bytes()),
                    recipients: o.recipients.clone(),
                })
                .collect(),
        });
        let started = self.dispatch.steady_ms();
        let leased = match self.group.propose(op, Bytes::new()).await {
            Ok(c) => match c.reply.result {
                Some(Answer::Leased(l)) => l,
                _ => return Vec::new(),
            },
            Err(e) => {
                tracing::debug!(shard = %self.group.id(), error = %e, "leases not granted");
                // A refusal comes at once, and what was not granted is assigned again at once: without a
                // pause this went round as fast as it could until the loss of leadership was noticed.
                tokio::time::sleep(AGAIN).await;
                return Vec::new();
            }
        };
        let granted: Vec<(Offer, Vec<u32>)> = offers
            .into_iter()
            .filter_map(|o| {
                let raw = o.item.id.as_bytes();
                let g = leased.granted.iter().find(|g| g.id.as_ref() == raw)?;
                let recipients = g.recipients.clone();
                Some((o, recipients))
            })
            .collect();
        let items: Vec<WorkItem> = granted.iter().map(|(o, _)| o.item.clone()).collect();
        // Only what was offered whole is known whole; the rest is read again.
        self.dispatch.index().granted(
            self.group.id(),
            &items,
            (leased.epoch, until_ms),
            started.saturating_add(lease_ms),
        );
        self.dispatch.0.metrics.leased(granted.len() as u64);
        // The relay counts from when the lease was proposed, or before, by its own clock. One that does not
        // say what its clock shows counts from receipt, as if the way had taken no time.
        let (since_ms, length) = match self.batch.shows {
            Some((sent, received)) => {
                let since = sent.saturating_add(started.saturating_sub(received));
                (since, lease_ms)
            }
            None => {
                let spent = self.dispatch.steady_ms().saturating_sub(started);
                (0, lease_ms.saturating_sub(spent))
            }
        };
        let mut reached = Vec::with_capacity(granted.len());
        let mut unsent = Vec::new();
        for (offer, recipients) in granted {
            let id = offer.item.id;
            let event = v1::DeliverEvent {
                frame: Some(v1::deliver_event::Frame::Lease(event(
                    offer,
                    recipients,
                    leased.epoch,
                    (since_ms, length),
                ))),
            };
            match self.batch.events.send(Ok(event)).await {
                Ok(()) => reached.push(id),
                Err(_) => unsent.push(v1::LeaseRef {
                    id: Bytes::copy_from_slice(id.as_bytes()),
                    epoch: leased.epoch,
                    until_ms: 0,
                }),
            }
        }
        if !unsent.is_empty() {
            // The stream closed before the relay was told: nobody holds these.
            let op = Op::Release(v1::ReleaseOp {
                leases: unsent,
                expired: false,
            });
            let _ = self.group.propose(op, Bytes::new()).await;
        }
        reached
    }
}

fn event(
    offer: Offer,
    recipients: Vec<u32>,
    epoch: u64,
    (since_ms, lease_ms): (u64, u64),
) -> v1::Lease {
    let m = offer.message;
    let envelope = m.record.envelope.unwrap_or_default();
    let recipients = recipients
        .into_iter()
        .filter_map(|n| {
            let i = usize::try_from(n).ok()?;
            let (e, r) = (envelope.recipients.get(i)?, m.recipients.get(i)?);
            Some(v1::LeasedRecipient {
                recipient: n,
                mailbox: e.mailbox.clone(),
                attempts: r.attempts,
                orcpt: e.orcpt.clone(),
            })
        })
        .collect();
    v1::Lease {
        id: Bytes::copy_from_slice(m.id.as_bytes()),
        epoch,
        lease_ms,
        destination: offer.item.destination,
        reverse_path: envelope.reverse_path,
        body_type: envelope.body_type,
        envid: envelope.envid,
        recipients,
        size: m.record.size,
        trace: m.record.trace,
        accepted_at_ms: m.record.enqueued_at_ms,
        since_ms,
    }
}
