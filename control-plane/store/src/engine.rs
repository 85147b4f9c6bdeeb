//! What the store needs of a database: ordered families of records behind one write-ahead log.
//!
//! RocksDB in the product ([`crate::rocks`]), a simulated disk in `tests/sim`. A batch is atomic, batches
//! become durable in the order in which they were written, and none of them before [`Engine::flush`]
//! returned: what a crash leaves is a prefix of the batches. Everything else (framing and checksums,
//! group commit, the order of callbacks, lifetimes of bodies) is above.
use crate::error::StoreError;

/// One of [`crate::layout::FAMILIES`].
pub type Family = &'static str;

/// Rows from a key on, in ascending order.
#[derive(Debug, Clone)]
pub struct Range<'a> {
    /// Where.
    pub family: Family,
    /// First key.
    pub from: &'a [u8],
    /// The key after the last.
    pub to: &'a [u8],
    /// Whether what is read is worth remembering.
    pub cache: bool,
}

/// A row on its own: key and value.
pub type OwnedRow = (Vec<u8>, Vec<u8>);

/// Takes a row; false ends the scan.
pub type Row<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, StoreError> + 'a;

/// Reading: now, or as of a pinned moment.
pub trait Reads {
    /// A record as it was put.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Whether there is one.
    fn has(&self, family: Family, key: &[u8]) -> Result<bool, StoreError>;
    /// Hands out rows one after another.
    fn scan(&self, range: Range<'_>, row: &mut Row<'_>) -> Result<(), StoreError>;
}

/// A database.
pub trait Engine: Reads + Send + Sync + std::fmt::Debug {
    /// The last row of a range.
    fn last(&self, range: Range<'_>) -> Result<Option<OwnedRow>, StoreError>;
    /// An empty batch for about so many octets.
    fn batch(&self, octets: usize) -> Box<dyn Batch + '_>;
    /// Makes durable all that was written before the call.
    fn flush(&self) -> Result<(), StoreError>;
    /// Reads as of now, for as long as it is kept.
    fn pin(&self) -> Box<dyn Reads + '_>;
}

/// Changes that happen together or not at all.
pub trait Batch {
    /// Sets a record.
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]);
    /// Removes one.
    fn delete(&mut self, family: Family, key: &[u8]);
    /// Removes those of `from..to`.
    fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]);
    /// Writes to log and memory, unsynced: readable when it returns.
    fn write(self: Box<Self>, patience: Patience) -> Result<Written, StoreError>;
}

/// What a write does while the database cannot take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It waits.
    Wait,
    /// It says so.
    None,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// It is written.
    Done,
    /// Nothing was written: the database is stalled.
    Stalled,
}
