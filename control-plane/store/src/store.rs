//! Opening a volume; what belongs to the node rather than to a group.
use crate::{
    error::StoreError,
    group::{GroupShared, GroupStore},
    hwm::HighWater,
    layout::{
        self, BODY, FAMILIES, Fields, LOG, META, Meta, SM, VERSION, frame, meta_key, put_bytes,
        unframe,
    },
    log::LogPosition,
    snapshot,
    syncer::{OnFatal, Syncer},
};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, LruCacheOptions, WriteOptions,
};
use sealane_types::GroupId;
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Who this volume belongs to. Written once, synced, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Unique per founding.
    pub cluster_id: String,
    /// As in the certificates.
    pub cluster_name: String,
    /// Allocated by the metadata group.
    pub node_id: u64,
    /// Queue shards of the cluster.
    pub shards: u32,
    /// Voters per group.
    pub replicas: u32,
}

/// How a volume is opened.
#[derive(Clone)]
pub struct Options {
    /// Octets of block cache.
    pub cache: usize,
    /// Octets of all memtables together.
    pub write_buffers: usize,
    /// Called once when storage has failed; the default ends the process.
    pub on_fatal: OnFatal,
    /// Runs a write that has to wait because the database is stalled; the default just runs it. An
    /// async caller moves its other work away first.
    pub on_stall: OnStall,
}

/// Runs the closure, which may block for long.
pub type OnStall = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("cache", &self.cache)
            .field("write_buffers", &self.write_buffers)
            .finish()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: 64 << 20,
            write_buffers: 256 << 20,
            on_fatal: Arc::new(|_| std::process::abort()),
            on_stall: Arc::new(|write| write()),
        }
    }
}

/// The database of one node.
#[derive(Debug)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

/// Shared by the store and its groups.
pub(crate) struct Core {
    pub(crate) db: Arc<DB>,
    pub(crate) syncer: Syncer,
    pub(crate) hwm: Arc<Mutex<HighWater>>,
    pub(crate) dir: PathBuf,
    on_stall: OnStall,
    groups: Mutex<BTreeMap<GroupId, Arc<GroupShared>>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("dir", &self.dir).finish()
    }
}

impl Core {
    pub(crate) fn cf(&self, name: &str) -> &rocksdb::ColumnFamily {
        self.db.cf_handle(name).expect("every family is opened")
    }

    pub(crate) fn get(
        &self,
        family: &'static str,
        key: &[u8],
    ) -> Result<Option<bytes::Bytes>, StoreError> {
        let read = || {
            let value = self.db.get_cf(self.cf(family), key)?;
            value.map(|v| unframe(family, key, v)).transpose()
        };
        self.noticed(read())
    }

    /// A volume on which a read finds damage takes part in nothing any more, and does not come back: who
    /// serves the rest of it would answer for what it lost. Others have copies.
    pub(crate) fn noticed<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        read.map_err(|e| self.notice(e))
    }

    /// The same for an error on its way.
    pub(crate) fn notice(&self, e: StoreError) -> StoreError {
        if e.is_damage() {
            self.syncer.poison(&e);
        }
        e
    }

    /// Writes a batch to WAL buffer and memtable, unsynced. A failure is final.
    ///
    /// Usually this takes microseconds and happens on the caller's thread. While the database is
    /// stalled (flushes do not keep up) nothing was written at first: the batch is made again, and
    /// the write waits where [`Options::on_stall`] lets it.
    pub(crate) fn write(
        &self,
        batch: impl Fn() -> Result<rocksdb::WriteBatch, StoreError>,
    ) -> Result<(), StoreError> {
        self.syncer.check()?;
        let mut options = WriteOptions::default();
        options.set_no_slowdown(true);
        let written = match self.db.write_opt(batch()?, &options) {
            Err(e) if e.kind() == rocksdb::ErrorKind::Incomplete => {
                let again = batch()?;
                let mut again = Some(again);
                let mut written = Ok(());
                (self.on_stall)(&mut || {
                    if let Some(batch) = again.take() {
                        written = self.db.write_opt(batch, &WriteOptions::default());
                    }
                });
                written
            }
            other => other,
        };
        written.map_err(|e| {
            let e = StoreError::from(e);
            self.syncer.poison(&e);
            e
        })
    }

    /// The same for a caller that may block.
    pub(crate) fn write_once(&self, batch: rocksdb::WriteBatch) -> Result<(), StoreError> {
        self.syncer.check()?;
        self.db
            .write_opt(batch, &WriteOptions::default())
            .map_err(|e| {
                let e = StoreError::from(e);
                self.syncer.poison(&e);
                e
            })
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.syncer.check()?;
        self.db.flush_wal(true).map_err(|e| {
            let e = StoreError::from(e);
            self.syncer.poison(&e);
            e
        })
    }
}

