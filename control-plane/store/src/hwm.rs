//! The high-water mark: a small file beside the database that remembers how far votes and logs were synced.
//!
//! If the database is behind it, the volume forgot what this node had promised to others (an old
//! copy was put back, or synced data was lost): the node must not vote. Three slots, each with sequence number
//! and CRC: one is known to be on the disk and is not touched, one may just be on its way there, one is
//! written. However often it is written between two syncs, a loss of power leaves a whole one.
use crate::{
    error::StoreError,
    files::{Files, How, VolumeFile},
    layout::Fields,
    log::{LogPosition, VoteRecord, encode_position, encode_vote, read_position, read_vote},
    syncer::{OnFatal, Wrote},
};
use bytes::Bytes;
use sealane_types::GroupId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const NAME: &str = "high-water";
const SLOT: u64 = 32 << 10;
const SLOTS: u64 = 3;
const MAGIC: &[u8; 4] = b"SLHW";
/// How often the file is written while there is always something to sync.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) last: Option<LogPosition>,
}

#[derive(Debug)]
pub(crate) struct HighWater {
    file: Box<dyn VolumeFile>,
    sequence: u64,
    slots: Arc<Mutex<Slots>>,
    pub(crate) marks: BTreeMap<GroupId, Mark>,
    written: Instant,
    clock: fn() -> Instant,
    /// Something was noted since.
    pending: bool,
    /// Ends the thread that syncs the file.
    open: Arc<()>,
}

/// Which slot holds what.
#[derive(Debug, Default)]
struct Slots {
    /// On the disk.
    safe: Option<u64>,
    /// A sync that began after it was written has not ended.
    syncing: Option<u64>,
    /// Written last.
    last: Option<u64>,
}

