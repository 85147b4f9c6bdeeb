//! A disk that does what disks may do: keeps a prefix of what was not synced, tears, fails once, fills up, is slow.
//!
//! One [`Disk`] is the volume of one node and outlives its processes. [`Engine`] and [`Files`] are handles
//! of one process: after its death they are dead, whoever still holds them.
use crate::{note, witness::Witness};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sealane_store::{
    StoreError,
    engine::{Batch, Engine, Family, OwnedRow, Patience, Range, Reads, Row, Written},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Families, and what is in them.
pub(crate) type Image = BTreeMap<Family, BTreeMap<Vec<u8>, Bytes>>;

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Family, Vec<u8>, Bytes),
    Delete(Family, Vec<u8>),
    DeleteRange(Family, Vec<u8>, Vec<u8>),
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// What it wrote to files stays; what it had in memory does not.
    Kill,
    /// Only what was synced is sure to stay.
    Power,
}

/// What the disk did to its node, and had to do for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiskCounts {
    /// Syncs that succeeded.
    pub(crate) syncs: u64,
    /// Batches written.
    pub(crate) batches: u64,
    /// Octets of batches that were written, not synced, and lost.
    pub(crate) lost_octets: u64,
    /// Batches lost.
    pub(crate) lost_batches: u64,
    /// Batches of which a part reached the disk.
    pub(crate) torn: u64,
    /// Writes or syncs that failed.
    pub(crate) errors: u64,
    /// Syncs asked for after one had failed: must be 0.
    pub(crate) after_error: u64,
    /// Writes that were told to wait.
    pub(crate) stalls: u64,
    /// Syncs that took longer than usual.
    pub(crate) slow: u64,
    /// Bits flipped, on the volume as it is.
    pub(crate) flips: u64,
    /// And on those before it.
    pub(crate) flips_before: u64,
}

/// What is wrong with the disk now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The next sync fails.
    pub(crate) fail_sync: bool,
    /// The next write fails.
    pub(crate) fail_write: bool,
    /// Nothing more fits.
    pub(crate) full: bool,
    /// Space is short: the node should notice.
    pub(crate) scarce: bool,
    /// Added to each sync.
    pub(crate) slow: Duration,
    /// One of so many writes is told to wait; 0: none.
    pub(crate) stall: u32,
    /// Syncs are acknowledged and not done: calibrates the judge.
    pub(crate) lies: bool,
}

#[derive(Debug)]
pub(crate) struct Volume {
    name: String,
    pub(crate) durable: Image,
    pub(crate) live: Image,
    /// Written, not synced.
    wal: VecDeque<(Vec<Change>, usize)>,
    /// Number of the batch that is next to become durable.
    synced: u64,
    /// A sync covers batches before this one.
    mark: Option<u64>,
    pub(crate) files: crate::files::FileTable,
    generation: u64,
    failed: bool,
    chance: StdRng,
    usual: (u64, u64),
    pub(crate) faults: Faults,
    pub(crate) counts: DiskCounts,
}

/// The volume of one node.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    volume: Arc<Mutex<Volume>>,
    witness: Witness,
}

pub(crate) fn apply(image: &mut Image, change: &Change) {
    match change {
        Change::Put(f, k, v) => drop(image.entry(f).or_default().insert(k.clone(), v.clone())),
        Change::Delete(f, k) => drop(image.entry(f).or_default().remove(k)),
        Change::DeleteRange(f, from, to) => {
            let rows = image.entry(f).or_default();
            let range = (
                Bound::Included(from.as_slice()),
                Bound::Excluded(to.as_slice()),
            );
            let keys: Vec<Vec<u8>> = rows
                .range::<[u8], _>(range)
                .map(|(k, _)| k.clone())
                .collect();
            keys.iter().for_each(|k| drop(rows.remove(k)));
        }
    }
}

pub(crate) fn get(image: &Image, family: Family, key: &[u8]) -> Option<Bytes> {
    image.get(family)?.get(key).cloned()
}

