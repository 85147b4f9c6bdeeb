//! The replicated state machine: what a committed log entry does to the stored tables.
//!
//! ```text
//!  entry (index, header, body length) ──► apply ──► puts and deletes, reply, effects
//!                                           ▲
//!                                     ReadTables (the same on every replica)
//! ```
//!
//! Pure, deterministic and total: no clock, no randomness, no panic. The only error is a broken
//! table. Entry points: [`apply`], [`queries`]. It does not know RocksDB, Raft or gRPC.
//!
//! Body rule: apply calls [`WriteTables::release_body`] for every body octet that nothing refers to
//! any more, and for the body of an entry that was not accepted. The store deletes it once its log
//! entry is purged too.
#![forbid(unsafe_code)]

mod apply;
mod hold;
mod meta;
mod nodes;
pub mod placement;
pub mod queries;
mod records;
mod restore;
mod shard;
mod tables;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;

pub use apply::{Effect, apply};
pub use shard::REMEMBER_MS;
pub use tables::{MemoryTables, ReadTables, Table, TableError, WriteTables};
