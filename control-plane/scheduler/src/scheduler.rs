//! The index.
use sealane_types::MessageId;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The waiting recipients of one message that share a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkItem {
    /// The message.
    pub id: MessageId,
    /// Lower-case domain.
    pub destination: String,
    /// Numbers within the envelope.
    pub recipients: Vec<u32>,
    /// Not attempted before, milliseconds.
    pub due_ms: u64,
    /// Attempts so far.
    pub attempts: u32,
    /// The message's time is up then, milliseconds.
    pub expires_ms: u64,
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

type Key = (MessageId, String);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    epoch: u64,
    until_ms: u64,
}

#[derive(Debug, Default)]
struct Destination {
    ready: VecDeque<Key>,
    in_flight: usize,
    last_worker: Option<String>,
}

/// The open recipients of one shard.
#[derive(Debug, Default)]
pub struct Scheduler {
    items: HashMap<Key, WorkItem>,
    waiting: BTreeSet<(u64, Key)>,
    expiry: BTreeSet<(u64, MessageId)>,
    by_message: HashMap<MessageId, BTreeSet<String>>,
    destinations: HashMap<String, Destination>,
    /// Destinations with something ready, in turn.
    turn: VecDeque<String>,
    leases: HashMap<Key, Lease>,
    lease_ends: BTreeSet<(u64, Key)>,
    workers: BTreeMap<String, u32>,
}

impl Scheduler {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the waiting part of a message at a destination.
    pub fn upsert(&mut self, item: WorkItem) {
        let key = (item.id, item.destination.clone());
        self.remove_item(&key);
        self.waiting.insert((item.due_ms, key.clone()));
        self.expiry.insert((item.expires_ms, item.id));
        self.by_message
            .entry(item.id)
            .or_default()
            .insert(item.destination.clone());
        self.items.insert(key, item);
    }

    /// Notes a lease: it counts against its destination until it is removed.
    pub fn leased(
        &mut self,
        id: MessageId,
        destination: &str,
        epoch: u64,
        _holder: &str,
        until_ms: u64,
    ) {
        let key = (id, destination.to_owned());
        if let Some(old) = self.leases.insert(key.clone(), Lease { epoch, until_ms }) {
            self.lease_ends.remove(&(old.until_ms, key.clone()));
        } else {
            self.destinations
                .entry(destination.to_owned())
                .or_default()
                .in_flight += 1;
        }
        self.lease_ends.insert((until_ms, key));
        self.by_message
            .entry(id)
            .or_default()
            .insert(destination.to_owned());
    }

    /// Forgets everything about a message.
    pub fn remove_message(&mut self, id: MessageId) {
        for destination in self.by_message.remove(&id).unwrap_or_default() {
            let key = (id, destination);
            self.remove_item(&key);
            if let Some(lease) = self.leases.remove(&key) {
                self.lease_ends.remove(&(lease.until_ms, key.clone()));
                if let Some(d) = self.destinations.get_mut(&key.1) {
                    d.in_flight = d.in_flight.saturating_sub(1);
                    if d.in_flight == 0 && d.ready.is_empty() {
                        self.destinations.remove(&key.1);
                    }
                }
            }
        }
    }

    /// The key may stay behind in a ready queue: it is skipped there.
    fn remove_item(&mut self, key: &Key) {
        if let Some(old) = self.items.remove(key) {
            self.waiting.remove(&(old.due_ms, key.clone()));
            self.expiry.remove(&(old.expires_ms, old.id));
        }
    }

    /// A relay can take `credits` leases more.
    pub fn worker(&mut self, name: &str, credits: u32) {
        self.workers.insert(name.to_owned(), credits);
    }

    /// A relay is gone; its leases run out by themselves.
    pub fn worker_gone(&mut self, name: &str) {
        self.workers.remove(name);
    }

    /// Assigns up to `max` due items: destinations in turn, one item each; at most `limit(destination)`
    /// leases per destination; the relay that served a destination last is preferred.
    ///
    /// Assigned items leave the index: the caller adds them again, leased or waiting, when it knows.
    pub fn next(
        &mut self,
        now_ms: u64,
        max: usize,
        limit: &dyn Fn(&str) -> u32,
    ) -> Vec<Assignment> {
        self.collect_due(now_ms);
        let mut out: BTreeMap<String, Vec<WorkItem>> = BTreeMap::new();
        let mut assigned = 0;
        let mut blocked = Vec::new();
        while assigned < max {
            let Some(name) = self.turn.pop_front() else {
                break;
            };
            match self.take_one(&name, limit) {
                Taken::Item(worker, item) => {
                    out.entry(worker).or_default().push(item);
                    assigned += 1;
                    self.turn.push_back(name);
                }
                Taken::Blocked => blocked.push(name),
                Taken::Empty => {}
                Taken::NoWorker => {
                    blocked.push(name);
                    break;
                }
            }
        }
        self.turn.extend(blocked);
        out.into_iter()
            .map(|(worker, items)| Assignment { worker, items })
            .collect()
    }

