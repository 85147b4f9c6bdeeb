//! One destination: who waits for it, and whether it may go on.
use crate::{backoff::Backoff, names::Name};
use sealane_shares::Tokens;
use std::collections::{HashMap, VecDeque};

/// What this node may do at a destination at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Leases under way.
    pub leases: u32,
    /// The same until it has answered: a destination that never does holds no more of the relays.
    pub first: u32,
    /// Every message that begins spends a token.
    pub rated: bool,
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
    pub(crate) tokens: Tokens,
    pub(crate) last_worker: Option<Name>,
    /// It spoke to us, and has not sent us away since.
    pub(crate) answers: bool,
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
    /// Until there are tokens.
    Tokens,
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

    fn places(&self, limit: Limit, now_ms: u64) -> u32 {
        let most = if self.answers {
            limit.leases
        } else {
            limit.leases.min(limit.first)
        };
        self.backoff.allows(most, now_ms)
    }

    /// Whether one more may begin now.
    pub(crate) fn may_begin(&mut self, limit: Limit, now_ms: u64) -> Result<(), Blocked> {
        if self.in_flight >= self.places(limit, now_ms) {
            return Err(match self.backoff.held_until() {
                Some(until) if until > now_ms => Blocked::Until(until),
                _ => Blocked::Full,
            });
        }
        if limit.rated && self.tokens.left(now_ms) == 0 {
            return Err(Blocked::Tokens);
        }
        Ok(())
    }

    /// How many tokens could be spent now, beyond those that are there.
    pub(crate) fn lacks(&mut self, limit: Limit, now_ms: u64) -> u32 {
        let places = self.places(limit, now_ms);
        let ready = u32::try_from(self.ready).unwrap_or(u32::MAX);
        let could = places.saturating_sub(self.in_flight).min(ready);
        could.saturating_sub(self.tokens.left(now_ms))
    }

    /// One begins; [`Self::may_begin`] said that it may.
    pub(crate) fn begin(&mut self, limit: Limit, now_ms: u64) {
        if limit.rated {
            self.tokens.take(now_ms);
        }
    }

    /// Nobody waits and nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ready == 0 && self.in_flight == 0
    }

    /// When its past will not matter any more, if nothing happens; `None`: it does not matter now.
    pub(crate) fn remembered_until(&self) -> Option<u64> {
        self.backoff.remembered_until()
    }
}
