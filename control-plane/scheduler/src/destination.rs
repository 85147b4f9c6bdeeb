//! One destination: who waits for it, and whether it may go on.
use crate::{backoff::Backoff, names::Name, rate::Bucket};
use std::collections::{HashMap, VecDeque};

/// What this node may do at a destination at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Leases under way.
    pub leases: u32,
    /// Messages that may begin per minute.
    pub per_minute: Option<u32>,
}

/// Limits by destination (lower-case domain). They may change at any time.
pub trait Limits {
    /// Of this destination.
    fn of(&self, destination: &str) -> Limit;
}

impl<F: Fn(&str) -> Limit> Limits for F {
    fn of(&self, destination: &str) -> Limit {
        self(destination)
    }
}

/// An item in a queue: slot and generation, since slots are used again.
pub(crate) type Ticket = (u32, u32);

#[derive(Debug, Default)]
pub(crate) struct Destination {
    senders: HashMap<Name, VecDeque<Ticket>>,
    /// Senders with a queue, in turn.
    turn: VecDeque<Name>,
    /// Live items in the queues.
    pub(crate) ready: usize,
    pub(crate) in_flight: u32,
    pub(crate) backoff: Backoff,
    pub(crate) bucket: Option<Bucket>,
    pub(crate) last_worker: Option<Name>,
    /// It is in the turn of destinations.
    pub(crate) queued: bool,
}

/// Why a destination may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Until a place is freed or the limit grows.
    Full,
    /// Until then.
    Until(u64),
}

impl Destination {
    pub(crate) fn push(&mut self, sender: Name, ticket: Ticket) {
        let queue = self.senders.entry(sender).or_default();
        if queue.is_empty() {
            self.turn.push_back(sender);
        }
        queue.push_back(ticket);
        self.ready += 1;
    }

    /// The next item of the sender whose turn it is; `live` tells whether a ticket still stands.
    pub(crate) fn pop(&mut self, live: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        while let Some(sender) = self.turn.pop_front() {
            let Some(queue) = self.senders.get_mut(&sender) else {
                continue;
            };
            let mut found = None;
            while let Some(ticket) = queue.pop_front() {
                if live(ticket) {
                    found = Some(ticket);
                    break;
                }
            }
            if queue.is_empty() {
                self.senders.remove(&sender);
            } else {
                self.turn.push_back(sender);
            }
            if found.is_some() {
                self.ready -= 1;
                return found;
            }
        }
        None
    }

    /// Whether one more may begin now.
    pub(crate) fn may_begin(&mut self, limit: Limit, now_ms: u64) -> Result<(), Blocked> {
        if self.in_flight >= self.backoff.allows(limit.leases, now_ms) {
            return Err(match self.backoff.held_until() {
                Some(until) if until > now_ms => Blocked::Until(until),
                _ => Blocked::Full,
            });
        }
        if let Some(rate) = limit.per_minute {
            let bucket = self.bucket.get_or_insert_with(Bucket::new);
            if let Some(at) = bucket.wait(rate, now_ms) {
                return Err(Blocked::Until(at));
            }
        }
        Ok(())
    }

    /// One begins.
    pub(crate) fn begin(&mut self, limit: Limit) {
        if limit.per_minute.is_some()
            && let Some(bucket) = &mut self.bucket
        {
            bucket.take();
        }
    }

    /// Nobody waits and nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ready == 0 && self.in_flight == 0
    }

    /// When its past will not matter any more, if nothing happens; `None`: it does not matter now.
    pub(crate) fn remembered_until(&self) -> Option<u64> {
        let bucket = self.bucket.map(|b| b.full_at());
        bucket.max(self.backoff.remembered_until())
    }
}
