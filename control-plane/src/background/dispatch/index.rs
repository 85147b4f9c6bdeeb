//! What the dispatcher knows: the scheduler, the shards that are in it, the relays.
use super::Events;
use crate::raft::EffectBatch;
use sealane_mutants::{Mutant::M20, mutant};
use sealane_scheduler::{ExpiredLease, Limits, NewItem, Scheduler, WorkItem};
use sealane_state::{Effect, queries::StoredMessage};
use sealane_types::{GroupId, MessageId, ShardId};
use sealane_wire::v1::recipient_record::State;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
    pub(super) fn page(&mut self, group: GroupId, build: Build, page: &[StoredMessage]) -> bool {
        match self.shards.get(&group) {
            Some(s) if s.term == build.term && s.building.is_some() => {}
            _ => return false,
        }
        for m in page {
            self.insert(m);
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

    /// Applies what the effects say by themselves; the answer is to be read again.
    pub(super) fn effects(&mut self, batch: &EffectBatch) -> Vec<MessageId> {
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
                        self.scheduler.leased(id, &destination, *epoch, *until_ms);
                    }
                    None => drop(again.insert(id)),
                },
                Effect::Gone(_) => {
                    shard.reserved.remove(&id);
                    again.remove(&id);
                    self.scheduler.remove(id);
                }
                _ => drop(again.insert(id)),
            }
        }
        again.into_iter().collect()
    }

    /// What was read of a message takes the place of what was known.
    pub(super) fn replace(&mut self, id: MessageId, m: Option<&StoredMessage>) {
        let group = id.shard().group();
        let open = |s: &Shard| !s.pending.contains(&id) && !s.reserved.contains_key(&id);
        if !self.shards.get(&group).is_some_and(open) {
            return;
        }
        self.scheduler.remove(id);
        if let Some(m) = m {
            self.insert(m);
        }
    }

    /// One item per destination that has open recipients.
    fn insert(&mut self, m: &StoredMessage) {
        let envelope = m.record.envelope.as_ref();
        let mut waiting: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for (n, r) in m.recipients.iter().enumerate() {
            let given = envelope.and_then(|e| e.recipients.get(n));
            let destination = given.map_or("", |r| domain(&r.mailbox));
            match r.state() {
                State::Waiting | State::Held => {
                    let held = r.state() == State::Held;
                    let entry = waiting
                        .entry(destination.to_ascii_lowercase())
                        .or_insert((r.due_ms, held));
                    entry.0 = entry.0.min(r.due_ms);
                    entry.1 &= held;
                }
                State::Leased if mutant(M20) => {
                    let key = destination.to_ascii_lowercase();
                    waiting.entry(key).or_insert((r.due_ms, false));
                }
                State::Leased => self.scheduler.leased(
                    m.id,
                    &destination.to_ascii_lowercase(),
                    r.epoch,
                    r.lease_until_ms,
                ),
                _ => {}
            }
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
                expires_ms: m.record.expires_at_ms,
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
                        items,
                    });
                }
            }
        }
        out
    }

    /// The leases took effect: nothing needs to be read again for these.
    pub(super) fn granted(
        &mut self,
        group: GroupId,
        items: &[WorkItem],
        epoch: u64,
        until_ms: u64,
    ) {
        for item in items {
            if let Some(shard) = self.shards.get_mut(&group) {
                shard.pending.remove(&item.id);
            }
            self.scheduler
                .leased(item.id, &item.destination, epoch, until_ms);
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
    ) -> (BTreeMap<GroupId, Vec<ExpiredLease>>, Vec<MessageId>) {
        let mut leases: BTreeMap<GroupId, Vec<ExpiredLease>> = BTreeMap::new();
        for l in self
            .scheduler
            .expired_leases(now_ms.saturating_sub(grace_ms), max)
        {
            leases.entry(l.id.shard().group()).or_default().push(l);
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
mod tests {
    use super::*;
    use sealane_scheduler::Limit;

    #[test]
    fn a_message_that_is_known_gets_no_second_reservation() {
        let (group, id) = (GroupId(1), MessageId::from_slice(&[1; 16]));
        let id = id.expect("16 octets of shard 1");
        let mut index = Index::default();
        let build = index.follow(group, Some(1)).expect("a new shard");
        index.built(group, build);
        index.scheduler.worker("relay", 8);
        let limits = |_: &str| Limit {
            leases: 8,
            first: 8,
            rated: false,
        };
        assert!(index.reserve(id, "example.org", "relay", 0, &limits));
        assert!(!index.reserve(id, "example.org", "relay", 0, &limits));
        let leased = Effect::Leased {
            id,
            epoch: 1,
            until_ms: 9000,
        };
        index.effects(&EffectBatch {
            group,
            applied: 1,
            effects: vec![leased],
        });
        // The relay did not get the answer and asks again.
        assert!(!index.reserve(id, "example.org", "relay", 1, &limits));
    }
}