fn db_options(o: &Options) -> rocksdb::Options {
    let mut db = rocksdb::Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_manual_wal_flush(true);
    db.set_recycle_log_file_num(0);
    db.set_paranoid_checks(true);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_db_write_buffer_size(o.write_buffers);
    db.set_max_total_wal_size(512 << 20);
    db.set_max_background_jobs(2);
    db.set_bytes_per_sync(1 << 20);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db
}

fn family(name: &str, o: &Options, cache: &Cache) -> ColumnFamilyDescriptor {
    let mut cf = rocksdb::Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    // In pieces: whole, the index and the filter of a large file are read again and again, for no part
    // of the cache is large enough to keep them (seen with 350,000 waiting messages).
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    cf.set_block_based_table_factory(&table);
    cf.set_compression_type(DBCompressionType::Lz4);
    cf.set_level_compaction_dynamic_level_bytes(true);
    match name {
        BODY => {
            // Values live in blob files: compaction moves references, not mail.
            cf.set_enable_blob_files(true);
            cf.set_min_blob_size(4 << 10);
            cf.set_enable_blob_gc(true);
            cf.set_blob_gc_age_cutoff(0.5);
            cf.set_blob_file_size(64 << 20);
            cf.set_write_buffer_size((o.write_buffers / 4).max(8 << 20));
        }
        LOG | SM => cf.set_write_buffer_size((o.write_buffers / 8).max(4 << 20)),
        _ => cf.set_write_buffer_size(4 << 20),
    }
    ColumnFamilyDescriptor::new(name, cf)
}

/// Opens the database; says what it found if the WAL had to be cut short.
///
/// A power loss leaves any part of what was not synced, in any order, so damage at the end of the WAL is
/// ordinary: refusing it would keep nodes from starting after every outage. RocksDB cannot tell what was
/// synced; the high-water mark can. So damage ends the WAL only where there is a mark to hold what is left
/// against: whatever was promised before must be there (P14).
fn open_database(
    dir: &Path,
    options: &Options,
    cache: &Cache,
    marked: bool,
) -> Result<(DB, Option<StoreError>), StoreError> {
    let open = |mode| {
        let mut all = db_options(options);
        all.set_wal_recovery_mode(mode);
        let families = FAMILIES.iter().map(|f| family(f, options, cache));
        DB::open_cf_descriptors(&all, dir.join("db"), families)
    };
    match open(DBRecoveryMode::TolerateCorruptedTailRecords) {
        Ok(db) => Ok((db, None)),
        Err(e) => {
            let found = StoreError::from(e);
            if !marked || !found.is_damage() {
                return Err(found);
            }
            // If it is not the WAL, this finds the same.
            match open(DBRecoveryMode::PointInTime) {
                Ok(db) => Ok((db, Some(found))),
                Err(_) => Err(found),
            }
        }
    }
}

