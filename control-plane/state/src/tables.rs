//! The tables that the state machine reads and writes, and an in-memory implementation for tests.
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A table of one group. The number is part of the disk format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// message id → `MessageRecord`
    Message = 1,
    /// message id, recipient number (u16 BE) → `RecipientRecord`
    Recipient = 2,
    /// message id → `DedupeRecord`
    Dedupe = 3,
    /// message id, sequence (u32 BE) → `UploadRecord`
    Upload = 4,
    /// empty key → `ClockRecord`
    Clock = 5,
    /// empty key → `ClusterRecord`; "restore" → `RestoreRecord` (in shards too)
    Cluster = 6,
    /// node id (u64 BE) → `NodeRecord`
    Node = 7,
    /// "Kind/name" → `Document`; empty key → revision (u64 BE)
    Policy = 8,
    /// log index (u64 BE) → `AuditRecord`
    Audit = 9,
    /// empty key → `PlacementRecord`; group (u32 BE) → `GroupReport`
    Placement = 10,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; 10] = [
        Table::Message,
        Table::Recipient,
        Table::Dedupe,
        Table::Upload,
        Table::Clock,
        Table::Cluster,
        Table::Node,
        Table::Policy,
        Table::Audit,
        Table::Placement,
    ];

    /// The table of that number.
    pub fn from_number(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == n)
    }
}

/// Storage failed or holds what it never wrote: final for the process.
#[derive(Debug, Clone, thiserror::Error)]
#[error("table {table:?}: {reason}")]
pub struct TableError {
    /// Where.
    pub table: Table,
    /// What is wrong.
    pub reason: String,
}

/// Reading. Keys are relative to the group.
pub trait ReadTables {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, TableError>;
    /// Rows in ascending key order from `start` (inclusive) to `end` (exclusive; empty: the table's end), at most `limit`.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, TableError>;
}

/// Writing; a read sees the writes before it.
pub trait WriteTables: ReadTables {
    /// Sets a value.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]);
    /// Removes a key.
    fn delete(&mut self, table: Table, key: &[u8]);
    /// Nothing refers to the body of this log entry any more.
    fn release_body(&mut self, log_index: u64);
}

/// Tables in memory, for tests and models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryTables {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// Bodies released so far.
    pub released: BTreeSet<u64>,
}

impl ReadTables for MemoryTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        Ok(self
            .rows
            .get(&(table, key.to_vec()))
            .map(|v| Bytes::copy_from_slice(v)))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, TableError> {
        Ok(self
            .rows
            .range((table, start.to_vec())..)
            .take_while(|((t, k), _)| *t == table && (end.is_empty() || k.as_slice() < end))
            .take(limit)
            .map(|((_, k), v)| (Bytes::copy_from_slice(k), Bytes::copy_from_slice(v)))
            .collect())
    }
}

impl WriteTables for MemoryTables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.rows.insert((table, key.to_vec()), value.to_vec());
    }
    fn delete(&mut self, table: Table, key: &[u8]) {
        self.rows.remove(&(table, key.to_vec()));
    }
    fn release_body(&mut self, log_index: u64) {
        self.released.insert(log_index);
    }
}
