//! Storage of a control-plane node: one RocksDB for the logs, bodies and state machines of all groups.
//!
//! ```text
//!  append, save_vote ─ write batch ─► RocksDB (WAL buffered, memtable)
//!            └ callback ─► syncer thread: one flush_wal(true) for all groups ─► callbacks in order
//!  transaction().commit() ─ one unsynced batch per run of applied entries
//! ```
//!
//! - A callback runs only after the sync that covers its write (P1); votes take the same way (P2, P3).
//! - Any write or sync error is final: every later call fails and the process is told to die (P4).
//! - The log of a group is earlier in the WAL than the state it produced: after a crash the state
//!   is never ahead of the log.
//! - A body is deleted when nothing refers to it **and** its log entry is purged.
//! - Damage ends the WAL only if everything that was promised is before it: the high-water mark file tells
//!   a volume that forgot (P14). It is written after each sync and synced every second.
//! - Everything is read now and then ([`Scrub`]).
//! - Damage that a read finds ends the process, and the volume is refused from then on.
//! - A volume that is full can be opened: a ballast file gives its space back before it is.
//!
//! It is the only user of RocksDB and knows nothing of Raft's algorithm. What it needs of RocksDB and of
//! the file system are two small seams ([`engine`], [`files`]), so that a simulation can lose power.
#![forbid(unsafe_code)]

mod ballast;
pub mod engine;
mod error;
pub mod files;
mod group;
mod hwm;
pub mod inspect;
mod layout;
mod log;
mod recent;
mod rocks;
mod scrub;
mod snapshot;
mod store;
mod syncer;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod transaction;

pub use error::StoreError;
pub use group::GroupStore;
pub use log::{LogPosition, LogState, StoredEntry, StoredPayload, VoteRecord};
pub use scrub::Scrub;
pub use snapshot::{Export, SnapshotRecord, SnapshotStage, StagedSnapshot};
pub use store::{NodeIdentity, OnStall, Options, Store};
pub use syncer::{Drive, Flushed, Next, Pump};
pub use transaction::{Applied, ApplyTxn, Reader};
