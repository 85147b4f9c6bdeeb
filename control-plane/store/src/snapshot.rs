//! One group's state, streamed to another node and installed there.
//!
//! Exported: every record of the state machine and every body that something refers to, from a
//! pinned RocksDB snapshot, in batches with CRC, with count and SHA-256 at the end. Received:
//! staged to a file, checked, synced; then installed under a marker, so that a crash at any step
//! redoes the install from the file.
use crate::{
    error::StoreError,
    group::GroupStore,
    layout::{
        BODY, BODY_GC, META, Meta, SM, frame, index_key, meta_key, put_bytes, sm_key, unframe,
    },
    transaction::Applied,
};
use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
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
fn checksum(records: &[SnapshotRecord]) -> u32 {
    crc32c::crc32c(&encode(records))
}

fn encode(records: &[SnapshotRecord]) -> Vec<u8> {
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
        let db = &self.core.db;
        let pinned = db.snapshot();
        let store = |e: rocksdb::Error| self.core.notice(StoreError::from(e));
        let key = meta_key(self.id(), Meta::Applied);
        let applied = pinned
            .get_cf(self.core.cf(META), key)
            .map_err(store)?
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
        let bound = |family: &'static str, lower: Vec<u8>, upper: Vec<u8>| {
            let mut o = ReadOptions::default();
            o.set_iterate_upper_bound(upper);
            o.fill_cache(false);
            pinned.iterator_cf_opt(
                self.core.cf(family),
                o,
                IteratorMode::From(&lower, Direction::Forward),
            )
        };
        let group = self.id();
        for row in bound(SM, sm_key(group, 0, b""), sm_key(group, u8::MAX, b"")) {
            let (key, value) = row.map_err(store)?;
            let value = self.core.noticed(unframe(SM, &key, value.into_vec()))?;
            let table = key.get(4).copied().unwrap_or_default();
            push(Some(SnapshotRecord {
                table,
                key: Bytes::from(key.into_vec()).slice(5..),
                value,
            }))?;
        }
        for row in bound(
            BODY,
            index_key(group, 0).to_vec(),
            index_key(group, last.saturating_add(1)).to_vec(),
        ) {
            let (key, value) = row.map_err(store)?;
            if pinned
                .get_cf(self.core.cf(BODY_GC), &key)
                .map_err(store)?
                .is_some()
            {
                continue;
            }
            let value = self.core.noticed(unframe(BODY, &key, value.into_vec()))?;
            push(Some(SnapshotRecord {
                table: BODY_TABLE,
                key: Bytes::from(key.into_vec()).slice(4..),
                value,
            }))?;
        }
        push(None)?;
        sink(Export::End(count, digest.finalize().into()))
    }

    /// Begins to receive a snapshot.
    pub fn stage_snapshot(&self) -> Result<SnapshotStage, StoreError> {
        // Two leaders may send at once, and a leader again before its broken stream is noticed: a file each.
        let number = STAGED.fetch_add(1, Ordering::Relaxed);
        let path = self
            .core
            .dir
            .join(format!("{PREFIX}{}-{number}.part", self.id()));
        let file = BufWriter::new(File::create_new(&path)?);
        Ok(SnapshotStage {
            path,
            file,
            count: 0,
            digest: Sha256::new(),
        })
    }

    /// Replaces the group's state by a staged snapshot. Synced when it returns.
    pub fn install(&self, staged: StagedSnapshot, applied: Applied) -> Result<(), StoreError> {
        self.mark_installing(&staged, &applied)?;
        self.load(&staged.path, &applied)
    }

    /// From here on the install is redone from the file after a crash.
    pub(crate) fn mark_installing(
        &self,
        staged: &StagedSnapshot,
        applied: &Applied,
    ) -> Result<(), StoreError> {
        let name = staged
            .path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut payload = Vec::new();
        put_bytes(&mut payload, &applied.encode());
        payload.extend_from_slice(name.as_bytes());
        let mut batch = WriteBatch::default();
        self.put_meta(&mut batch, Meta::Installing, &payload);
        self.core.write_once(batch)?;
        self.core.sync()
    }

    /// Idempotent: wipes, loads, and only then removes marker and file.
    fn load(&self, path: &Path, applied: &Applied) -> Result<(), StoreError> {
        let group = self.id();
        let _guard = self.shared.bodies.lock().expect("no panic while held");
        self.shared.forget_clock();
        let last = applied.last.map_or(0, |p| p.index);
        let mut wipe = WriteBatch::default();
        wipe.delete_range_cf(
            self.core.cf(SM),
            sm_key(group, 0, b""),
            sm_key(group, u8::MAX, b""),
        );
        // Bodies of log entries behind the snapshot stay.
        let end = index_key(group, last.saturating_add(1));
        wipe.delete_range_cf(self.core.cf(BODY), index_key(group, 0), end);
        wipe.delete_range_cf(self.core.cf(BODY_GC), index_key(group, 0), end);
        self.core.write_once(wipe)?;
        let mut file = BufReader::new(File::open(path)?);
        while let Some(records) = read_batch(&mut file)? {
            let mut batch = WriteBatch::default();
            for r in records {
                if r.table == BODY_TABLE {
                    let index = r
                        .key
                        .as_ref()
                        .try_into()
                        .map(u64::from_be_bytes)
                        .map_err(|_| damaged("body key"))?;
                    batch.put_cf(
                        self.core.cf(BODY),
                        index_key(group, index),
                        frame(&[&r.value]),
                    );
                } else {
                    batch.put_cf(
                        self.core.cf(SM),
                        sm_key(group, r.table, &r.key),
                        frame(&[&r.value]),
                    );
                }
            }
            self.core.write_once(batch)?;
        }
        let mut done = WriteBatch::default();
        self.put_meta(&mut done, Meta::Applied, &applied.encode());
        done.delete_cf(self.core.cf(META), meta_key(group, Meta::Installing));
        self.core.write_once(done)?;
        self.core.sync()?;
        std::fs::remove_file(path)?;
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
    path: PathBuf,
    file: BufWriter<File>,
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
        if records != self.count || sha256 != found {
            let _ = std::fs::remove_file(&self.path);
            return Err(damaged("count or digest does not match"));
        }
        let file = self
            .file
            .into_inner()
            .map_err(|e| StoreError::Io(e.to_string()))?;
        file.sync_all()?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(StagedSnapshot { path: self.path })
    }
}

/// A complete, durable, verified snapshot that is not installed yet.
#[derive(Debug)]
pub struct StagedSnapshot {
    path: PathBuf,
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
    let path = group.core.dir.join(name);
    // Everything was loaded and only the file's removal was lost? Then the marker would be gone: the file must exist.
    group.load(&path, &applied)
}

/// Removes staged files that no marker names.
pub(crate) fn remove_orphans(dir: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
