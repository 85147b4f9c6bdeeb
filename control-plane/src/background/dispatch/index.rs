//! What the dispatcher knows: the scheduler, the shards that are in it, the relays.
//!
//! All its times are those of the steady clock. What is stored is of the wall clocks of leaders, and is
//! turned into them where a message is read ([`Moment`]): how long it still has to wait, how long its lease
//! may still be held. A wall clock that is set afterwards moves nothing.
use super::Events;
use crate::raft::EffectBatch;
use bytes::Bytes;
use sealane_mutants::{Mutant::M20, mutant};
use sealane_runtime::clock::Now;
use sealane_scheduler::{Limits, NewItem, Scheduler, WorkItem};
use sealane_state::{Effect, queries::StoredMessage};
use sealane_types::{GroupId, MessageId, ShardId};
use sealane_wire::v1::{self, recipient_record::State};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What a relay's clock showed is gone by for this long, milliseconds.
const SHOWS_MS: u64 = 120_000;

/// A connected relay, for `sealane node list`.
#[derive(Debug, Clone)]
pub(crate) struct RelayInfo {
    pub(crate) name: String,
    pub(crate) since_ms: u64,
}

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) session: u64,
    pub(super) events: Events,
    pub(super) since_ms: u64,
    /// What its own clock showed when it sent the last frame, and when that was received.
    pub(super) shows: Option<(u64, u64)>,
}

/// When something was read, and what its times mean then.
pub(super) struct Moment<'a> {
    pub(super) now: Now,
    /// Of a whole lease. It is the same on all nodes.
    pub(super) lease_ms: u64,
    /// The longest that a recipient at a destination has to wait after attempt number so-and-so.
    pub(super) longest: &'a dyn Fn(&str, u32) -> u64,
}

impl Moment<'_> {
    /// How long this recipient still has to wait: at most its pause, however far ahead a wrong clock put it.
    fn left(&self, destination: &str, r: &v1::RecipientRecord) -> u64 {
        let left = r.due_ms.saturating_sub(self.now.wall_ms);
        left.min((self.longest)(destination, r.attempts))
    }

    /// Whether it may be attempted with one of its destination that is due: it is due too, or its time
    /// cannot be.
    pub(super) fn may_go(&self, destination: &str, r: &v1::RecipientRecord) -> bool {
        let left = r.due_ms.saturating_sub(self.now.wall_ms);
        left == 0 || left > (self.longest)(destination, r.attempts)
    }
}

/// A lease, and when it is over. What is stored of it (`until_ms`) only tells whether it was prolonged.
#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: u64,
    until_ms: u64,
    end: u64,
}

/// A lease that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Over {
    pub(super) id: MessageId,
    pub(super) epoch: u64,
    pub(super) until_ms: u64,
}

impl Over {
    pub(super) fn reference(&self) -> v1::LeaseRef {
        v1::LeaseRef {
            id: Bytes::copy_from_slice(self.id.as_bytes()),
            epoch: self.epoch,
            until_ms: self.until_ms,
        }
    }
}

#[derive(Debug, Default)]
struct Shard {
    term: u64,
    /// Ids that changed while the shard is being built: read again at its end. `None`: it is built.
    building: Option<HashSet<MessageId>>,
    /// A lease or an expiry is proposed: not touched until it is settled.
    pending: HashSet<MessageId>,
    /// An enqueue with its lease is proposed, and where it goes.
    reserved: HashMap<MessageId, String>,
    /// Leases that are held, as far as this node knows.
    leases: HashMap<MessageId, Vec<Known>>,
    /// No message before this one; ids of slow clocks lower it.
    floor: Option<MessageId>,
}

/// A build that is to be done: [`Index::follow`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Build {
    pub(super) term: u64,
}

/// One lease entry to propose.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) group: GroupId,
    pub(super) relay: String,
    pub(super) events: Events,
    /// As in [`Relay`].
    pub(super) shows: Option<(u64, u64)>,
    pub(super) items: Vec<WorkItem>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) scheduler: Scheduler,
    shards: BTreeMap<GroupId, Shard>,
    relays: HashMap<String, Relay>,
}

fn domain(mailbox: &str) -> &str {
    mailbox.rsplit_once('@').map_or("", |(_, d)| d)
}

/// Who is to be treated fairly: the submitter; without one the domain that the mail says it is from.
fn sender(m: &StoredMessage) -> &str {
    let submitter = m.record.entry.as_ref().map_or("", |e| e.submitter.as_str());
    if !submitter.is_empty() {
        return submitter;
    }
    let from = m.record.envelope.as_ref();
    domain(from.map_or("", |e| e.reverse_path.as_str()))
}