impl Store {
    /// Opens or creates the volume at `dir`; finishes what a crash interrupted; refuses a volume that forgot.
    pub fn open(dir: &Path, options: Options) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)?;
        check_format(dir)?;
        check_damaged(dir)?;
        let mut lru = LruCacheOptions::default();
        lru.set_capacity(options.cache);
        // Few large parts: the callers are few.
        lru.set_num_shard_bits(2);
        let cache = Cache::new_lru_cache_opts(&lru);
        let hwm = HighWater::open(&dir.join("high-water"))?;
        let (db, shortened) = open_database(dir, &options, &cache, !hwm.marks.is_empty())?;
        let db = Arc::new(db);
        hwm.sync_regularly()?;
        let hwm = Arc::new(Mutex::new(hwm));
        let on_fatal = marking(dir, options.on_fatal.clone());
        let syncer = Syncer::start(db.clone(), hwm.clone(), on_fatal)?;
        let core = Arc::new(Core {
            db,
            syncer,
            hwm,
            dir: dir.to_owned(),
            on_stall: options.on_stall.clone(),
            groups: Mutex::default(),
        });
        let store = Self { core };
        let recovered = store.recover();
        if let Some(why) = shortened {
            // Opening it again would find a sound, shorter WAL: what is missing is written down now.
            if let Err(e) = &recovered {
                mark_damaged(dir, e)?;
            }
            tracing::warn!(
                damage = %why,
                "the WAL ended in damage: what was never synced is gone, as after a power loss"
            );
        }
        recovered.map(|()| store)
    }

    /// Checks every group against the high-water mark and finishes interrupted snapshot installs.
    fn recover(&self) -> Result<(), StoreError> {
        let groups = match self.identity()? {
            Some(i) => (0..=i.shards).map(GroupId).collect(),
            None => Vec::new(),
        };
        let marked: Vec<GroupId> = self
            .core
            .hwm
            .lock()
            .expect("no panic while held")
            .marks
            .keys()
            .copied()
            .collect();
        if groups.is_empty() && !marked.is_empty() {
            return Err(StoreError::Lost {
                group: 0,
                what: "its identity".into(),
            });
        }
        for id in groups {
            let group = self.group(id);
            snapshot::recover(&group)?;
            let state = group.log_state()?;
            let vote = group.read_vote()?;
            self.core.hwm.lock().expect("no panic while held").check(
                id,
                vote,
                state.last.or(state.purged),
            )?;
        }
        snapshot::remove_orphans(&self.core.dir)
    }

    /// Refuses a volume whose log is behind what a peer got from this node as durable: an old copy of
    /// the whole volume holds an old high-water mark too.
    ///
    /// # Errors
    /// [`StoreError::Lost`].
    pub fn check_against(&self, group: GroupId, durable: LogPosition) -> Result<(), StoreError> {
        let state = self.group(group).log_state()?;
        let last = state.last.or(state.purged);
        if last < Some(durable) {
            return Err(StoreError::Lost {
                group: group.0,
                what: format!("log entries (has {last:?}, a peer was given {durable:?})"),
            });
        }
        Ok(())
    }

    /// The volume's identity, once it has one.
    pub fn identity(&self) -> Result<Option<NodeIdentity>, StoreError> {
        let Some(bytes) = self
            .core
            .get(META, &meta_key(GroupId::META, Meta::Identity))?
        else {
            return Ok(None);
        };
        let mut f = Fields::new(META, bytes);
        let text = |b: bytes::Bytes| String::from_utf8_lossy(&b).into_owned();
        Ok(Some(NodeIdentity {
            node_id: f.u64()?,
            shards: f.u32()?,
            replicas: f.u32()?,
            cluster_id: text(f.bytes()?),
            cluster_name: text(f.bytes()?),
        }))
    }

    /// Gives the volume its identity, synced. It never changes.
    pub fn set_identity(&self, i: &NodeIdentity) -> Result<(), StoreError> {
        if let Some(old) = self.identity()? {
            return if old == *i {
                Ok(())
            } else {
                Err(StoreError::Io("the volume has an identity already".into()))
            };
        }
        let mut out = Vec::new();
        out.extend_from_slice(&i.node_id.to_be_bytes());
        out.extend_from_slice(&i.shards.to_be_bytes());
        out.extend_from_slice(&i.replicas.to_be_bytes());
        put_bytes(&mut out, i.cluster_id.as_bytes());
        put_bytes(&mut out, i.cluster_name.as_bytes());
        self.put_meta(Meta::Identity, &out)
    }

    /// 16 octets that name this volume; `fresh` if it has none yet. Synced before it returns.
    pub fn incarnation(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        if let Some(b) = self
            .core
            .get(META, &meta_key(GroupId::META, Meta::Incarnation))?
        {
            return b.as_ref().try_into().map_err(|_| StoreError::Corrupt {
                family: META,
                key: "incarnation".into(),
                reason: "needs 16 octets".into(),
            });
        }
        self.put_meta(Meta::Incarnation, &fresh)?;
        Ok(fresh)
    }

    fn put_meta(&self, field: Meta, payload: &[u8]) -> Result<(), StoreError> {
        self.core.write(|| {
            let mut batch = rocksdb::WriteBatch::default();
            let key = meta_key(GroupId::META, field);
            batch.put_cf(self.core.cf(META), key, frame(&[payload]));
            Ok(batch)
        })?;
        self.core.sync()
    }

    /// The storage of one group. Handles of one group share their state.
    pub fn group(&self, id: GroupId) -> GroupStore {
        let mut groups = self.core.groups.lock().expect("no panic while held");
        let shared = groups
            .entry(id)
            .or_insert_with(|| Arc::new(GroupShared::new(id)))
            .clone();
        GroupStore {
            core: self.core.clone(),
            shared,
        }
    }

    /// Octets free on the volume.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let s = nix::sys::statvfs::statvfs(&self.core.dir)
            .map_err(|e| StoreError::Io(e.to_string()))?;
        Ok(s.blocks_available().saturating_mul(s.fragment_size()))
    }

    /// Registers the Prometheus metrics of the store.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.core.syncer.metrics.register(registry);
    }

    /// Syncs, writes the high-water mark, stops the syncer.
    pub fn shutdown(&self) {
        self.core.syncer.shutdown();
        if self.core.sync().is_ok()
            && let Err(e) = self
                .core
                .hwm
                .lock()
                .expect("no panic while held")
                .write(true)
        {
            tracing::warn!(error = %e, "high-water mark not written at shutdown");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.core.syncer.shutdown();
    }
}

