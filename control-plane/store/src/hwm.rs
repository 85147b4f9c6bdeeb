//! The high-water mark: a small file beside the database that remembers how far votes and logs were synced.
//!
//! If the database is behind it, the volume forgot what this node had promised to others (an old
//! copy was put back, or synced data was lost): the node must not vote. Two slots, written in turn,
//! each with sequence number and CRC, so that a torn write leaves the other.
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
    sync::Arc,
    time::{Duration, Instant},
};

const NAME: &str = "high-water";
const SLOT: u64 = 32 << 10;
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
    pub(crate) marks: BTreeMap<GroupId, Mark>,
    written: Instant,
    clock: fn() -> Instant,
    /// Something was noted since.
    pending: bool,
    /// Ends the thread that syncs the file.
    open: Arc<()>,
}

impl HighWater {
    pub(crate) fn open(files: &dyn Files, clock: fn() -> Instant) -> Result<Self, StoreError> {
        let file = files.open(NAME, How::Keep)?;
        let newest = [0, SLOT]
            .into_iter()
            .filter_map(|at| read_slot(file.as_ref(), at))
            .max_by_key(|(seq, _)| *seq);
        let (sequence, marks) = newest.unwrap_or_default();
        Ok(Self {
            file,
            sequence,
            marks,
            written: clock(),
            clock,
            pending: false,
            open: Arc::default(),
        })
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
        std::thread::Builder::new()
            .name("high-water".into())
            .spawn(move || {
                while open.strong_count() > 0 {
                    std::thread::sleep(EVERY);
                    if let Err(e) = file.sync() {
                        tracing::error!(error = %e, "high-water mark not synced");
                        failed(&e.into());
                        return;
                    }
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
        self.file.write_at(&slot, (self.sequence % 2) * SLOT)?;
        if sync {
            self.file.sync()?;
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
        if vote == mark.vote && last < mark.last {
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
    use std::{
        io,
        sync::{Mutex, mpsc},
    };

    /// A disk on which every sync fails.
    #[derive(Debug)]
    struct Sick;

    impl VolumeFile for Sick {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Err(io::Error::other("sick"))
        }
    }

    impl Files for Sick {
        fn open(&self, _: &str, _: How) -> io::Result<Box<dyn VolumeFile>> {
            Ok(Box::new(Self))
        }
        fn names(&self) -> io::Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn remove(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
        fn sync_names(&self) -> io::Result<()> {
            Ok(())
        }
        fn free_bytes(&self) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_mark_that_cannot_be_synced_is_final() {
        let hwm = HighWater::open(&Sick, Instant::now).unwrap();
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let failed: OnFatal = Arc::new(move |e| {
            let _gone = tell.lock().unwrap().send(e.to_string());
        });
        hwm.sync_regularly(&Sick, failed).unwrap();
        let said = told.recv_timeout(10 * EVERY).unwrap();
        assert!(said.contains("sick"), "{said}");
        assert!(told.recv_timeout(2 * EVERY).is_err(), "it was tried again");
    }
}