impl Slots {
    fn free(&self) -> u64 {
        let taken = |slot: &u64| Some(*slot) == self.safe || Some(*slot) == self.syncing;
        (0..SLOTS).find(|slot| !taken(slot)).unwrap_or(0)
    }
    fn begin_sync(&mut self) {
        self.syncing = self.last;
    }
    fn end_sync(&mut self) {
        self.safe = self.syncing.take().or(self.safe);
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HighWater {
    /// Where there is a database there is a mark: it is written before the database is made.
    pub(crate) fn open(
        files: &dyn Files,
        clock: fn() -> Instant,
        database: bool,
    ) -> Result<Self, StoreError> {
        let file = files.open(NAME, How::Keep)?;
        let newest = (0..SLOTS)
            .filter_map(|slot| Some((slot, read_slot(file.as_ref(), slot * SLOT)?)))
            .max_by_key(|(_, (seq, _))| *seq);
        let mut slots = Slots::default();
        let (sequence, marks) = match newest {
            Some((slot, found)) => {
                // What is read may be on its way to the disk still.
                file.sync()?;
                slots.safe = Some(slot);
                found
            }
            None if database => {
                return Err(StoreError::Corrupt {
                    family: NAME,
                    key: String::new(),
                    reason: "no part of it is whole".into(),
                });
            }
            None => Default::default(),
        };
        let fresh = slots.safe.is_none();
        let mut opened = Self {
            file,
            sequence,
            slots: Arc::new(Mutex::new(slots)),
            marks,
            written: clock(),
            clock,
            pending: false,
            open: Arc::default(),
        };
        if fresh {
            opened.write(true)?;
            files.sync_names()?;
        }
        Ok(opened)
    }

    /// Syncs the file every [`EVERY`] for as long as it is open, away from the syncer: after a power loss the
    /// mark is at most so old. A sync that fails is told to `failed`, and not tried again (P4): an older mark
    /// would let a volume pass that forgot.
    pub(crate) fn sync_regularly(
        &self,
        files: &dyn Files,
        failed: OnFatal,
    ) -> Result<(), StoreError> {
        let file = files.open(NAME, How::Keep)?;
        let open = Arc::downgrade(&self.open);
        let slots = self.slots.clone();
        std::thread::Builder::new()
            .name("high-water".into())
            .spawn(move || {
                while open.strong_count() > 0 {
                    std::thread::sleep(EVERY);
                    lock(&slots).begin_sync();
                    if let Err(e) = file.sync() {
                        tracing::error!(error = %e, "high-water mark not synced");
                        failed(&e.into());
                        return;
                    }
                    lock(&slots).end_sync();
                }
            })?;
        Ok(())
    }

    /// Notes what a sync covered; writes the file when it is old. Otherwise [`Self::rest`] does.
    pub(crate) fn note(&mut self, writes: impl Iterator<Item = (GroupId, Wrote)>) {
        for (group, wrote) in writes {
            let mark = self.marks.entry(group).or_default();
            match wrote {
                Wrote::Log(p) => mark.last = Some(p),
                Wrote::Vote(v) => mark.vote = Some(v),
                Wrote::Nothing => continue,
            }
            self.pending = true;
        }
        if (self.clock)().duration_since(self.written) >= EVERY
            && let Err(e) = self.write(false)
        {
            tracing::warn!(error = %e, "high-water mark not written");
        }
    }

    /// Nothing is to be synced now: what was noted last is not left out until something is.
    pub(crate) fn rest(&mut self) {
        if self.pending
            && let Err(e) = self.write(false)
        {
            tracing::warn!(error = %e, "high-water mark not written");
        }
    }

    /// A truncation makes the log legitimately shorter: remembered durably before it happens.
    pub(crate) fn lower(
        &mut self,
        group: GroupId,
        last: Option<LogPosition>,
    ) -> Result<(), StoreError> {
        self.marks.entry(group).or_default().last = last;
        self.write(true)
    }

    pub(crate) fn write(&mut self, sync: bool) -> Result<(), StoreError> {
        self.sequence += 1;
        let mut payload = Vec::new();
        for (group, m) in &self.marks {
            payload.extend_from_slice(&group.0.to_be_bytes());
            payload.push(u8::from(m.vote.is_some()));
            payload.extend_from_slice(&encode_vote(m.vote.unwrap_or(VoteRecord {
                term: 0,
                node: 0,
                committed: false,
            })));
            payload.push(u8::from(m.last.is_some()));
            payload.extend_from_slice(&encode_position(m.last.unwrap_or(LogPosition {
                term: 0,
                node: 0,
                index: 0,
            })));
        }
        let mut slot = Vec::with_capacity(payload.len() + 20);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&self.sequence.to_be_bytes());
        slot.extend_from_slice(
            &u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        slot.extend_from_slice(&payload);
        slot.extend_from_slice(&crc32c::crc32c(&slot).to_be_bytes());
        {
            // Held while it is written: a sync must not begin half-way and vouch for all of it.
            let mut slots = lock(&self.slots);
            let at = slots.free();
            self.file.write_at(&slot, at * SLOT)?;
            slots.last = Some(at);
        }
        if sync {
            self.file.sync()?;
            let mut slots = lock(&self.slots);
            slots.safe = slots.last;
            slots.syncing = None;
        }
        self.written = (self.clock)();
        self.pending = false;
        Ok(())
    }

    /// Refuses a volume whose recovered vote or log is behind the mark.
    pub(crate) fn check(
        &self,
        group: GroupId,
        vote: Option<VoteRecord>,
        last: Option<LogPosition>,
    ) -> Result<(), StoreError> {
        let Some(mark) = self.marks.get(&group) else {
            return Ok(());
        };
        let lost = |what| {
            Err(StoreError::Lost {
                group: group.0,
                what,
            })
        };
        if vote < mark.vote {
            return lost(format!("its vote (has {vote:?}, had {:?})", mark.vote));
        }
        // Whatever the vote: a log becomes shorter only after the mark did.
        if last < mark.last {
            return lost(format!("log entries (has {last:?}, had {:?})", mark.last));
        }
        Ok(())
    }
}

fn read_exact(file: &dyn VolumeFile, mut buf: &mut [u8], mut at: u64) -> Option<()> {
    while !buf.is_empty() {
        let n = file.read_at(buf, at).ok().filter(|n| *n > 0)?;
        buf = buf.get_mut(n..)?;
        at += n as u64;
    }
    Some(())
}

fn read_slot(file: &dyn VolumeFile, at: u64) -> Option<(u64, BTreeMap<GroupId, Mark>)> {
    let mut head = [0; 16];
    read_exact(file, &mut head, at)?;
    let (magic, rest) = head.split_at(4);
    (magic == MAGIC).then_some(())?;
    let sequence = u64::from_be_bytes(rest[..8].try_into().ok()?);
    let len = u32::from_be_bytes(rest[8..].try_into().ok()?);
    (u64::from(len) < SLOT - 20).then_some(())?;
    let mut body = vec![0; usize::try_from(len).ok()? + 4];
    read_exact(file, &mut body, at + 16)?;
    let crc = body.split_off(body.len() - 4);
    let computed = crc32c::crc32c_append(crc32c::crc32c(&head), &body);
    (crc == computed.to_be_bytes()).then_some(())?;
    let mut marks = BTreeMap::new();
    for row in body.chunks_exact(47) {
        let mut f = Fields::new("hwm", Bytes::copy_from_slice(row));
        let group = GroupId(f.u32().ok()?);
        let has_vote = f.u8().ok()? == 1;
        let vote = read_vote(&mut f).ok()?;
        let has_last = f.u8().ok()? == 1;
        let last = read_position(&mut f).ok()?;
        marks.insert(
            group,
            Mark {
                vote: has_vote.then_some(vote),
                last: has_last.then_some(last),
            },
        );
    }
    Some((sequence, marks))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::files::Folder;

    fn mark(index: u64) -> (GroupId, Wrote) {
        let position = LogPosition {
            term: 1,
            node: 1,
            index,
        };
        (GroupId(1), Wrote::Log(position))
    }

    fn index(h: &HighWater) -> u64 {
        h.marks[&GroupId(1)].last.map_or(0, |p| p.index)
    }

    #[test]
    fn whatever_was_not_synced_may_be_lost_or_torn_and_the_mark_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let files = Folder(dir.path().to_owned());
        let path = dir.path().join(NAME);
        let mut h = HighWater::open(&files, Instant::now, false).unwrap();
        for round in 1..20u64 {
            let synced = std::fs::read(&path).unwrap();
            let safe = round * 100 - 100;
            // Many writes, and a sync that does not end: all of them may be torn.
            for n in 1..=7 {
                h.note([mark(safe + n)].into_iter());
                h.rest();
                if n == 4 {
                    lock(&h.slots).begin_sync();
                }
            }
            let mut torn = std::fs::read(&path).unwrap();
            torn.resize(usize::try_from(SLOT * SLOTS).unwrap(), 0);
            for (at, octet) in torn.iter_mut().enumerate() {
                if synced.get(at) != Some(octet) && at % 2 == 0 {
                    *octet ^= 0x55;
                }
            }
            let other = tempfile::tempdir().unwrap();
            std::fs::write(other.path().join(NAME), torn).unwrap();
            let found = HighWater::open(&Folder(other.path().to_owned()), Instant::now, true);
            let found = found.unwrap();
            if round > 1 {
                assert!(index(&found) >= safe, "round {round}: {}", index(&found));
            }
            lock(&h.slots).end_sync();
            h.note([mark(round * 100)].into_iter());
            h.write(true).unwrap();
        }
    }

    #[test]
    fn a_database_without_a_whole_mark_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = Folder(dir.path().to_owned());
        drop(HighWater::open(&files, Instant::now, false).unwrap());
        assert!(HighWater::open(&files, Instant::now, true).is_ok());
        let path = dir.path().join(NAME);
        for damaged in [b"SLHW".to_vec(), Vec::new()] {
            std::fs::write(&path, damaged).unwrap();
            let found = HighWater::open(&files, Instant::now, true);
            assert!(found.is_err_and(|e| e.is_damage()));
        }
    }

