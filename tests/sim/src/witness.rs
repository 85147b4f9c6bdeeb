//! Looks at every write of every node, from below: what a node lets others believe must be durable
//! on a majority, by the disks' own account.
use crate::{
    disk::{Change, Disk, Image, get},
    ledger::{Id, hex},
    note,
};
use bytes::Bytes;
use prost::Message;
use sealane_state::Table;
use sealane_store::{
    Applied, LogPosition, VoteRecord,
    inspect::{self, Record},
};
use sealane_types::GroupId;
use sealane_wire::v1::{self, dedupe_record::Fate};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Shared by all disks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    disks: Vec<Disk>,
    /// The memberships are what they will be: until then a majority is not easy to tell from outside.
    steady: bool,
    violations: Vec<String>,
    /// Of each group, which entry is at an index once some node applied it.
    committed: BTreeMap<GroupId, BTreeMap<u64, Seen>>,
    /// Checks that were made.
    commits: u64,
    elections: BTreeSet<(GroupId, u64, u64)>,
    installs: u64,
    /// Messages that some node applied.
    stored: BTreeSet<Id>,
    /// Messages that some node gave up for ever.
    void: BTreeSet<Id>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    position: LogPosition,
    record: Bytes,
}

fn decoded(image: &Image, key: (&'static str, Vec<u8>)) -> Option<Record> {
    let value = get(image, key.0, &key.1)?;
    inspect::record(key.0, &key.1, &value).ok().map(|(_, r)| r)
}

/// What the disk of a node would have after a loss of power.
struct Durable {
    node: u64,
    vote: Option<VoteRecord>,
    purged: Option<LogPosition>,
    applied: Option<LogPosition>,
    entry: Option<LogPosition>,
}

impl Durable {
    fn of(disk: &Disk, group: GroupId, index: u64) -> Option<Self> {
        let v = disk.lock();
        let image = &v.durable;
        let Some(Record::Identity(node)) = decoded(image, inspect::identity_key()) else {
            return None;
        };
        Some(Self {
            node,
            vote: match decoded(image, inspect::vote_key(group)) {
                Some(Record::Vote(v)) => Some(v),
                _ => None,
            },
            purged: match decoded(image, inspect::purged_key(group)) {
                Some(Record::Purged(p)) => Some(p),
                _ => None,
            },
            applied: match decoded(image, inspect::applied_key(group)) {
                Some(Record::Applied(a)) => a.last,
                _ => None,
            },
            entry: match decoded(image, inspect::entry_key(group, index)) {
                Some(Record::Entry(p)) => Some(p),
                _ => None,
            },
        })
    }

    fn holds(&self, at: LogPosition) -> bool {
        let behind = |p: &Option<LogPosition>| p.is_some_and(|p| p.index >= at.index);
        self.entry == Some(at) || behind(&self.purged) || behind(&self.applied)
    }
}

fn majority(members: &v1::Membership, of: &BTreeSet<u64>) -> bool {
    members.configs.iter().all(|c| {
        let n = c.voters.iter().filter(|v| of.contains(v)).count();
        n * 2 > c.voters.len()
    })
}

impl Witness {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches this disk too.
    pub(crate) fn watch(&self, disk: Disk) {
        self.lock().disks.push(disk);
    }

    /// From here on majorities are checked.
    pub(crate) fn steady(&self, yes: bool) {
        self.lock().steady = yes;
    }

    /// Rules that were broken.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Positions that were checked, and elections that were won.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let w = self.lock();
        (w.commits, w.elections.len() as u64)
    }

    /// Snapshots whose install began.
    pub(crate) fn installs(&self) -> u64 {
        self.lock().installs
    }

    fn broken(&self, what: String) {
        note!("VIOLATION {what}");
        self.lock().violations.push(what);
    }

    /// Called after a write, without any lock.
    pub(crate) fn wrote(&self, disk: &Disk, changes: &[Change]) {
        for change in changes {
            let Change::Put(family, key, value) = change else {
                continue;
            };
            if *family == inspect::ROWS {
                self.applied_row(key, value);
            }
            if *family != inspect::METAS {
                continue;
            }
            match inspect::record(family, key, value) {
                Ok((group, Record::Vote(vote))) if vote.committed => {
                    self.elected(disk, group, vote)
                }
                Ok((group, Record::Applied(applied))) => self.applied(disk, group, &applied),
                Ok((group, Record::Installing)) => {
                    note!("group {group}: a snapshot is installed");
                    self.lock().installs += 1;
                }
                _ => {}
            }
        }
    }

    /// Messages that came into being, or never will.
    fn applied_row(&self, key: &[u8], value: &[u8]) {
        let Ok((_, Record::Row(table, id, value))) = inspect::record(inspect::ROWS, key, value)
        else {
            return;
        };
        let Ok(id) = Id::try_from(id.as_ref()) else {
            return;
        };
        if table == Table::Message as u8 {
            self.lock().stored.insert(id);
        } else if table == Table::Dedupe as u8
            && v1::DedupeRecord::decode(value).is_ok_and(|d| d.fate() == Fate::Aborted)
        {
            self.lock().void.insert(id);
        }
    }

    /// A client was told 250: that something applied it is known at once. Whether that was durable, see
    /// [`Self::applied`].
    pub(crate) fn acknowledged(&self, id: Id) -> Result<(), String> {
        let w = self.lock();
        if w.void.contains(&id) {
            return Err(format!("I1: {} was acknowledged and is void", hex(&id)));
        }
        if !w.stored.contains(&id) {
            return Err(format!(
                "I1: {} was acknowledged before any node applied it",
                hex(&id)
            ));
        }
        Ok(())
    }

    fn durable(&self, group: GroupId, index: u64) -> Vec<Durable> {
        let disks = self.lock().disks.clone();
        let all = disks.iter();
        all.filter_map(|d| Durable::of(d, group, index)).collect()
    }

    fn membership(disk: &Disk, group: GroupId) -> Option<v1::Membership> {
        let applied = match decoded(&disk.lock().live, inspect::applied_key(group)) {
            Some(Record::Applied(a)) => a,
            _ => return None,
        };
        v1::Membership::decode(applied.membership).ok()
    }

    /// Whoever leads was voted for by a majority, and they remember it.
    fn elected(&self, disk: &Disk, group: GroupId, vote: VoteRecord) {
        let me = match decoded(&disk.lock().live, inspect::identity_key()) {
            Some(Record::Identity(node)) => node,
            _ => return,
        };
        if vote.node != me {
            return;
        }
        let new = self.lock().elections.insert((group, vote.term, vote.node));
        if new {
            note!("group {group}: node {me} leads in term {}", vote.term);
        }
        if !self.lock().steady {
            return;
        }
        let Some(members) = Self::membership(disk, group) else {
            return;
        };
        let granted = VoteRecord {
            committed: false,
            ..vote
        };
        let for_it: BTreeSet<u64> = self
            .durable(group, 0)
            .iter()
            .filter(|d| d.vote >= Some(granted))
            .map(|d| d.node)
            .collect();
        if !majority(&members, &for_it) {
            self.broken(format!(
                "vote: node {me} leads group {group} in term {}, but only {for_it:?} have that vote on disk",
                vote.term
            ));
        }
    }

    /// What is applied anywhere is on the disks of a majority, and is the same everywhere.
    fn applied(&self, disk: &Disk, group: GroupId, applied: &Applied) {
        let Some(at) = applied.last else { return };
        let own = {
            let v = disk.lock();
            let (family, key) = inspect::entry_key(group, at.index);
            get(&v.live, family, &key)
        };
        if let Some(record) = own {
            let seen = Seen {
                position: at,
                record,
            };
            let other = {
                let mut w = self.lock();
                let known = w.committed.entry(group).or_default();
                known
                    .entry(at.index)
                    .or_insert_with(|| seen.clone())
                    .clone()
            };
            if other != seen {
                self.broken(format!(
                    "log: group {group} index {}: {:?} here, {:?} where it was applied first",
                    at.index, seen.position, other.position
                ));
            }
        }
        if !self.lock().steady {
            return;
        }
        let Ok(members) = v1::Membership::decode(applied.membership.clone()) else {
            return;
        };
        self.lock().commits += 1;
        let holders: BTreeSet<u64> = self
            .durable(group, at.index)
            .iter()
            .filter(|d| d.holds(at))
            .map(|d| d.node)
            .collect();
        if !majority(&members, &holders) {
            self.broken(format!(
                "commit: group {group} applied {at:?}, but only {holders:?} have it on disk"
            ));
        }
    }
}
