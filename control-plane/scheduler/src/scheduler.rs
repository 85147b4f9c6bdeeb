//! The index.
use crate::{
    backoff::Outcome,
    destination::{Blocked, Destination, Limits, Ticket},
    names::{Name, Names},
};
use sealane_types::{MessageId, ShardId};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The waiting recipients of one message that share a destination, as the index is told of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewItem<'a> {
    /// The message.
    pub id: MessageId,
    /// Lower-case domain.
    pub destination: &'a str,
    /// Who is to be treated fairly: the submitter, or the domain of the reverse-path.
    pub sender: &'a str,
    /// The relay that accepted the message and may still have its body; "" if none is preferred.
    pub prefer: &'a str,
    /// Not attempted before, milliseconds.
    pub due_ms: u64,
    /// The message's time is up then, milliseconds.
    pub expires_ms: u64,
    /// Held: never due, but it does expire.
    pub held: bool,
}

/// Something to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkItem {
    /// The message.
    pub id: MessageId,
    /// Lower-case domain.
    pub destination: String,
}

/// Work for one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The relay.
    pub worker: String,
    /// What it shall deliver.
    pub items: Vec<WorkItem>,
}

/// A lease whose holder went silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredLease {
    /// The message.
    pub id: MessageId,
    /// The epoch to fence.
    pub epoch: u64,
}

/// A destination with much to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Its name.
    pub destination: String,
    /// Items that are due.
    pub ready: usize,
    /// Leases under way.
    pub in_flight: u32,
    /// Left alone until then, milliseconds.
    pub held_until_ms: Option<u64>,
}

/// A destination that only waits for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    /// Its name.
    pub destination: String,
    /// Tokens that would be spent at once.
    pub tokens: u32,
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Item {
    id: MessageId,
    due_ms: u64,
    expires_ms: u64,
    destination: Name,
    sender: Name,
    prefer: Name,
    /// Changes whenever the slot is used again.
    generation: u32,
    /// Slot of the message's next item.
    next: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// Its timer is its due time, or its expiry if that is earlier.
    Waiting,
    /// In its destination's queue; its timer is its expiry.
    Ready,
    /// Its timer is its expiry.
    Held,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    epoch: u64,
    until_ms: u64,
}

/// What belongs to one shard.
#[derive(Debug, Default)]
struct ShardItems {
    /// First slot of a message.
    items: HashMap<MessageId, u32>,
    leases: HashMap<MessageId, Vec<(Name, Lease)>>,
}

/// See the crate's documentation.
#[derive(Debug, Default)]
pub struct Scheduler {
    slots: Vec<Item>,
    free: Vec<u32>,
    shards: BTreeMap<ShardId, ShardItems>,
    /// One per item: (when, slot).
    timers: BTreeSet<(u64, u32)>,
    lease_ends: BTreeSet<(u64, MessageId, Name)>,
    destinations: HashMap<Name, Destination>,
    /// Destinations that may go on, in turn.
    turn: VecDeque<Name>,
    /// Destinations that may go on later: (when, which).
    wake: BTreeSet<(u64, Name)>,
    /// Destinations at their limit: looked at again when limits may have changed.
    full: BTreeSet<Name>,
    /// Destinations that only wait for tokens.
    short: BTreeSet<Name>,
    expired: VecDeque<MessageId>,
    names: Names,
    senders: Names,
    relays: Names,
    credits: BTreeMap<Name, u32>,
    waiting: usize,
    /// Timers, turns and queue entries touched: what the work costs.
    #[cfg(test)]
    pub(crate) steps: u64,
}

impl Scheduler {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    // ---- items