impl Disk {
    /// An empty one; syncs usually take between the two numbers of microseconds.
    pub(crate) fn new(name: &str, seed: u64, usual: (u64, u64), witness: Witness) -> Self {
        Self {
            volume: Arc::new(Mutex::new(Volume {
                name: name.to_owned(),
                durable: Image::new(),
                live: Image::new(),
                wal: VecDeque::new(),
                synced: 0,
                mark: None,
                files: Default::default(),
                generation: 0,
                failed: false,
                chance: StdRng::seed_from_u64(seed),
                usual,
                faults: Faults::default(),
                counts: DiskCounts::default(),
            })),
            witness,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Volume> {
        self.volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process opens the volume.
    pub(crate) fn power_on(&self) -> (SimEngine, crate::files::SimFiles) {
        let mut v = self.lock();
        v.generation += 1;
        v.failed = false;
        let engine = SimEngine {
            disk: self.clone(),
            generation: v.generation,
        };
        let files = crate::files::SimFiles {
            disk: self.clone(),
            generation: v.generation,
        };
        (engine, files)
    }

    /// The process dies. What it had not synced is gone, but for a prefix that got through.
    pub(crate) fn crash(&self, how: Death) {
        let mut v = self.lock();
        v.generation += 1;
        let waiting = v.wal.len();
        let kept = if waiting == 0 || v.chance.random_bool(0.5) {
            0
        } else {
            v.chance.random_range(0..=waiting)
        };
        let batches: Vec<_> = v.wal.drain(..).collect();
        let mut lost = 0;
        for (n, (changes, octets)) in batches.iter().enumerate() {
            if n < kept {
                changes.iter().for_each(|c| apply(&mut v.durable, c));
                v.synced += 1;
            } else {
                lost += *octets as u64;
                v.counts.lost_batches += 1;
                // A part of the first one that is lost may be on the disk: the log's checksum drops it.
                if n == kept && v.chance.random_bool(0.5) {
                    v.counts.torn += 1;
                }
            }
        }
        v.counts.lost_octets += lost;
        v.live = v.durable.clone();
        v.mark = None;
        v.faults = Faults {
            fail_sync: false,
            fail_write: false,
            ..v.faults
        };
        if how == Death::Power {
            let v = &mut *v;
            v.files.lose_power(&mut v.chance);
        }
        note!(
            "disk {} {how:?}: {waiting} batches waited, {kept} survive, {lost} octets lost",
            v.name
        );
    }

    /// What a sync that starts now covers.
    pub(crate) fn mark(&self) -> u64 {
        let v = self.lock();
        v.synced + v.wal.len() as u64
    }

    /// The disk had its time for a sync that started at that mark.
    pub(crate) fn reached(&self, mark: u64) {
        self.lock().mark = Some(mark);
    }

    /// How long the next sync takes.
    pub(crate) fn latency(&self) -> Duration {
        let mut v = self.lock();
        let (least, most) = v.usual;
        let usual = Duration::from_micros(v.chance.random_range(least..=most));
        if v.faults.slow > Duration::ZERO {
            v.counts.slow += 1;
            let slow = v.faults.slow;
            return usual + slow.mul_f64(v.chance.random_range(0.3..1.0));
        }
        usual
    }

    /// Changes what is wrong.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
    }

    /// What happened so far.
    pub(crate) fn counts(&self) -> DiskCounts {
        self.lock().counts
    }

    /// Flips a bit of one durable record of a family; says which.
    pub(crate) fn flip(&self, family: Family) -> Option<Vec<u8>> {
        let mut v = self.lock();
        let v = &mut *v;
        let rows = v.durable.get_mut(family)?;
        let n = v.chance.random_range(0..rows.len().max(1));
        let (key, value) = rows.iter_mut().nth(n)?;
        if value.is_empty() {
            return None;
        }
        let mut damaged = value.to_vec();
        let at = v.chance.random_range(0..damaged.len());
        if let Some(b) = damaged.get_mut(at) {
            *b ^= 1 << v.chance.random_range(0..8);
        }
        *value = damaged.into();
        let (key, value) = (key.clone(), value.clone());
        if let Some(live) = v.live.entry(family).or_default().get_mut(&key) {
            *live = value;
        }
        v.counts.flips += 1;
        Some(key)
    }

    /// An empty volume in its place.
    pub(crate) fn wipe(&self) {
        let mut v = self.lock();
        v.generation += 1;
        v.durable.clear();
        v.live.clear();
        v.wal.clear();
        v.mark = None;
        v.files = Default::default();
        v.counts.flips_before += std::mem::take(&mut v.counts.flips);
    }
}

pub(crate) fn io(what: &str) -> StoreError {
    StoreError::Io(what.into())
}

/// A process's handle.
#[derive(Debug)]
pub(crate) struct SimEngine {
    disk: Disk,
    generation: u64,
}

impl Volume {
    pub(crate) fn alive(&self, generation: u64) -> Result<(), StoreError> {
        if self.generation == generation {
            Ok(())
        } else {
            Err(io("this process is dead"))
        }
    }
}

fn scan(
    rows: Option<&BTreeMap<Vec<u8>, Bytes>>,
    range: &Range<'_>,
    limit: usize,
) -> Vec<(Vec<u8>, Bytes)> {
    let bounds = (Bound::Included(range.from), Bound::Excluded(range.to));
    if range.from >= range.to {
        return Vec::new();
    }
    rows.into_iter()
        .flat_map(|r| r.range::<[u8], _>(bounds))
        .take(limit)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Rows are handed out without the lock: the receiver may read again.
const PAGE: usize = 64;

impl Reads for SimEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let v = self.disk.lock();
        v.alive(self.generation)?;
        Ok(get(&v.live, family, key).map(|b| b.to_vec()))
    }
    fn has(&self, family: Family, key: &[u8]) -> Result<bool, StoreError> {
        let v = self.disk.lock();
        v.alive(self.generation)?;
        Ok(get(&v.live, family, key).is_some())
    }
    fn scan(&self, range: Range<'_>, row: &mut Row<'_>) -> Result<(), StoreError> {
        let mut from = range.from.to_vec();
        loop {
            let page = {
                let v = self.disk.lock();
                v.alive(self.generation)?;
                let rest = Range {
                    from: &from,
                    ..range.clone()
                };
                scan(v.live.get(range.family), &rest, PAGE)
            };
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = [last.as_slice(), &[0]].concat();
            for (key, value) in &page {
                if !row(key, value)? {
                    return Ok(());
                }
            }
        }
    }
}

impl Engine for SimEngine {
    fn last(&self, range: Range<'_>) -> Result<Option<OwnedRow>, StoreError> {
        let v = self.disk.lock();
        v.alive(self.generation)?;
        let bounds = (Bound::Included(range.from), Bound::Excluded(range.to));
        let rows = v.live.get(range.family);
        let last = rows.and_then(|r| r.range::<[u8], _>(bounds).next_back());
        Ok(last.map(|(k, v)| (k.clone(), v.to_vec())))
    }