impl Index {
    // ---- relays

    pub(super) fn relays(&self) -> Vec<RelayInfo> {
        let mut all: Vec<RelayInfo> = self
            .relays
            .iter()
            .map(|(name, r)| RelayInfo {
                name: name.clone(),
                since_ms: r.since_ms,
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// How many there are now.
    pub(super) fn joined(&mut self, name: &str, relay: Relay) -> usize {
        self.scheduler.worker(name, 0);
        self.relays.insert(name.to_owned(), relay);
        self.relays.len()
    }

    pub(super) fn left(&mut self, name: &str, session: u64) -> usize {
        if self.relays.get(name).is_some_and(|r| r.session == session) {
            self.relays.remove(name);
            self.scheduler.worker_gone(name);
        }
        self.relays.len()
    }

    pub(super) fn shows(&mut self, name: &str, session: u64, shows: (u64, u64)) {
        let Some(r) = self.relays.get_mut(name).filter(|r| r.session == session) else {
            return;
        };
        // The frame that took the shortest way says most; clocks drift, so not for ever.
        let better = r.shows.is_none_or(|(sent, received)| {
            let old = shows.1.saturating_sub(received) > SHOWS_MS;
            old || shows.0.saturating_add(received) >= sent.saturating_add(shows.1)
        });
        if better {
            r.shows = Some(shows);
        }
    }

    pub(super) fn credit(&mut self, name: &str, session: Option<u64>, leases: u32) {
        let known = self.relays.get(name);
        if known.is_none_or(|r| session.is_some_and(|s| s != r.session)) {
            return;
        }
        let credits = match (session, leases) {
            // The relay withdraws all: it drains.
            (Some(_), 0) => 0,
            _ => self.scheduler.credits(name).saturating_add(leases),
        };
        self.scheduler.worker(name, credits);
    }

    // ---- shards

    /// What to build; what is not led any more is forgotten.
    pub(super) fn follow(&mut self, group: GroupId, term: Option<u64>) -> Option<Build> {
        let known = self.shards.get(&group).map(|s| s.term);
        if known == term {
            return None;
        }
        self.forget(group);
        let term = term?;
        let shard = Shard {
            term,
            building: Some(HashSet::new()),
            ..Shard::default()
        };
        self.shards.insert(group, shard);
        Some(Build { term })
    }

    pub(super) fn led(&self) -> Vec<GroupId> {
        self.shards.keys().copied().collect()
    }

    /// Shards whose messages are all here.
    pub(super) fn built_shards(&self) -> Vec<GroupId> {
        let built = self.shards.iter().filter(|(_, s)| s.building.is_none());
        built.map(|(group, _)| *group).collect()
    }

    /// Whether something is going to happen to a message.
    pub(super) fn knows(&self, id: MessageId) -> bool {
        self.scheduler.knows(id)
            || self
                .shards
                .get(&id.shard().group())
                .is_some_and(|s| s.pending.contains(&id) || s.reserved.contains_key(&id))
    }

    fn forget(&mut self, group: GroupId) {
        self.shards.remove(&group);
        if let Some(shard) = ShardId::new(group.0) {
            self.scheduler.drop_shard(shard);
        }
    }

    pub(super) fn forget_all(&mut self) {
        for group in self.led() {
            self.forget(group);
        }
    }

    /// Takes a page of a build; false if it is not wanted any more.
    pub(super) fn page(
        &mut self,
        group: GroupId,
        build: Build,
        page: &[StoredMessage],
        at: &Moment<'_>,
    ) -> bool {
        match self.shards.get(&group) {
            Some(s) if s.term == build.term && s.building.is_some() => {}
            _ => return false,
        }
        for m in page {
            self.insert(m, at);
        }
        true
    }

    /// The build is complete; these changed meanwhile.
    pub(super) fn built(&mut self, group: GroupId, build: Build) -> Vec<MessageId> {
        match self.shards.get_mut(&group) {
            Some(s) if s.term == build.term => {
                s.building.take().unwrap_or_default().into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The lowest id that may exist.
    pub(super) fn floor(&self, group: GroupId) -> Option<MessageId> {
        self.shards.get(&group).and_then(|s| s.floor)
    }

    /// Nothing was found between `from` and `oldest`.
    pub(super) fn raise_floor(
        &mut self,
        group: GroupId,
        from: Option<MessageId>,
        oldest: Option<MessageId>,
    ) {
        if let Some(s) = self.shards.get_mut(&group)
            && s.floor == from
            && oldest.is_some()
        {
            s.floor = oldest;
        }
    }

    // ---- messages

    /// Applies what the effects say by themselves; the answer is to be read again. Leases that begin with them
    /// are over at `lease_end`.
    pub(super) fn effects(&mut self, batch: &EffectBatch, lease_end: u64) -> Vec<MessageId> {
        let Some(shard) = self.shards.get_mut(&batch.group) else {
            return Vec::new();
        };
        let mut again = BTreeSet::new();
        for effect in &batch.effects {
            let Some(id) = effect.message() else { continue };
            if !matches!(effect, Effect::Gone(_)) && shard.floor.is_some_and(|f| id < f) {
                shard.floor = Some(id);
            }
            if let Some(changed) = &mut shard.building {
                changed.insert(id);
                continue;
            }
            if shard.pending.contains(&id) {
                continue;
            }
            match effect {
                Effect::Leased {
                    epoch, until_ms, ..
                } => match shard.reserved.remove(&id) {
                    Some(destination) => {
                        let known = Known {
                            epoch: *epoch,
                            until_ms: *until_ms,
                            end: lease_end,
                        };
                        shard.leases.insert(id, vec![known]);
                        self.scheduler.leased(id, &destination, *epoch, lease_end);
                    }
                    None => drop(again.insert(id)),
                },
                Effect::Gone(_) => {
                    shard.reserved.remove(&id);
                    shard.leases.remove(&id);
                    again.remove(&id);
                    self.scheduler.remove(id);
                }
                _ => drop(again.insert(id)),
            }
        }
        again.into_iter().collect()
    }

    /// What was read of a message takes the place of what was known.
    pub(super) fn replace(&mut self, id: MessageId, m: Option<&StoredMessage>, at: &Moment<'_>) {
        let group = id.shard().group();
        let open = |s: &Shard| !s.pending.contains(&id) && !s.reserved.contains_key(&id);
        if !self.shards.get(&group).is_some_and(open) {
            return;
        }
        self.scheduler.remove(id);
        match (m, self.shards.get_mut(&group)) {
            (Some(m), _) => self.insert(m, at),
            (None, Some(shard)) => drop(shard.leases.remove(&id)),
            (None, None) => {}
        }
    }

    /// One item per destination that has open recipients.
    fn insert(&mut self, m: &StoredMessage, at: &Moment<'_>) {
        let Some(shard) = self.shards.get_mut(&m.id.shard().group()) else {
            return;
        };
        let before = shard.leases.remove(&m.id).unwrap_or_default();
        let mut leases: Vec<Known> = Vec::new();
        let envelope = m.record.envelope.as_ref();
        let mut waiting: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for (n, r) in m.recipients.iter().enumerate() {
            let given = envelope.and_then(|e| e.recipients.get(n));
            let destination = given.map_or("", |r| domain(&r.mailbox));
            match r.state() {
                State::Waiting | State::Held => {
                    let held = r.state() == State::Held;
                    let due = at.now.steady_ms.saturating_add(at.left(destination, r));
                    let entry = waiting
                        .entry(destination.to_ascii_lowercase())
                        .or_insert((due, held));
                    entry.0 = entry.0.min(due);
                    entry.1 &= held;
                }
                State::Leased if mutant(M20) => {
                    let key = destination.to_ascii_lowercase();
                    waiting.entry(key).or_insert((at.now.steady_ms, false));
                }
                State::Leased => {
                    let same = |k: &&Known| k.epoch == r.epoch && k.until_ms == r.lease_until_ms;
                    let known = before.iter().find(same).copied().unwrap_or(Known {
                        epoch: r.epoch,
                        until_ms: r.lease_until_ms,
                        // Found, or prolonged: whoever holds it counts from before this.
                        end: at.now.steady_ms.saturating_add(at.lease_ms),
                    });
                    let destination = destination.to_ascii_lowercase();
                    self.scheduler
                        .leased(m.id, &destination, known.epoch, known.end);
                    if !leases.iter().any(|k| k.epoch == known.epoch) {
                        leases.push(known);
                    }
                }
                _ => {}
            }
        }
        if !leases.is_empty() {
            shard.leases.insert(m.id, leases);
        }
        let first = m.recipients.iter().all(|r| r.attempts == 0);
        let relay = m.record.entry.as_ref().map_or("", |e| e.relay.as_str());
        for (destination, (due_ms, held)) in waiting {
            self.scheduler.upsert(NewItem {
                id: m.id,
                destination: &destination,
                sender: sender(m),
                // It keeps the body for the first attempt.
                prefer: if first { relay } else { "" },
                due_ms,
                expires_ms: at.now.steady_at(m.record.expires_at_ms),
                held,
            });
        }
    }

    pub(super) fn reserve(
        &mut self,
        id: MessageId,
        destination: &str,
        relay: &str,
        now_ms: u64,
        limits: &impl Limits,
    ) -> bool {
        let group = id.shard().group();
        let Some(shard) = self.shards.get_mut(&group) else {
            return false;
        };
        // Asked again about a message that is known: its first answer stands, and no effect would end
        // another reservation.
        let known = shard.pending.contains(&id) || self.scheduler.knows(id);
        if shard.building.is_some() || shard.reserved.contains_key(&id) || known {
            return false;
        }
        let taken = self
            .scheduler
            .reserve(id, destination, relay, now_ms, limits);
        if taken {
            shard.reserved.insert(id, destination.to_owned());
        }
        taken
    }

    pub(super) fn unreserve(&mut self, id: MessageId, relay: &str, certain: bool) {
        let group = id.shard().group();
        let shard = self.shards.get_mut(&group);
        // If it is not there, the effect of its enqueue took it.
        if shard.is_some_and(|s| s.reserved.remove(&id).is_some()) {
            self.scheduler.remove(id);
            if certain {
                self.credit(relay, None, 1);
            }
        }
    }

    // ---- work

    pub(super) fn assign(&mut self, now_ms: u64, max: usize, limits: &impl Limits) -> Vec<Batch> {
        let mut out = Vec::new();
        for a in self.scheduler.next(now_ms, max, limits) {
            let Some(relay) = self.relays.get(&a.worker) else {
                continue;
            };
            let mut by_group: BTreeMap<GroupId, Vec<WorkItem>> = BTreeMap::new();
            for item in a.items {
                let group = item.id.shard().group();
                if let Some(shard) = self.shards.get_mut(&group) {
                    shard.pending.insert(item.id);
                }
                by_group.entry(group).or_default().push(item);
            }
            for (group, items) in by_group {
                for items in rounds(items) {
                    out.push(Batch {
                        group,
                        relay: a.worker.clone(),
                        events: relay.events.clone(),
                        shows: relay.shows,
                        items,
                    });
                }
            }
        }
        out
    }

    /// The leases took effect, and are over at `end`: nothing needs to be read again for these.
    pub(super) fn granted(
        &mut self,
        group: GroupId,
        items: &[WorkItem],
        (epoch, until_ms): (u64, u64),
        end: u64,
    ) {
        for item in items {
            if let Some(shard) = self.shards.get_mut(&group) {
                shard.pending.remove(&item.id);
                let known = Known {
                    epoch,
                    until_ms,
                    end,
                };
                shard.leases.entry(item.id).or_default().push(known);
            }
            self.scheduler
                .leased(item.id, &item.destination, epoch, end);
        }
    }

    pub(super) fn settle(&mut self, group: GroupId, ids: &[MessageId]) {
        if let Some(shard) = self.shards.get_mut(&group) {
            for id in ids {
                shard.pending.remove(id);
            }
        }
    }

    /// Leases to take back, by group, and messages to end.
    pub(super) fn expired(
        &mut self,
        now_ms: u64,
        grace_ms: u64,
        max: usize,
    ) -> (BTreeMap<GroupId, Vec<Over>>, Vec<MessageId>) {
        let mut leases: BTreeMap<GroupId, Vec<Over>> = BTreeMap::new();
        for l in self
            .scheduler
            .expired_leases(now_ms.saturating_sub(grace_ms), max)
        {
            let group = l.id.shard().group();
            let known = self.shards.get(&group).and_then(|s| s.leases.get(&l.id));
            let known = known.and_then(|all| all.iter().find(|k| k.epoch == l.epoch));
            if let Some(k) = known {
                leases.entry(group).or_default().push(Over {
                    id: l.id,
                    epoch: l.epoch,
                    until_ms: k.until_ms,
                });
            }
        }
        let messages = self.scheduler.expired_messages(now_ms, max);
        for id in &messages {
            if let Some(shard) = self.shards.get_mut(&id.shard().group()) {
                shard.pending.insert(*id);
            }
        }
        (leases, messages)
    }
}

/// Splits items so that no part names a message twice: its epoch then names one lease.
fn rounds(items: Vec<WorkItem>) -> Vec<Vec<WorkItem>> {
    let mut out: Vec<(HashSet<MessageId>, Vec<WorkItem>)> = Vec::new();
    for item in items {
        match out.iter_mut().find(|(seen, _)| !seen.contains(&item.id)) {
            Some((seen, part)) => {
                seen.insert(item.id);
                part.push(item);
            }
            None => out.push((HashSet::from([item.id]), vec![item])),
        }
    }
    out.into_iter().map(|(_, part)| part).collect()
}

#[cfg(test)]
mod tests;