    /// Adds or replaces the waiting part of a message at a destination.
    pub fn upsert(&mut self, new: NewItem<'_>) {
        let destination = self.names.take(new.destination);
        self.remove_item(new.id, destination);
        let sender = self.senders.take(new.sender);
        let prefer = match new.prefer {
            "" => NONE,
            relay => self.relays.take(relay),
        };
        let shard = self.shards.entry(new.id.shard()).or_default();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Item {
                id: new.id,
                due_ms: 0,
                expires_ms: 0,
                destination,
                sender,
                prefer,
                generation: 0,
                next: NONE,
                place: Place::Free,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(NONE)
        });
        let next = shard.items.insert(new.id, slot).unwrap_or(NONE);
        let item = &mut self.slots[slot as usize];
        *item = Item {
            id: new.id,
            due_ms: new.due_ms,
            expires_ms: new.expires_ms,
            destination,
            sender,
            prefer,
            generation: item.generation.wrapping_add(1),
            next,
            place: if new.held {
                Place::Held
            } else {
                Place::Waiting
            },
        };
        let timer = timer(item);
        self.timers.insert((timer, slot));
        self.waiting += 1;
    }

    /// Forgets everything about a message; its places are free.
    pub fn remove(&mut self, id: MessageId) {
        let Some(shard) = self.shards.get_mut(&id.shard()) else {
            return;
        };
        let mut slot = shard.items.remove(&id).unwrap_or(NONE);
        let leases = shard.leases.remove(&id).unwrap_or_default();
        while slot != NONE {
            let next = self.slots[slot as usize].next;
            self.release_slot(slot);
            slot = next;
        }
        for (destination, lease) in leases {
            self.lease_ends.remove(&(lease.until_ms, id, destination));
            self.free_place(destination);
        }
    }

    /// Whether a message has an item or a lease here.
    pub fn knows(&self, id: MessageId) -> bool {
        let shard = self.shards.get(&id.shard());
        shard.is_some_and(|s| s.items.contains_key(&id) || s.leases.contains_key(&id))
    }

    /// Takes one item of a message out of its list and away.
    fn remove_item(&mut self, id: MessageId, destination: Name) {
        let Some(shard) = self.shards.get_mut(&id.shard()) else {
            return;
        };
        let Some(first) = shard.items.get(&id).copied() else {
            return;
        };
        let (mut before, mut slot) = (NONE, first);
        while slot != NONE && self.slots[slot as usize].destination != destination {
            (before, slot) = (slot, self.slots[slot as usize].next);
        }
        if slot == NONE {
            return;
        }
        let next = self.slots[slot as usize].next;
        if before != NONE {
            self.slots[before as usize].next = next;
        } else if next != NONE {
            shard.items.insert(id, next);
        } else {
            shard.items.remove(&id);
        }
        self.release_slot(slot);
    }

    /// The slot is in no list any more.
    fn release_slot(&mut self, slot: u32) {
        let item = self.slots[slot as usize];
        self.timers.remove(&(timer(&item), slot));
        if item.place == Place::Ready
            && let Some(d) = self.destinations.get_mut(&item.destination)
        {
            // Its ticket stays behind in the queue and is passed over.
            d.ready = d.ready.saturating_sub(1);
        }
        let free = &mut self.slots[slot as usize];
        free.place = Place::Free;
        free.generation = free.generation.wrapping_add(1);
        self.free.push(slot);
        self.waiting -= 1;
        self.senders.drop_one(item.sender);
        if item.prefer != NONE {
            self.relays.drop_one(item.prefer);
        }
        self.drop_name(item.destination);
    }

    fn drop_name(&mut self, destination: Name) {
        if let Some(d) = self.destinations.get(&destination)
            && d.is_quiet()
        {
            match d.remembered_until() {
                Some(at) => drop(self.wake.insert((at, destination))),
                None => self.forget(destination),
            }
        }
        self.names.drop_one(destination);
    }

    fn forget(&mut self, destination: Name) {
        let Some(d) = self.destinations.remove(&destination) else {
            return;
        };
        if let Some(worker) = d.last_worker {
            self.relays.drop_one(worker);
        }
        self.full.remove(&destination);
        self.short.remove(&destination);
        // The use that the entry itself had.
        self.names.drop_one(destination);
    }

    fn destination(&mut self, name: Name) -> &mut Destination {
        if !self.destinations.contains_key(&name) {
            self.names.again(name);
        }
        self.destinations.entry(name).or_default()
    }

    // ---- leases

    /// Notes a lease: it holds one place of its destination until the message is removed.
    pub fn leased(&mut self, id: MessageId, destination: &str, epoch: u64, until_ms: u64) {
        let name = self.names.take(destination);
        self.place(id, name, Lease { epoch, until_ms });
        self.names.drop_one(name);
    }

    /// A message holds one place at a destination, however often it is leased there.
    fn place(&mut self, id: MessageId, name: Name, lease: Lease) {
        let shard = self.shards.entry(id.shard()).or_default();
        let leases = shard.leases.entry(id).or_default();
        match leases.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => {
                self.lease_ends.remove(&(old.until_ms, id, name));
                *old = lease;
            }
            None => {
                leases.push((name, lease));
                self.names.again(name);
                self.destination(name).in_flight += 1;
            }
        }
        self.lease_ends.insert((lease.until_ms, id, name));
    }

    fn free_place(&mut self, name: Name) {
        if let Some(d) = self.destinations.get_mut(&name) {
            d.in_flight = d.in_flight.saturating_sub(1);
        }
        self.full.remove(&name);
        self.enter_turn(name);
        self.drop_name(name);
    }

    /// Leases that ended before `now_ms`, at most `max`. Named again ten seconds later if nothing changed.
    pub fn expired_leases(&mut self, now_ms: u64, max: usize) -> Vec<ExpiredLease> {
        let mut out = Vec::new();
        while out.len() < max {
            match self.lease_ends.first() {
                Some((end, _, _)) if *end < now_ms => {}
                _ => break,
            }
            let Some((_, id, name)) = self.lease_ends.pop_first() else {
                break;
            };
            let lease = self
                .shards
                .get_mut(&id.shard())
                .and_then(|s| s.leases.get_mut(&id))
                .and_then(|l| l.iter_mut().find(|(n, _)| *n == name));
            if let Some((_, lease)) = lease {
                let epoch = lease.epoch;
                lease.until_ms = now_ms.saturating_add(10_000);
                self.lease_ends.insert((lease.until_ms, id, name));
                out.push(ExpiredLease { id, epoch });
            }
        }
        out
    }

    /// A place for a message that is just being enqueued by `worker`, who would deliver it at once: if
    /// nobody waits for its destination, and place, rate and credit allow it. Until the message is
    /// noted as leased or removed, it counts.
    pub fn reserve(
        &mut self,
        id: MessageId,
        destination: &str,
        worker: &str,
        now_ms: u64,
        limits: &impl Limits,
    ) -> bool {
        self.look_at_timers(now_ms);
        let Some(relay) = self
            .relays
            .find(worker)
            .filter(|w| self.credits.get(w).is_some_and(|c| *c > 0))
        else {
            return false;
        };
        let limit = limits.of(destination);
        let name = self.names.take(destination);
        let d = self.destination(name);
        let free = d.ready == 0 && d.may_begin(limit, now_ms).is_ok();
        if free {
            d.begin(limit, now_ms);
            self.served_by(name, relay);
            self.place(id, name, UNSETTLED);
            self.spend(relay);
        }
        self.drop_name(name);
        free
    }

    // ---- relays

    /// A relay can take `credits` leases more.
    pub fn worker(&mut self, name: &str, credits: u32) {
        let known = self
            .relays
            .find(name)
            .filter(|n| self.credits.contains_key(n));
        let n = known.unwrap_or_else(|| self.relays.take(name));
        self.credits.insert(n, credits);
    }

    /// A relay is gone; its leases run out by themselves.
    pub fn worker_gone(&mut self, name: &str) {
        if let Some(n) = self.relays.find(name)
            && self.credits.remove(&n).is_some()
        {
            self.relays.drop_one(n);
        }
    }

    /// Leases that a relay can take.
    pub fn credits(&self, name: &str) -> u32 {
        let n = self.relays.find(name);
        n.and_then(|n| self.credits.get(&n).copied()).unwrap_or(0)
    }

    fn spend(&mut self, relay: Name) {
        if let Some(c) = self.credits.get_mut(&relay) {
            *c = c.saturating_sub(1);
        }
    }

    fn served_by(&mut self, destination: Name, relay: Name) {
        self.relays.again(relay);
        let old = self.destination(destination).last_worker.replace(relay);
        if let Some(old) = old {
            self.relays.drop_one(old);
        }
    }

    /// Who holds the body, else who served the destination last, else who has most credits.
    fn choose(&self, item: &Item) -> Option<Name> {
        let able = |w: &Name| self.credits.get(w).is_some_and(|c| *c > 0);
        let last = self.destinations.get(&item.destination);
        let last = last.and_then(|d| d.last_worker);
        let richest = || {
            let most = self.credits.iter().max_by_key(|(_, c)| **c);
            most.filter(|(_, c)| **c > 0).map(|(w, _)| *w)
        };
        Some(item.prefer)
            .filter(able)
            .or(last.filter(able))
            .or_else(richest)
    }

    // ---- work

    /// Assigns up to `max` due items. They leave the index, but hold their places: the caller notes
    /// them as leased, or adds them again, when it knows.
    pub fn next(&mut self, now_ms: u64, max: usize, limits: &impl Limits) -> Vec<Assignment> {
        self.look_at_timers(now_ms);
        let mut out: BTreeMap<Name, Vec<WorkItem>> = BTreeMap::new();
        let mut assigned = 0;
        while assigned < max && self.credits.values().any(|c| *c > 0) {
            let Some(name) = self.turn.pop_front() else {
                break;
            };
            self.count_step();
            if let Some((relay, item)) = self.take_one(name, now_ms, limits) {
                out.entry(relay).or_default().push(item);
                assigned += 1;
            }
        }
        out.into_iter()
            .map(|(relay, items)| Assignment {
                worker: self.relays.text(relay).to_owned(),
                items,
            })
            .collect()
    }

    fn take_one(
        &mut self,
        name: Name,
        now_ms: u64,
        limits: &impl Limits,
    ) -> Option<(Name, WorkItem)> {
        let d = self.destinations.get_mut(&name)?;
        d.queued = false;
        let limit = limits.of(self.names.text(name));
        if d.ready == 0 {
            return None;
        }
        match d.may_begin(limit, now_ms) {
            Ok(()) => {}
            Err(Blocked::Full) => {
                self.full.insert(name);
                return None;
            }
            Err(Blocked::Until(at)) => {
                self.wake.insert((at, name));
                return None;
            }
            Err(Blocked::Tokens) => {
                self.short.insert(name);
                return None;
            }
        }
        let slots = &self.slots;
        let live = |(slot, generation): Ticket| slots[slot as usize].generation == generation;
        let (slot, _) = d.pop(live)?;
        d.begin(limit, now_ms);
        let item = self.slots[slot as usize];
        let Some(relay) = self.choose(&item) else {
            // `next` asked before: somebody has credit.
            return None;
        };
        self.served_by(name, relay);
        self.spend(relay);
        let work = WorkItem {
            id: item.id,
            destination: self.names.text(name).to_owned(),
        };
        // `pop` counted it out already.
        self.slots[slot as usize].place = Place::Held;
        self.rearm(slot, timer(&item));
        self.place(item.id, name, UNSETTLED);
        self.remove_item(item.id, name);
        self.enter_turn(name);
        Some((relay, work))
    }

    /// The timer of a slot stands elsewhere now.
    fn rearm(&mut self, slot: u32, was: u64) {
        let now = timer(&self.slots[slot as usize]);
        if was != now {
            self.timers.remove(&(was, slot));
            self.timers.insert((now, slot));
        }
    }

    fn enter_turn(&mut self, name: Name) {
        if let Some(d) = self.destinations.get_mut(&name)
            && d.ready > 0
            && !d.queued
        {
            d.queued = true;
            self.turn.push_back(name);
        }
    }

    /// What became due is ready, what expired is named, who was held back may go on.
    fn look_at_timers(&mut self, now_ms: u64) {
        while let Some((at, slot)) = self.timers.first().copied() {
            if at > now_ms {
                break;
            }
            self.count_step();
            let item = self.slots[slot as usize];
            if item.expires_ms <= now_ms {
                self.expired.push_back(item.id);
                // Its other items too: the message is read again when it was dealt with.
                self.remove_items(item.id);
                continue;
            }
            self.slots[slot as usize].place = Place::Ready;
            self.rearm(slot, at);
            let d = self.destination(item.destination);
            d.push(item.sender, (slot, item.generation));
            self.enter_turn(item.destination);
        }
        while let Some((at, name)) = self.wake.first().copied() {
            if at > now_ms {
                break;
            }
            self.count_step();
            self.wake.pop_first();
            self.enter_turn(name);
            if let Some(d) = self.destinations.get(&name)
                && d.is_quiet()
            {
                match d.remembered_until() {
                    Some(at) if at > now_ms => drop(self.wake.insert((at, name))),
                    _ => self.forget(name),
                }
            }
        }
    }

    fn remove_items(&mut self, id: MessageId) {
        let Some(shard) = self.shards.get_mut(&id.shard()) else {
            return;
        };
        let mut slot = shard.items.remove(&id).unwrap_or(NONE);
        while slot != NONE {
            let next = self.slots[slot as usize].next;
            self.release_slot(slot);
            slot = next;
        }
    }

    /// Messages with waiting recipients whose time is up, at most `max`; they left the index. Leased
    /// recipients are not named: a lease is not renewed beyond the message's time.
    pub fn expired_messages(&mut self, now_ms: u64, max: usize) -> Vec<MessageId> {
        self.look_at_timers(now_ms);
        let n = self.expired.len().min(max);
        self.expired.drain(..n).collect()
    }

    /// Limits may have grown: destinations at their limit are looked at again.
    pub fn limits_changed(&mut self) {
        for name in std::mem::take(&mut self.full) {
            self.enter_turn(name);
        }
    }

    /// What a destination did, as far as it concerns all mail for it. `jitter` in 0..1000.
    pub fn outcome(
        &mut self,
        destination: &str,
        outcome: Outcome,
        now_ms: u64,
        jitter: u32,
        limits: &impl Limits,
    ) {
        let Some(name) = self.names.find(destination) else {
            return;
        };
        let limit = limits.of(destination).leases;
        let Some(d) = self.destinations.get_mut(&name) else {
            return;
        };
        d.answers = outcome != Outcome::Refused;
        if let Some(until) = d.backoff.note(outcome, limit, now_ms, jitter) {
            self.wake.insert((until, name));
        } else if outcome != Outcome::Refused {
            self.full.remove(&name);
            self.enter_turn(name);
        }
    }

    // ---- rates

    /// Destinations that wait for nothing but tokens, at most `max`; none while no relay has credit, since
    /// tokens do not keep.
    pub fn short(&mut self, now_ms: u64, max: usize, limits: &impl Limits) -> Vec<Short> {
        if !self.credits.values().any(|c| *c > 0) {
            return Vec::new();
        }
        let mut out = Vec::new();
        let mut over = Vec::new();
        for name in self.short.iter().take(max) {
            let text = self.names.text(*name);
            let limit = limits.of(text);
            match self.destinations.get_mut(name) {
                Some(d) if limit.rated && d.ready > 0 => {
                    let tokens = d.lacks(limit, now_ms);
                    if tokens > 0 {
                        out.push(Short {
                            destination: text.to_owned(),
                            tokens,
                        });
                    }
                }
                _ => over.push(*name),
            }
        }
        for name in over {
            self.short.remove(&name);
            self.enter_turn(name);
        }
        out
    }

    /// Whether some destination waits for tokens.
    pub fn is_short(&self) -> bool {
        !self.short.is_empty()
    }

    /// `n` messages more may begin there until then.
    pub fn tokens(&mut self, destination: &str, n: u32, until_ms: u64) {
        if n > 0
            && let Some(name) = self.names.find(destination)
            && let Some(d) = self.destinations.get_mut(&name)
        {
            d.tokens.add(n, until_ms);
            self.short.remove(&name);
            self.enter_turn(name);
        }
    }

    /// Its lease came back because it found no place at its destination: fewer are to be under way there.
    pub fn crowded(&mut self, id: MessageId, epoch: u64, now_ms: u64, limits: &impl Limits) {
        let leases = self.shards.get(&id.shard()).and_then(|s| s.leases.get(&id));
        let found = leases.and_then(|l| l.iter().find(|(_, lease)| lease.epoch == epoch));
        if let Some((name, _)) = found
            && let Some(d) = self.destinations.get_mut(name)
        {
            let limit = limits.of(self.names.text(*name)).leases;
            d.backoff.crowded(limit, now_ms);
        }
    }

    // ---- shards, numbers

    /// Forgets everything of a shard.
    pub fn drop_shard(&mut self, shard: ShardId) {
        let Some(items) = self.shards.get(&shard) else {
            return;
        };
        let ids: BTreeSet<MessageId> = items
            .items
            .keys()
            .chain(items.leases.keys())
            .copied()
            .collect();
        for id in ids {
            self.remove(id);
        }
        self.shards.remove(&shard);
        self.expired.retain(|id| id.shard() != shard);
    }

    /// Items that wait or are ready.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The `max` destinations with most due items.
    pub fn busiest(&self, max: usize) -> Vec<Busy> {
        let mut all: Vec<(&Name, &Destination)> = self.destinations.iter().collect();
        all.sort_unstable_by_key(|(n, d)| (std::cmp::Reverse(d.ready), **n));
        all.truncate(max);
        all.into_iter()
            .map(|(n, d)| Busy {
                destination: self.names.text(*n).to_owned(),
                ready: d.ready,
                in_flight: d.in_flight,
                held_until_ms: d.backoff.held_until(),
            })
            .collect()
    }

    /// Octets that the items take, about: what a waiting message costs.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        use std::mem::size_of;
        let items: usize = self
            .shards
            .values()
            // One octet of control per place, load at most 7/8.
            .map(|s| s.items.capacity() * (size_of::<(MessageId, u32)>() + 1) * 8 / 7)
            .sum();
        // Nodes of a B-tree are at least half full.
        let timers = self.timers.len() * size_of::<(u64, u32)>() * 3 / 2;
        self.slots.capacity() * size_of::<Item>() + self.free.capacity() * 4 + items + timers
    }

    /// Names that are remembered: destinations, senders, relays.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> (usize, usize, usize) {
        (self.names.len(), self.senders.len(), self.relays.len())
    }

    #[cfg(test)]
    fn count_step(&mut self) {
        self.steps += 1;
    }
    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "counts in tests")]
    fn count_step(&self) {}
}

/// Assigned or reserved; the lease is not committed yet.
const UNSETTLED: Lease = Lease {
    epoch: 0,
    until_ms: u64::MAX,
};

fn timer(item: &Item) -> u64 {
    match item.place {
        Place::Waiting => item.due_ms.min(item.expires_ms),
        Place::Ready | Place::Held | Place::Free => item.expires_ms,
    }
}