    fn collect_due(&mut self, now_ms: u64) {
        while let Some((due, _)) = self.waiting.first() {
            if *due > now_ms {
                break;
            }
            let Some((_, key)) = self.waiting.pop_first() else {
                break;
            };
            let d = self.destinations.entry(key.1.clone()).or_default();
            if d.ready.is_empty() {
                self.turn.push_back(key.1.clone());
            }
            d.ready.push_back(key);
        }
    }

    fn take_one(&mut self, name: &str, limit: &dyn Fn(&str) -> u32) -> Taken {
        let Some(d) = self.destinations.get_mut(name) else {
            return Taken::Empty;
        };
        // Skip what was removed or is waiting again since it became ready.
        while let Some(key) = d.ready.front() {
            let live = self
                .items
                .get(key)
                .is_some_and(|i| !self.waiting.contains(&(i.due_ms, key.clone())));
            if live {
                break;
            }
            d.ready.pop_front();
        }
        if d.ready.is_empty() {
            if d.in_flight == 0 {
                self.destinations.remove(name);
            }
            return Taken::Empty;
        }
        if d.in_flight >= usize::try_from(limit(name)).unwrap_or(usize::MAX) {
            return Taken::Blocked;
        }
        let preferred = d
            .last_worker
            .as_ref()
            .filter(|w| self.workers.get(*w).is_some_and(|c| *c > 0))
            .cloned();
        let richest = || {
            self.workers
                .iter()
                .max_by_key(|(_, c)| **c)
                .filter(|(_, c)| **c > 0)
                .map(|(w, _)| w.clone())
        };
        let Some(worker) = preferred.or_else(richest) else {
            return Taken::NoWorker;
        };
        let Some(key) = d.ready.pop_front() else {
            return Taken::Empty;
        };
        d.last_worker = Some(worker.clone());
        if let Some(c) = self.workers.get_mut(&worker) {
            *c -= 1;
        }
        let Some(item) = self.items.remove(&key) else {
            return Taken::Empty;
        };
        self.expiry.remove(&(item.expires_ms, item.id));
        // Counts as in flight from now; `remove_message` undoes it.
        let lease = Lease {
            epoch: 0,
            until_ms: u64::MAX,
        };
        // Other recipients of the message may be leased at this destination already: a key holds one place.
        match self.leases.insert(key.clone(), lease) {
            None => d.in_flight += 1,
            Some(old) => drop(self.lease_ends.remove(&(old.until_ms, key.clone()))),
        }
        Taken::Item(worker, item)
    }

    /// Leases that ended before `now_ms`, at most `max`; each is named once.
    pub fn expired_leases(&mut self, now_ms: u64, max: usize) -> Vec<ExpiredLease> {
        let mut out = Vec::new();
        while out.len() < max {
            match self.lease_ends.first() {
                Some((end, _)) if *end < now_ms => {}
                _ => break,
            }
            let Some((_, key)) = self.lease_ends.pop_first() else {
                break;
            };
            if let Some(lease) = self.leases.get_mut(&key) {
                out.push(ExpiredLease {
                    id: key.0,
                    epoch: lease.epoch,
                });
                // Named again later if the release was not committed.
                lease.until_ms = now_ms.saturating_add(10_000);
                self.lease_ends.insert((lease.until_ms, key));
            }
        }
        out
    }

    /// Messages with waiting recipients whose time is up, at most `max`; they leave the index.
    pub fn expired_messages(&mut self, now_ms: u64, max: usize) -> Vec<MessageId> {
        let mut out = Vec::new();
        while out.len() < max {
            match self.expiry.first() {
                Some((at, _)) if *at <= now_ms => {}
                _ => break,
            }
            let Some((_, id)) = self.expiry.pop_first() else {
                break;
            };
            let destinations = self.by_message.get(&id).cloned().unwrap_or_default();
            for destination in destinations {
                self.remove_item(&(id, destination));
            }
            out.push(id);
        }
        out
    }

    /// Items that wait or are ready.
    pub fn waiting(&self) -> usize {
        self.items.len()
    }
}

enum Taken {
    Item(String, WorkItem),
    /// At its limit.
    Blocked,
    Empty,
    NoWorker,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sealane_types::ShardId;

    fn id(n: u64) -> MessageId {
        MessageId::new(ShardId::new(1).unwrap(), n, [0; 9])
    }

