//! One group's state, streamed to another node and installed there.
//!
//! Exported: every record of the state machine and every body that something refers to, from a
//! pinned RocksDB snapshot, in batches with CRC, with count and SHA-256 at the end. Received:
//! staged to a file, checked, synced; then installed under a marker, so that a crash at any step
//! redoes the install from the file.
use crate::{
    engine::Range,
    error::StoreError,
    files::{Cursor, Files, How},
    group::GroupStore,
    layout::{
        BODY, BODY_GC, META, Meta, SM, frame, index_key, meta_key, put_bytes, sm_key, unframe,
    },
    transaction::Applied,
};
use bytes::Bytes;
use sealane_mutants::{Mutant::M11, mutant};
use sha2::{Digest, Sha256};
use std::{
    io::{BufReader, BufWriter, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Octets per exported batch, beyond its first record.
const BATCH: usize = 1 << 20;
/// Number that stands for the body family in a snapshot; tables have their own.
const BODY_TABLE: u8 = 0;
const PREFIX: &str = "snapshot-";
/// Numbers the staged files of this process; those of earlier ones are removed when the store opens.
static STAGED: AtomicU64 = AtomicU64::new(0);

/// A row of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Table number; 0 is a body.
    pub table: u8,
    /// Key within table and group.
    pub key: Bytes,
    /// Payload.
    pub value: Bytes,
}

/// What an export yields, in this order.
#[derive(Debug)]
pub enum Export {
    /// The position of all that follows.
    Start(Applied),
    /// Records and their checksum.
    Batch(Vec<SnapshotRecord>, u32),
    /// Number of records and digest of all.
    End(u64, [u8; 32]),
}

/// CRC-32C over the encoded records.
pub(crate) fn checksum(records: &[SnapshotRecord]) -> u32 {
    crc32c::crc32c(&encode(records))
}

pub(crate) fn encode(records: &[SnapshotRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    for r in records {
        out.push(r.table);
        for b in [&r.key, &r.value] {
            out.extend_from_slice(&u32::try_from(b.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(b);
        }
    }
    out
}

impl GroupStore {
    /// Streams the group's state as of now to `sink`, which may block.
    pub fn export<E: From<StoreError>>(
        &self,
        mut sink: impl FnMut(Export) -> Result<(), E>,
    ) -> Result<(), E> {
        let pinned = self.core.engine.pin();
        let key = meta_key(self.id(), Meta::Applied);
        let applied = pinned
            .get(META, &key)
            .map_err(|e| self.core.notice(e))?
            .map(|v| unframe(META, &key, v).and_then(Applied::decode))
            .transpose()
            .map_err(|e| self.core.notice(e))?
            .unwrap_or_default();
        let last = applied.last.map_or(0, |p| p.index);
        sink(Export::Start(applied))?;
        let (mut count, mut digest) = (0u64, Sha256::new());
        let (mut batch, mut size) = (Vec::new(), 0usize);
        let mut push = |record: Option<SnapshotRecord>| -> Result<(), E> {
            let flush = record.is_none();
            if let Some(r) = record {
                size += r.key.len() + r.value.len();
                count += 1;
                batch.push(r);
            }
            if !batch.is_empty() && (flush || size >= BATCH) {
                let full = std::mem::take(&mut batch);
                size = 0;
                let encoded = encode(&full);
                digest.update(&encoded);
                sink(Export::Batch(full, crc32c::crc32c(&encoded)))?;
            }
            Ok(())
        };
        let group = self.id();
        let (sm, bodies) = (
            (sm_key(group, 0, b""), sm_key(group, u8::MAX, b"")),
            (
                index_key(group, 0),
                index_key(group, last.saturating_add(1)),
            ),
        );
        let range = |family, from, to| Range {
            family,
            from,
            to,
            cache: false,
        };
        // A refusal of the sink ends the scan, and is what is returned.
        let mut refused = Ok(());
        let read = pinned.scan(range(SM, &sm.0, &sm.1), &mut |key, value| {
            refused = push(Some(SnapshotRecord {
                table: key.get(4).copied().unwrap_or_default(),
                key: Bytes::copy_from_slice(key).slice(5..),
                value: unframe(SM, key, value.to_vec())?,
            }));
            Ok(refused.is_ok())
        });
        self.core.noticed(read)?;
        refused?;
        let mut refused = Ok(());
        let read = pinned.scan(range(BODY, &bodies.0, &bodies.1), &mut |key, value| {
            if pinned.has(BODY_GC, key)? {
                return Ok(true);
            }
            refused = push(Some(SnapshotRecord {
                table: BODY_TABLE,
                key: Bytes::copy_from_slice(key).slice(4..),
                value: unframe(BODY, key, value.to_vec())?,
            }));
            Ok(refused.is_ok())
        });
        self.core.noticed(read)?;
        refused?;
        push(None)?;
        sink(Export::End(count, digest.finalize().into()))
    }

    /// Begins to receive a snapshot.
    pub fn stage_snapshot(&self) -> Result<SnapshotStage, StoreError> {
        // Two leaders may send at once, and a leader again before its broken stream is noticed: a file each.
        let number = STAGED.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}.part", self.id());
        let files = self.core.files.clone();
        let file = BufWriter::new(Cursor::new(files.open(&name, How::New)?));
        Ok(SnapshotStage {
            name,
            files,
            file,
            count: 0,
            digest: Sha256::new(),
        })
    }

    /// Replaces the group's state by a staged snapshot. Synced when it returns.
    pub fn install(&self, staged: StagedSnapshot, applied: Applied) -> Result<(), StoreError> {
        self.mark_installing(&staged, &applied)?;
        self.load(&staged.name, &applied)
    }

    /// From here on the install is redone from the file after a crash.
    pub(crate) fn mark_installing(
        &self,
        staged: &StagedSnapshot,
        applied: &Applied,
    ) -> Result<(), StoreError> {
        let mut payload = Vec::new();
        put_bytes(&mut payload, &applied.encode());
        payload.extend_from_slice(staged.name.as_bytes());
        self.core.write_once(|batch| {
            self.put_meta(batch, Meta::Installing, &payload);
            Ok(())
        })?;
        self.core.sync()
    }

    /// Idempotent: wipes, loads, and only then removes marker and file.
    fn load(&self, name: &str, applied: &Applied) -> Result<(), StoreError> {
        let group = self.id();
        let _guard = self.shared.bodies.lock().expect("no panic while held");
        self.shared.forget_clock();
        let last = applied.last.map_or(0, |p| p.index);
        self.core.write_once(|wipe| {
            let (start, end) = (sm_key(group, 0, b""), sm_key(group, u8::MAX, b""));
            wipe.delete_range(SM, &start, &end);
            // Bodies of log entries behind the snapshot stay.
            let (start, end) = (
                index_key(group, 0),
                index_key(group, last.saturating_add(1)),
            );
            wipe.delete_range(BODY, &start, &end);
            wipe.delete_range(BODY_GC, &start, &end);
            Ok(())
        })?;
        let mut file = BufReader::new(Cursor::new(self.core.files.open(name, How::Read)?));
        while let Some(records) = read_batch(&mut file)? {
            self.core.write_once(|batch| {
                for r in records {
                    if r.table == BODY_TABLE {
                        let index = r
                            .key
                            .as_ref()
                            .try_into()
                            .map(u64::from_be_bytes)
                            .map_err(|_| damaged("body key"))?;
                        batch.put(BODY, &index_key(group, index), &frame(&[&r.value]));
                    } else {
                        let key = sm_key(group, r.table, &r.key);
                        batch.put(SM, &key, &frame(&[&r.value]));
                    }
                }
                Ok(())
            })?;
        }
        self.core.write_once(|done| {
            self.put_meta(done, Meta::Applied, &applied.encode());
            done.delete(META, &meta_key(group, Meta::Installing));
            Ok(())
        })?;
        self.core.sync()?;
        self.core.files.remove(name)?;
        Ok(())
    }
}

fn damaged(reason: &str) -> StoreError {
    StoreError::Corrupt {
        family: "snapshot",
        key: String::new(),
        reason: reason.into(),
    }
}

fn read_batch(file: &mut impl Read) -> Result<Option<Vec<SnapshotRecord>>, StoreError> {
    let mut head = [0; 8];
    match file.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let (len, crc) = head.split_at(4);
    let len =
        usize::try_from(u32::from_be_bytes([len[0], len[1], len[2], len[3]])).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() != len || crc != crc32c::crc32c(&bytes).to_be_bytes() {
        return Err(damaged("batch checksum does not match"));
    }
    let mut f = crate::layout::Fields::new("snapshot", bytes.into());
    let mut out = Vec::new();
    while let Ok(table) = f.u8() {
        out.push(SnapshotRecord {
            table,
            key: f.bytes()?,
            value: f.bytes()?,
        });
    }
    Ok(Some(out))
}

/// A snapshot being received.
#[derive(Debug)]
pub struct SnapshotStage {
    name: String,
    files: Arc<dyn Files>,
    file: BufWriter<Cursor>,
    count: u64,
    digest: Sha256,
}

impl SnapshotStage {
    /// Adds a batch as it was exported.
    pub fn write(&mut self, records: &[SnapshotRecord], crc: u32) -> Result<(), StoreError> {
        if checksum(records) != crc {
            return Err(damaged("batch checksum does not match"));
        }
        let encoded = encode(records);
        self.digest.update(&encoded);
        self.count += records.len() as u64;
        self.file.write_all(
            &u32::try_from(encoded.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        )?;
        self.file.write_all(&crc.to_be_bytes())?;
        self.file.write_all(&encoded)?;
        Ok(())
    }

    /// Checks number and digest, makes the file durable.
    pub fn finish(self, records: u64, sha256: &[u8]) -> Result<StagedSnapshot, StoreError> {
        let found: [u8; 32] = self.digest.finalize().into();
        if records != self.count || (sha256 != found && !mutant(M11)) {
            let _ = self.files.remove(&self.name);
            return Err(damaged("count or digest does not match"));
        }
        let file = self
            .file
            .into_inner()
            .map_err(|e| StoreError::Io(e.to_string()))?;
        file.file.sync()?;
        self.files.sync_names()?;
        Ok(StagedSnapshot { name: self.name })
    }
}

/// A complete, durable, verified snapshot that is not installed yet.
#[derive(Debug)]
pub struct StagedSnapshot {
    name: String,
}

/// Finishes an install that a crash interrupted.
pub(crate) fn recover(group: &GroupStore) -> Result<(), StoreError> {
    let Some(marker) = group.meta(Meta::Installing)? else {
        return Ok(());
    };
    let mut f = crate::layout::Fields::new(META, marker);
    let applied = Applied::decode(f.bytes()?)?;
    let name = String::from_utf8_lossy(&f.rest()).into_owned();
    tracing::info!(group = %group.id(), file = %name, "finishing an interrupted snapshot install");
    // Everything was loaded and only the file's removal was lost? Then the marker would be gone: the file must exist.
    group.load(&name, &applied)
}

/// Removes staged files that no marker names.
pub(crate) fn remove_orphans(files: &dyn Files) -> Result<(), StoreError> {
    for name in files.names()?.iter().filter(|n| n.starts_with(PREFIX)) {
        files.remove(name)?;
    }
    Ok(())
}
