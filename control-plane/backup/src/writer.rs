//! Writing a backup as its groups come.
use crate::{
    BackupError, Digest,
    frame::{self, Kind},
    rows,
};
use prost::Message;
use sealane_wire::v1;
use sha2::{Digest as _, Sha256};
use std::io::Write;

/// Writes to `W`; a backup is complete once [`Writer::finish`] returned.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    mark: Mark,
    shards: u32,
    /// Records of the open group, and their digest.
    group: Option<(u64, Sha256)>,
}

/// A place between two groups.
#[derive(Debug, Clone)]
pub struct Mark {
    at: u64,
    frames: u64,
    digest: Sha256,
    next: u32,
}

impl Mark {
    /// Octets before it.
    pub fn offset(&self) -> u64 {
        self.at
    }
}

fn wrong(what: impl Into<String>) -> BackupError {
    BackupError::Io(what.into())
}

impl<W: Write> Writer<W> {
    /// Begins a backup.
    pub fn new(out: W, header: &v1::BackupHeader) -> Result<Self, BackupError> {
        let mut writer = Self {
            out,
            mark: Mark {
                at: 0,
                frames: 0,
                digest: Sha256::new(),
                next: 0,
            },
            shards: header.shards,
            group: None,
        };
        writer.put(&frame::preamble())?;
        writer.frame(Kind::Header, &header.encode_to_vec())?;
        Ok(writer)
    }

    fn put(&mut self, octets: &[u8]) -> Result<(), BackupError> {
        self.out.write_all(octets)?;
        self.mark.digest.update(octets);
        self.mark.at += octets.len() as u64;
        Ok(())
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<(), BackupError> {
        let raw = frame::encode(kind, payload)
            .ok_or_else(|| wrong(format!("{} octets do not fit a frame", payload.len())))?;
        self.put(&raw)?;
        self.mark.frames += 1;
        Ok(())
    }

    /// Begins the next group: 0, 1, … shards.
    pub fn group(&mut self, group: &v1::BackupGroup) -> Result<(), BackupError> {
        if self.group.is_some() || group.group != self.mark.next || group.group > self.shards {
            return Err(wrong(format!("group {} is not the next one", group.group)));
        }
        self.group = Some((0, Sha256::new()));
        self.frame(Kind::Group, &group.encode_to_vec())
    }

    /// Records of the open group, in their order: table number (0: a body), key, value. Gives the
    /// CRC-32C of their encoding, which is that of a snapshot's batch.
    pub fn records<'a>(
        &mut self,
        records: impl IntoIterator<Item = (u8, &'a [u8], &'a [u8])>,
    ) -> Result<u32, BackupError> {
        let mut payload = Vec::new();
        let mut number = 0;
        for (table, key, value) in records {
            rows::encode(&mut payload, table, key, value)
                .ok_or_else(|| wrong("a record of more than 4 GiB"))?;
            number += 1;
        }
        let Some((count, digest)) = &mut self.group else {
            return Err(wrong("records outside of a group"));
        };
        *count += number;
        digest.update(&payload);
        self.frame(Kind::Records, &payload)?;
        Ok(crc32c::crc32c(&payload))
    }

    /// Ends the open group, if number and digest of its records are those that its leader sent.
    pub fn end_group(&mut self, records: u64, sha256: &[u8]) -> Result<(), BackupError> {
        let Some((count, digest)) = self.group.take() else {
            return Err(wrong("no group is open"));
        };
        let digest: Digest = digest.finalize().into();
        if count != records || digest != sha256 {
            return Err(wrong("count or digest of the group does not match"));
        }
        let payload = [count.to_be_bytes().as_slice(), &digest].concat();
        self.frame(Kind::End, &payload)?;
        self.mark.next += 1;
        Ok(())
    }

    /// Here, between two groups.
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Forgets everything behind `mark`. The caller cuts the output there with what this gives.
    pub fn back_to(&mut self, mark: &Mark) -> &mut W {
        self.group = None;
        self.mark = mark.clone();
        &mut self.out
    }

    /// Ends the backup; gives the output and the backup's name.
    pub fn finish(mut self) -> Result<(W, Digest), BackupError> {
        if self.group.is_some() || self.mark.next != self.shards.saturating_add(1) {
            return Err(wrong(format!(
                "{} groups are missing",
                self.shards + 1 - self.mark.next
            )));
        }
        let digest: Digest = self.mark.digest.clone().finalize().into();
        let payload = [self.mark.frames.to_be_bytes().as_slice(), &digest].concat();
        self.frame(Kind::Trailer, &payload)?;
        self.out.flush()?;
        Ok((self.out, digest))
    }
}
