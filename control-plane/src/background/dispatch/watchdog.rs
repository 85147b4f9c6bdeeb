//! Looks after what the index should have done long ago.
//!
//! It walks the stored messages of the shards that this node leads, slowly and for ever, and believes
//! nothing but what is stored. What it finds is a fault of ours or a clock that jumped; it is counted,
//! logged and mended, so that no message outlives its time and none stands still unnoticed.
use super::{Dispatch, Expire};
use crate::raft::now_ms;
use bytes::Bytes;
use sealane_state::queries::{self, StoredMessage};
use sealane_types::{GroupId, MessageId};
use sealane_wire::v1::{self, command::Op, recipient_record::State};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Between two pages of a shard.
const STEP: Duration = Duration::from_secs(1);
/// Messages looked at per step and shard: 100,000 waiting ones take a quarter of an hour.
const PAGE: usize = 100;
/// The index may be late by this much, milliseconds, before somebody looks for the reason.
const LATE_MS: u64 = 60_000;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// Its time is up, and somebody still waits.
    Expired,
    /// A lease ended and was not taken back.
    LeaseOver { epoch: u64 },
    /// Somebody waits, and the index does not know.
    Unindexed,
}

impl Finding {
    fn kind(&self) -> &'static str {
        match self {
            Finding::Expired => "expired",
            Finding::LeaseOver { .. } => "lease_over",
            Finding::Unindexed => "unindexed",
        }
    }
}

fn examine(m: &StoredMessage, indexed: bool, now_ms: u64) -> Option<Finding> {
    let late = |at: u64| at.saturating_add(LATE_MS) < now_ms;
    let waits = |r: &v1::RecipientRecord| matches!(r.state(), State::Waiting | State::Held);
    let over = m
        .recipients
        .iter()
        .find(|r| r.state() == State::Leased && late(r.lease_until_ms));
    if let Some(r) = over {
        return Some(Finding::LeaseOver { epoch: r.epoch });
    }
    let waiting = m.recipients.iter().any(waits);
    if waiting && late(m.record.expires_at_ms) {
        return Some(Finding::Expired);
    }
    (waiting && !indexed).then_some(Finding::Unindexed)
}

#[derive(Debug, Default)]
struct Walk {
    after: Option<MessageId>,
    /// Not in the index at the last look: it may just have been on its way.
    suspects: BTreeSet<MessageId>,
}

impl Dispatch {
    /// Runs until `stop`.
    pub(crate) async fn watch(self, expire: Arc<impl Expire>, stop: CancellationToken) {
        let mut walks: BTreeMap<GroupId, Walk> = BTreeMap::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(STEP) => {}
                () = stop.cancelled() => return,
            }
            let led = self.index().built_shards();
            walks.retain(|group, _| led.contains(group));
            for group in led {
                let walk = walks.entry(group).or_default();
                match sealane_runtime::blocking::in_place(|| self.look(group, walk)) {
                    Ok(found) => self.mend(group, found, &expire).await,
                    Err(e) => {
                        tracing::error!(shard = %group, error = %e, "watchdog cannot read the queue");
                    }
                }
            }
        }
    }

    /// The next page.
    fn look(
        &self,
        group: GroupId,
        walk: &mut Walk,
    ) -> Result<Vec<(MessageId, Finding)>, sealane_state::TableError> {
        let Some(g) = self.0.groups.group(group) else {
            return Ok(Vec::new());
        };
        let reader = g.store().reader();
        // Where nothing is there is nothing to pass over either.
        let from = walk.after.or(self.index().floor(group));
        let page = queries::list(&reader, from, PAGE, None)?;
        walk.after = page.last().filter(|_| page.len() == PAGE).map(|m| m.id);
        let suspects = std::mem::take(&mut walk.suspects);
        let mut again = Vec::new();
        for id in &suspects {
            again.extend(queries::message(&reader, *id)?);
        }
        let now = now_ms();
        let mut found = Vec::new();
        for m in page.iter().chain(&again) {
            let indexed = self.index().knows(m.id);
            match examine(m, indexed, now) {
                Some(Finding::Unindexed) if !suspects.contains(&m.id) => {
                    walk.suspects.insert(m.id);
                }
                Some(finding) => found.push((m.id, finding)),
                None => {}
            }
        }
        Ok(found)
    }

    async fn mend(
        &self,
        group: GroupId,
        found: Vec<(MessageId, Finding)>,
        expire: &Arc<impl Expire>,
    ) {
        for (id, finding) in found {
            let kind = finding.kind();
            tracing::warn!(message = %id, kind, "the watchdog found a message that nobody looked after");
            self.0.metrics.watchdog(kind);
            match finding {
                Finding::Unindexed => {}
                Finding::Expired => drop(expire.expire(id).await),
                Finding::LeaseOver { epoch } => {
                    let Some(g) = self.0.groups.group(group) else {
                        continue;
                    };
                    let lease = v1::LeaseRef {
                        id: Bytes::copy_from_slice(id.as_bytes()),
                        epoch,
                    };
                    let op = Op::Release(v1::ReleaseOp {
                        leases: vec![lease],
                        expired: true,
                    });
                    if let Err(e) = g.propose(op, Bytes::new()).await {
                        tracing::debug!(error = %e, "lease not taken back, will retry");
                    }
                }
            }
            self.settled(group, vec![id], "", 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MessageId {
        MessageId::from_slice(&[1; 16]).expect("16 octets of shard 1")
    }

    fn message(state: State, lease_until_ms: u64) -> StoredMessage {
        let mut r = v1::RecipientRecord {
            epoch: 7,
            lease_until_ms,
            ..Default::default()
        };
        r.set_state(state);
        StoredMessage {
            id: id(),
            record: v1::MessageRecord {
                expires_at_ms: 1_000_000,
                ..Default::default()
            },
            recipients: vec![r],
        }
    }

    #[test]
    fn what_is_late_is_found_in_every_state() {
        let before = 1_000_000 + LATE_MS;
        for (state, until, now, expected) in [
            (State::Waiting, 0, before, None),
            (State::Waiting, 0, before + 1, Some(Finding::Expired)),
            (State::Held, 0, before + 1, Some(Finding::Expired)),
            (State::Leased, 2_000_000, before + 1, None),
            (
                State::Leased,
                2_000_000,
                2_000_001 + LATE_MS,
                Some(Finding::LeaseOver { epoch: 7 }),
            ),
            (State::Delivered, 0, before + 1, None),
        ] {
            assert_eq!(examine(&message(state, until), true, now), expected);
        }
    }

    #[test]
    fn a_waiting_message_that_the_index_does_not_know_is_found() {
        let m = message(State::Waiting, 0);
        assert_eq!(examine(&m, false, 5), Some(Finding::Unindexed));
        assert_eq!(examine(&message(State::Leased, 10), false, 5), None);
    }
}