/// Its text is the damage that was found.
const DAMAGED: &str = "DAMAGED";

/// Writes down why this volume must not be used again, then does what was to be done. After a failed
/// sync the kernel may show what the disk never got (P4): whoever opens it next cannot know. A full
/// disk is no damage.
fn marking(dir: &Path, then: OnFatal) -> OnFatal {
    let dir = dir.to_owned();
    Arc::new(move |e| {
        if e.is_suspicious()
            && let Err(unwritten) = mark_damaged(&dir, e)
        {
            tracing::warn!(error = %unwritten, "the damage is not written down");
        }
        then(e);
    })
}

fn mark_damaged(dir: &Path, damage: &StoreError) -> std::io::Result<()> {
    let mut file = std::fs::File::create(dir.join(DAMAGED))?;
    file.write_all(damage.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(dir)?.sync_all()
}

/// What was found damaged once is not tried again: the next reader may be one who does not notice.
fn check_damaged(dir: &Path) -> Result<(), StoreError> {
    match std::fs::read(dir.join(DAMAGED)) {
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).into_owned();
            let first = found.split(". Nothing on").next().unwrap_or_default();
            Err(StoreError::Damaged(format!("found earlier: {first}")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The volume says which format it has before anything of it is read.
fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("FORMAT");
    match std::fs::read(&path) {
        Ok(b) => match b.first() {
            Some(v) if *v == VERSION => Ok(()),
            Some(v) => Err(StoreError::Format {
                found: *v,
                known: VERSION,
            }),
            None => Err(StoreError::Corrupt {
                family: "FORMAT",
                key: layout::hex(&b),
                reason: "empty".into(),
            }),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if dir.join("db").exists() {
                return Err(StoreError::Format {
                    found: 0,
                    known: VERSION,
                });
            }
            // Durable before the database exists: a volume without it would be refused.
            let mut file = std::fs::File::create(&path)?;
            file.write_all(&[VERSION])?;
            file.sync_all()?;
            std::fs::File::open(dir)?.sync_all()?;
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}