    fn batch(&self, _: usize) -> Box<dyn Batch + '_> {
        Box::new(SimBatch {
            engine: self,
            changes: Vec::new(),
            octets: 0,
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut v = self.disk.lock();
        v.alive(self.generation)?;
        if v.failed {
            v.counts.after_error += 1;
            note!("disk {}: a sync after one that failed", v.name);
        }
        if std::mem::take(&mut v.faults.fail_sync) {
            v.failed = true;
            v.counts.errors += 1;
            note!("disk {}: sync fails", v.name);
            return Err(io("input/output error (simulated)"));
        }
        let upto = v.mark.take().unwrap_or(u64::MAX);
        v.counts.syncs += 1;
        if v.faults.lies {
            return Ok(());
        }
        let v = &mut *v;
        while v.synced < upto
            && let Some((changes, _)) = v.wal.pop_front()
        {
            changes.iter().for_each(|c| apply(&mut v.durable, c));
            v.synced += 1;
        }
        note!("disk {}: synced {}", v.name, v.synced);
        Ok(())
    }

    fn pin(&self) -> Box<dyn Reads + '_> {
        Box::new(Pinned(self.disk.lock().live.clone()))
    }
}

struct Pinned(Image);

impl Reads for Pinned {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(get(&self.0, family, key).map(|b| b.to_vec()))
    }
    fn has(&self, family: Family, key: &[u8]) -> Result<bool, StoreError> {
        Ok(get(&self.0, family, key).is_some())
    }
    fn scan(&self, range: Range<'_>, row: &mut Row<'_>) -> Result<(), StoreError> {
        for (key, value) in scan(self.0.get(range.family), &range, usize::MAX) {
            if !row(&key, &value)? {
                return Ok(());
            }
        }
        Ok(())
    }
}

struct SimBatch<'a> {
    engine: &'a SimEngine,
    changes: Vec<Change>,
    octets: usize,
}

impl Batch for SimBatch<'_> {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.octets += key.len() + value.len();
        let value = Bytes::copy_from_slice(value);
        self.changes.push(Change::Put(family, key.to_vec(), value));
    }
    fn delete(&mut self, family: Family, key: &[u8]) {
        self.octets += key.len();
        self.changes.push(Change::Delete(family, key.to_vec()));
    }
    fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        self.octets += from.len() + to.len();
        let change = Change::DeleteRange(family, from.to_vec(), to.to_vec());
        self.changes.push(change);
    }
    fn write(self: Box<Self>, patience: Patience) -> Result<Written, StoreError> {
        let disk = &self.engine.disk;
        {
            let mut v = disk.lock();
            v.alive(self.engine.generation)?;
            if std::mem::take(&mut v.faults.fail_write) {
                v.failed = true;
                v.counts.errors += 1;
                note!("disk {}: write fails", v.name);
                return Err(io("input/output error (simulated)"));
            }
            if v.faults.full {
                v.failed = true;
                v.counts.errors += 1;
                note!("disk {}: no space", v.name);
                return Err(io("no space left on device (simulated)"));
            }
            let stall = v.faults.stall;
            if patience == Patience::None && stall > 0 && v.chance.random_range(0..stall) == 0 {
                v.counts.stalls += 1;
                return Ok(Written::Stalled);
            }
            v.counts.batches += 1;
            let v = &mut *v;
            self.changes.iter().for_each(|c| apply(&mut v.live, c));
            v.wal.push_back((self.changes.clone(), self.octets));
        }
        disk.witness.wrote(disk, &self.changes);
        Ok(Written::Done)
    }
}
