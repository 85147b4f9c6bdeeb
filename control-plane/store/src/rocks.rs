//! The database of the product: the only code that names rocksdb.
use crate::{
    engine::{Batch, Engine, Family, OwnedRow, Patience, Range, Reads, Row, Written},
    error::StoreError,
    layout::{BODY, FAMILIES, LOG, SM},
    store::Options,
};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBAccess, DBCompressionType, DBRawIteratorWithThreadMode, DBRecoveryMode, LruCacheOptions,
    ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions,
};
use std::path::Path;

impl From<rocksdb::Error> for StoreError {
    fn from(e: rocksdb::Error) -> Self {
        match e.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged(e.to_string().trim().to_owned()),
            _ => Self::Io(e.to_string()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Rocks(DB);

struct RocksBatch<'a> {
    db: &'a DB,
    batch: WriteBatch,
}

struct Pinned<'a> {
    db: &'a DB,
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

fn handle(db: &DB, family: Family) -> &ColumnFamily {
    db.cf_handle(family).expect("every family is opened")
}

impl Rocks {
    /// Opens the database; says what it found if the WAL had to be cut short.
    ///
    /// A power loss leaves any part of what was not synced, in any order, so damage at the end of the WAL is
    /// ordinary: refusing it would keep nodes from starting after every outage. RocksDB cannot tell what was
    /// synced; the high-water mark can, and without one no database is opened. So damage ends the WAL, and what is
    /// left is held against the mark: whatever it knows to be promised must be there (P14).
    ///
    /// What is left is a prefix of all batches, or this is refused too: recovery to a point in time stops at
    /// the first damage, drops later files, and finds tables that are ahead of where it stopped.
    pub(crate) fn open(
        dir: &Path,
        options: &Options,
    ) -> Result<(Self, Option<StoreError>), StoreError> {
        let mut lru = LruCacheOptions::default();
        lru.set_capacity(options.cache);
        // Few large parts: the callers are few.
        lru.set_num_shard_bits(2);
        let cache = Cache::new_lru_cache_opts(&lru);
        let open = |mode| {
            let mut all = db_options(options);
            all.set_wal_recovery_mode(mode);
            let families = FAMILIES.iter().map(|f| family(f, options, &cache));
            DB::open_cf_descriptors(&all, dir, families)
        };
        match open(DBRecoveryMode::TolerateCorruptedTailRecords) {
            Ok(db) => Ok((Self(db), None)),
            Err(e) => {
                let found = StoreError::from(e);
                if !found.is_damage() {
                    return Err(found);
                }
                // If it is not the WAL, this finds the same.
                match open(DBRecoveryMode::PointInTime) {
                    Ok(db) => Ok((Self(db), Some(found))),
                    Err(_) => Err(found),
                }
            }
        }
    }
}

fn scan<D: DBAccess>(
    mut rows: DBRawIteratorWithThreadMode<'_, D>,
    from: &[u8],
    row: &mut Row<'_>,
) -> Result<(), StoreError> {
    rows.seek(from);
    while let Some((key, value)) = rows.item() {
        if !row(key, value)? {
            return Ok(());
        }
        rows.next();
    }
    Ok(rows.status()?)
}

fn read_options(range: &Range<'_>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(range.to);
    options.fill_cache(range.cache);
    options
}

impl Reads for Rocks {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get_cf(handle(&self.0, family), key)?)
    }
    fn has(&self, family: Family, key: &[u8]) -> Result<bool, StoreError> {
        let found = self.0.get_pinned_cf(handle(&self.0, family), key)?;
        Ok(found.is_some())
    }
    fn scan(&self, range: Range<'_>, row: &mut Row<'_>) -> Result<(), StoreError> {
        let family = handle(&self.0, range.family);
        let rows = self.0.raw_iterator_cf_opt(family, read_options(&range));
        scan(rows, range.from, row)
    }
}

impl Engine for Rocks {
    fn last(&self, range: Range<'_>) -> Result<Option<OwnedRow>, StoreError> {
        let family = handle(&self.0, range.family);
        let mut options = read_options(&range);
        options.set_iterate_lower_bound(range.from);
        let mut rows = self.0.raw_iterator_cf_opt(family, options);
        rows.seek_to_last();
        let last = rows.item().map(|(k, v)| (k.to_vec(), v.to_vec()));
        rows.status()?;
        Ok(last)
    }
    fn batch(&self, octets: usize) -> Box<dyn Batch + '_> {
        Box::new(RocksBatch {
            db: &self.0,
            batch: WriteBatch::with_capacity_bytes(octets),
        })
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(self.0.flush_wal(true)?)
    }
    fn pin(&self) -> Box<dyn Reads + '_> {
        Box::new(Pinned {
            db: &self.0,
            snapshot: self.0.snapshot(),
        })
    }
}

impl Reads for Pinned<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.snapshot.get_cf(handle(self.db, family), key)?)
    }
    fn has(&self, family: Family, key: &[u8]) -> Result<bool, StoreError> {
        let found = self.snapshot.get_pinned_cf(handle(self.db, family), key)?;
        Ok(found.is_some())
    }
    fn scan(&self, range: Range<'_>, row: &mut Row<'_>) -> Result<(), StoreError> {
        let family = handle(self.db, range.family);
        let rows = self
            .snapshot
            .raw_iterator_cf_opt(family, read_options(&range));
        scan(rows, range.from, row)
    }
}

impl Batch for RocksBatch<'_> {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.batch.put_cf(handle(self.db, family), key, value);
    }
    fn delete(&mut self, family: Family, key: &[u8]) {
        self.batch.delete_cf(handle(self.db, family), key);
    }
    fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        self.batch
            .delete_range_cf(handle(self.db, family), from, to);
    }
    fn write(self: Box<Self>, patience: Patience) -> Result<Written, StoreError> {
        let mut options = WriteOptions::default();
        options.set_no_slowdown(patience == Patience::None);
        match self.db.write_opt(self.batch, &options) {
            Ok(()) => Ok(Written::Done),
            Err(e) if patience == Patience::None && e.kind() == rocksdb::ErrorKind::Incomplete => {
                Ok(Written::Stalled)
            }
            Err(e) => Err(e.into()),
        }
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
    // Most lookups are for what does not exist: an id that is new, a body that nobody released.
    cf.set_memtable_prefix_bloom_ratio(0.02);
    cf.set_memtable_whole_key_filtering(true);
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
