//! Reading a backup from its first octet to its last, and remembering what is where.
use crate::{
    BackupError, Digest,
    frame::{self, Frame, Kind, damaged},
    rows::{self, Row, rank},
};
use bytes::Bytes;
use prost::Message;
use sealane_state::Table;
use sealane_wire::v1;
use sha2::{Digest as _, Sha256};
use std::io::Read;

/// A backup whose every octet was verified, and where its frames are.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog {
    /// What it is a backup of.
    pub header: v1::BackupHeader,
    /// Its name.
    pub digest: Digest,
    /// Octets of the file.
    pub octets: u64,
    /// Group 0, then the shards.
    pub groups: Vec<Group>,
}

/// One group in a backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Where it was.
    pub position: v1::BackupGroup,
    /// Number of its records.
    pub records: u64,
    /// Octets of its bodies.
    pub body_octets: u64,
    /// Its frames with records.
    pub(crate) frames: Vec<FrameRef>,
}

/// Where records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameRef {
    pub(crate) at: u64,
    /// Table and key of the first of them.
    pub(crate) first: (u8, Bytes),
}

impl Catalog {
    /// Reads all of `input`. `progress` hears of octets read.
    pub fn read(input: &mut impl Read, mut progress: impl FnMut(u64)) -> Result<Self, BackupError> {
        let preamble = frame::read_preamble(input)?;
        let mut pass = Pass {
            at: preamble.len() as u64,
            frames: 0,
            digest: Sha256::new_with_prefix(preamble),
        };
        let first = pass.expect(input, Kind::Header, "its header is missing")?;
        let header = decode::<v1::BackupHeader>(&first)?;
        let mut groups = Vec::new();
        loop {
            let next = pass.next(input)?;
            match next {
                Some(f) if f.kind == Kind::Group => {
                    let group = pass.group(input, &f, &header, groups.len(), &mut progress)?;
                    groups.push(group);
                }
                Some(f) if f.kind == Kind::Trailer => {
                    let digest = pass.trailer(input, &f)?;
                    if groups.len() as u64 != u64::from(header.shards) + 1 {
                        return Err(damaged(f.at, "groups are missing"));
                    }
                    progress(pass.at);
                    return Ok(Self {
                        header,
                        digest,
                        octets: pass.at,
                        groups,
                    });
                }
                Some(f) => return Err(damaged(f.at, format!("a frame {:?} here", f.kind))),
                None => return Err(damaged(pass.at, "its trailer is missing: it was cut off")),
            }
        }
    }
}

fn decode<M: Message + Default>(f: &Frame) -> Result<M, BackupError> {
    M::decode(f.payload.clone()).map_err(|e| damaged(f.at, e.to_string()))
}

/// A number and a digest, the payload of END and TRAILER.
fn seal(f: &Frame) -> Result<(u64, Digest), BackupError> {
    let split = f.payload.split_first_chunk::<8>();
    split
        .and_then(|(n, digest)| Some((u64::from_be_bytes(*n), digest.try_into().ok()?)))
        .ok_or_else(|| damaged(f.at, "a seal of another length"))
}

/// How far the reading is.
struct Pass {
    at: u64,
    frames: u64,
    /// Of everything before the last frame that [`Pass::next`] gave, and of it unless it is the trailer.
    digest: Sha256,
}

impl Pass {
    fn next(&mut self, input: &mut impl Read) -> Result<Option<Frame>, BackupError> {
        let Some(f) = frame::read(input, self.at)? else {
            return Ok(None);
        };
        self.at += f.raw.len() as u64;
        if f.kind != Kind::Trailer {
            self.digest.update(&f.raw);
            self.frames += 1;
        }
        Ok(Some(f))
    }

    fn expect(
        &mut self,
        input: &mut impl Read,
        kind: Kind,
        missing: &str,
    ) -> Result<Frame, BackupError> {
        let at = self.at;
        self.next(input)?
            .filter(|f| f.kind == kind)
            .ok_or_else(|| damaged(at, missing))
    }

    fn trailer(&mut self, input: &mut impl Read, f: &Frame) -> Result<Digest, BackupError> {
        let (frames, digest) = seal(f)?;
        let found: Digest = self.digest.clone().finalize().into();
        if frames != self.frames || digest != found {
            return Err(damaged(f.at, "digest of the file does not match"));
        }
        if input.read(&mut [0])? > 0 {
            return Err(damaged(self.at, "something follows its trailer"));
        }
        Ok(digest)
    }

    fn group(
        &mut self,
        input: &mut impl Read,
        f: &Frame,
        header: &v1::BackupHeader,
        number: usize,
        progress: &mut impl FnMut(u64),
    ) -> Result<Group, BackupError> {
        let position = decode::<v1::BackupGroup>(f)?;
        if u64::from(position.group) != number as u64 || position.group > header.shards {
            return Err(damaged(f.at, format!("group {} here", position.group)));
        }
        let mut group = Group {
            position,
            records: 0,
            body_octets: 0,
            frames: Vec::new(),
        };
        let mut digest = Sha256::new();
        let mut last: Option<Row> = None;
        loop {
            let at = self.at;
            let f = self
                .next(input)?
                .ok_or_else(|| damaged(at, "it ends within a group: it was cut off"))?;
            progress(self.at);
            match f.kind {
                Kind::Records => {
                    digest.update(&f.payload);
                    last = group.take(&f, last)?;
                }
                Kind::End => {
                    let found: Digest = digest.finalize().into();
                    if seal(&f)? != (group.records, found) {
                        return Err(damaged(f.at, "count or digest of a group does not match"));
                    }
                    return Ok(group);
                }
                other => return Err(damaged(f.at, format!("a frame {other:?} within a group"))),
            }
        }
    }
}

impl Group {
    /// Adds a frame; `last` is the record before it, the answer the last one in it.
    fn take(&mut self, f: &Frame, mut last: Option<Row>) -> Result<Option<Row>, BackupError> {
        let mut payload = f.payload.clone();
        let mut first = None;
        while let Some(row) = rows::next(&mut payload).map_err(|what| damaged(f.at, what))? {
            if last.is_some_and(|l| l.place() >= row.place()) {
                return Err(damaged(f.at, "records out of order"));
            }
            if row.table.is_none() {
                self.body_octets += row.value.len() as u64;
            }
            // Not a slice, which would keep the frame in memory.
            first.get_or_insert_with(|| (rank(row.table), Bytes::copy_from_slice(&row.key)));
            self.records += 1;
            last = Some(row);
        }
        if let Some(first) = first {
            self.frames.push(FrameRef { at: f.at, first });
        }
        Ok(last)
    }

    /// The first frame that may hold this record or one behind it.
    pub(crate) fn frame_of(&self, table: Option<Table>, key: &[u8]) -> usize {
        let before = |f: &FrameRef| (f.first.0, f.first.1.as_ref()) <= (rank(table), key);
        self.frames.partition_point(before).saturating_sub(1)
    }
}