    fn item(n: u64, destination: &str, due_ms: u64) -> WorkItem {
        WorkItem {
            id: id(n),
            destination: destination.into(),
            recipients: vec![0],
            due_ms,
            attempts: 0,
            expires_ms: 1_000_000,
        }
    }

    fn taken(a: Vec<Assignment>) -> Vec<u64> {
        a.into_iter()
            .flat_map(|a| a.items)
            .map(|i| i.id.time_ms())
            .collect()
    }

    #[test]
    fn nothing_is_assigned_before_it_is_due_or_without_credit() {
        let mut s = Scheduler::new();
        s.upsert(item(1, "a", 50));
        s.worker("r", 0);
        assert!(s.next(49, 10, &|_| 9).is_empty());
        s.worker("r", 5);
        assert!(s.next(49, 10, &|_| 9).is_empty());
        assert_eq!(taken(s.next(50, 10, &|_| 9)), [1]);
        assert!(s.next(50, 10, &|_| 9).is_empty());
    }

    #[test]
    fn a_black_hole_delays_nobody_else() {
        let mut s = Scheduler::new();
        s.worker("r", 100);
        for n in 0..50 {
            s.upsert(item(n, "hole", 0));
        }
        s.upsert(item(99, "good", 0));
        let got = taken(s.next(0, 100, &|_| 2));
        assert_eq!(got.len(), 3);
        assert!(got.contains(&99));
    }

    #[test]
    fn a_removed_lease_frees_its_destination() {
        let mut s = Scheduler::new();
        s.worker("r", 100);
        s.upsert(item(1, "a", 0));
        s.upsert(item(2, "a", 0));
        assert_eq!(taken(s.next(0, 10, &|_| 1)), [1]);
        s.remove_message(id(1));
        s.leased(id(1), "a", 7, "r", 500);
        assert!(s.next(0, 10, &|_| 1).is_empty());
        assert_eq!(
            s.expired_leases(501, 10),
            [ExpiredLease {
                id: id(1),
                epoch: 7
            }]
        );
        s.remove_message(id(1));
        assert_eq!(taken(s.next(0, 10, &|_| 1)), [2]);
    }

    #[test]
    fn a_message_that_is_leased_and_due_again_holds_one_place() {
        let mut s = Scheduler::new();
        s.worker("r", 100);
        for round in 0..5 {
            // One recipient is leased until 500, another one is due.
            s.leased(id(1), "a", 7 + round, "r", 500);
            s.upsert(item(1, "a", 0));
            assert_eq!(taken(s.next(0, 10, &|_| 2)), [1]);
            s.remove_message(id(1));
        }
        s.upsert(item(2, "a", 0));
        s.upsert(item(3, "a", 0));
        assert_eq!(taken(s.next(0, 10, &|_| 2)), [2, 3]);
        assert!(s.expired_leases(501, 10).is_empty());
    }

    #[test]
    fn expired_messages_leave_the_index() {
        let mut s = Scheduler::new();
        s.worker("r", 100);
        s.upsert(WorkItem {
            expires_ms: 10,
            ..item(1, "a", 100)
        });
        assert!(s.expired_messages(9, 10).is_empty());
        assert_eq!(s.expired_messages(10, 10), [id(1)]);
        assert!(s.next(100, 10, &|_| 9).is_empty());
    }

    proptest! {
        /// Every item is assigned exactly once, limits hold at every step, all are assigned in the end.
        #[test]
        fn all_due_work_is_assigned_once_within_limits(
            destinations in prop::collection::vec(0u8..4, 1..60),
            credits in 1u32..5,
            limit in 1u32..4,
        ) {
            let mut s = Scheduler::new();
            for (n, d) in destinations.iter().enumerate() {
                s.upsert(item(n as u64, &format!("d{d}"), n as u64 % 7));
            }
            let mut seen = BTreeSet::new();
            let mut rounds = 0;
            while seen.len() < destinations.len() {
                s.worker("r", credits);
                let got = s.next(100, 1000, &|_| limit);
                let mut per: HashMap<String, u32> = HashMap::new();
                let mut done = Vec::new();
                for i in got.into_iter().flat_map(|a| a.items) {
                    *per.entry(i.destination.clone()).or_default() += 1;
                    prop_assert!(seen.insert(i.id));
                    done.push(i.id);
                }
                prop_assert!(per.values().all(|n| *n <= limit));
                prop_assert!(done.len() <= credits as usize);
                done.into_iter().for_each(|id| s.remove_message(id));
                rounds += 1;
                prop_assert!(rounds < 1000, "stuck with {} of {}", seen.len(), destinations.len());
            }
            prop_assert_eq!(s.waiting(), 0);
        }
    }
}
