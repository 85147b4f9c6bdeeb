//! Looks after what the index should have done long ago.
//!
//! It walks the stored messages of the shards that this node leads, slowly and for ever, and believes
//! nothing but what is stored. What it finds is a fault of ours or a clock that jumped; it is counted,
//! logged and mended, so that no message outlives its time and none stands still unnoticed.
use super::{Dispatch, Expire};
use bytes::Bytes;
use sealane_runtime::clock::Now;
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
    LeaseOver(Seen),
    /// Somebody waits, and the index does not know.
    Unindexed,
}

impl Finding {
    fn kind(&self) -> &'static str {
        match self {
            Finding::Expired => "expired",
            Finding::LeaseOver(_) => "lease_over",
            Finding::Unindexed => "unindexed",
        }
    }
}

/// A lease as it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    epoch: u64,
    until_ms: u64,
}

/// What leases there were, and since when each is as it is, by the steady clock: it says how long a lease is
/// held, and a wall clock may not. Who is not seen for a whole round is forgotten.
#[derive(Debug, Default)]
struct Leases {
    this_round: BTreeMap<MessageId, Vec<(Seen, u64)>>,
    last_round: BTreeMap<MessageId, Vec<(Seen, u64)>>,
}

impl Leases {
    fn round_is_over(&mut self) {
        self.last_round = std::mem::take(&mut self.this_round);
    }

    /// One that is as it was for longer than a lease lasts.
    fn over(&mut self, m: &StoredMessage, steady_ms: u64, lease_ms: u64) -> Option<Seen> {
        let mut now: Vec<(Seen, u64)> = Vec::new();
        for r in m.recipients.iter().filter(|r| r.state() == State::Leased) {
            let seen = Seen {
                epoch: r.epoch,
                until_ms: r.lease_until_ms,
            };
            if now.iter().any(|(s, _)| *s == seen) {
                continue;
            }
            let rounds = [&self.this_round, &self.last_round];
            let before = rounds.into_iter().filter_map(|round| round.get(&m.id));
            let since = before
                .flatten()
                .filter(|(s, _)| *s == seen)
                .map(|(_, since)| *since)
                .min();
            now.push((seen, since.unwrap_or(steady_ms)));
        }
        let longest = lease_ms.saturating_add(LATE_MS);
        let over = now
            .iter()
            .find(|(_, since)| since.saturating_add(longest) < steady_ms)
            .map(|(seen, _)| *seen);
        if now.is_empty() {
            self.this_round.remove(&m.id);
        } else {
            self.this_round.insert(m.id, now);
        }
        over
    }
}

fn examine(m: &StoredMessage, indexed: bool, now_ms: u64) -> Option<Finding> {
    let late = |at: u64| at.saturating_add(LATE_MS) < now_ms;
    let waits = |r: &v1::RecipientRecord| matches!(r.state(), State::Waiting | State::Held);
    let leased = m.recipients.iter().any(|r| r.state() == State::Leased);
    let waiting = m.recipients.iter().any(waits);
    if waiting && late(m.record.expires_at_ms) {
        return Some(Finding::Expired);
    }
    ((waiting || leased) && !indexed).then_some(Finding::Unindexed)
}

#[derive(Debug, Default)]
struct Walk {
    after: Option<MessageId>,
    /// Not in the index at the last look: it may just have been on its way.
    suspects: BTreeSet<MessageId>,
    leases: Leases,
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
        let Now { wall_ms, steady_ms } = self.now();
        let lease_ms = self.lease_ms();
        let mut found = Vec::new();
        for m in page.iter().chain(&again) {
            let indexed = self.index().knows(m.id);
            let over = walk.leases.over(m, steady_ms, lease_ms);
            let over = over.map(Finding::LeaseOver);
            match over.or_else(|| examine(m, indexed, wall_ms)) {
                Some(Finding::Unindexed) if !suspects.contains(&m.id) => {
                    walk.suspects.insert(m.id);
                }
                Some(finding) => found.push((m.id, finding)),
                None => {}
            }
        }
        if walk.after.is_none() {
            walk.leases.round_is_over();
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
                Finding::LeaseOver(Seen { epoch, until_ms }) => {
                    let Some(g) = self.0.groups.group(group) else {
                        continue;
                    };
                    let lease = v1::LeaseRef {
                        id: Bytes::copy_from_slice(id.as_bytes()),
                        epoch,
                        until_ms,
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
            (State::Leased, 0, before + 1, None),
            (State::Delivered, 0, before + 1, None),
        ] {
            assert_eq!(examine(&message(state, until), true, now), expected);
        }
    }

    #[test]
    fn a_lease_is_over_when_it_was_the_same_for_longer_than_it_lasts_whatever_the_wall_clock_says()
    {
        let lease_ms = 5_000;
        let mut leases = Leases::default();
        let m = message(State::Leased, 1);
        assert_eq!(leases.over(&m, 100, lease_ms), None);
        leases.round_is_over();
        let last = 100 + lease_ms + LATE_MS;
        assert_eq!(leases.over(&m, last, lease_ms), None);
        leases.round_is_over();
        let seen = Seen {
            epoch: 7,
            until_ms: 1,
        };
        assert_eq!(leases.over(&m, last + 1, lease_ms), Some(seen));
        // Prolonged: another lease.
        let m = message(State::Leased, 2);
        assert_eq!(leases.over(&m, last + 2, lease_ms), None);
        // Forgotten, once it was not seen for a round.
        leases.round_is_over();
        leases.round_is_over();
        assert_eq!(leases.over(&m, 9 * last, lease_ms), None);
    }

    #[test]
    fn a_waiting_message_that_the_index_does_not_know_is_found() {
        let m = message(State::Waiting, 0);
        assert_eq!(examine(&m, false, 5), Some(Finding::Unindexed));
        let leased = message(State::Leased, 10);
        assert_eq!(examine(&leased, false, 5), Some(Finding::Unindexed));
        assert_eq!(examine(&leased, true, 5), None);
        assert_eq!(examine(&message(State::Delivered, 0), false, 5), None);
    }
}