    #[test]
    fn a_log_that_is_shorter_is_refused_whatever_the_vote() {
        let dir = tempfile::tempdir().unwrap();
        let files = Folder(dir.path().to_owned());
        let mut h = HighWater::open(&files, Instant::now, false).unwrap();
        let vote = |term| VoteRecord {
            term,
            node: 1,
            committed: false,
        };
        h.note([(GroupId(1), Wrote::Vote(vote(1))), mark(9)].into_iter());
        let at = |index| {
            Some(LogPosition {
                term: 1,
                node: 1,
                index,
            })
        };
        assert!(h.check(GroupId(1), Some(vote(1)), at(9)).is_ok());
        assert!(h.check(GroupId(1), Some(vote(2)), at(9)).is_ok());
        assert!(h.check(GroupId(1), Some(vote(1)), at(8)).is_err());
        assert!(h.check(GroupId(1), Some(vote(2)), at(8)).is_err());
        assert!(h.check(GroupId(1), None, at(9)).is_err());
    }

    /// A disk on which every sync fails once it is sick.
    #[derive(Debug, Clone, Default)]
    struct Sick(Arc<std::sync::atomic::AtomicBool>);

    impl VolumeFile for Sick {
        fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> std::io::Result<()> {
            if self.0.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(std::io::Error::other("sick"));
            }
            Ok(())
        }
    }

    impl Files for Sick {
        fn open(&self, _: &str, _: How) -> std::io::Result<Box<dyn VolumeFile>> {
            Ok(Box::new(self.clone()))
        }
        fn names(&self) -> std::io::Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn remove(&self, _: &str) -> std::io::Result<()> {
            Ok(())
        }
        fn sync_names(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn free_bytes(&self) -> std::io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_mark_that_cannot_be_synced_is_final() {
        let disk = Sick::default();
        let hwm = HighWater::open(&disk, Instant::now, false).unwrap();
        disk.0.store(true, std::sync::atomic::Ordering::SeqCst);
        let (tell, told) = std::sync::mpsc::channel();
        let tell = std::sync::Mutex::new(tell);
        let failed: OnFatal = Arc::new(move |e| {
            let _gone = tell.lock().unwrap().send(e.to_string());
        });
        hwm.sync_regularly(&disk, failed).unwrap();
        let said = told.recv_timeout(10 * EVERY).unwrap();
        assert!(said.contains("sick"), "{said}");
        assert!(told.recv_timeout(2 * EVERY).is_err(), "it was tried again");
    }
}
