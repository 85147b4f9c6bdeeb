//! The backup file: written as the groups come, verified whole, then read at any place.
//!
//! ```text
//!  file    = "SEALBKUP"  version (u32)  frame*
//!  frame   = kind (u8)  length (u32)  payload  CRC-32C (u32) of kind, length and payload
//!  order   = HEADER ( GROUP RECORDS* END )* TRAILER      groups 0, 1, … shards, each once
//!  HEADER  = BackupHeader          GROUP = BackupGroup    (protobuf, proto/sealane/v1/backup.proto)
//!  RECORDS = ( table (u8)  length (u32)  key  length (u32)  value )*
//!  END     = number of the group's records (u64)  SHA-256 of its RECORDS payloads
//!  TRAILER = number of frames before it (u64)  SHA-256 of all octets before it
//! ```
//!
//! Numbers are big-endian. Records stand in the order of a snapshot: tables upwards, bodies last, keys
//! upwards; count and digest of a group are those that its leader computed while it sent them. So one
//! flipped octet, one missing octet or one too many anywhere is found by [`Catalog::read`], which is the
//! only way to an [`Archive`]: nothing of a damaged file is ever used.
//!
//! Memory is bounded by the largest frame ([`FRAME`]) and some octets per frame of the file, whatever
//! the file says. Pure but for [`std::io`] traits: it opens no file and knows no network.
#![forbid(unsafe_code)]

mod archive;
mod catalog;
mod frame;
mod rows;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
mod writer;

pub use archive::{Archive, Message, Messages, Scan};
pub use catalog::{Catalog, Group};
pub use frame::FRAME;
pub use rows::Row;
pub use sealane_state::Table;
pub use writer::{Mark, Writer};

/// SHA-256 of everything before the trailer: the name of a backup.
pub type Digest = [u8; 32];

/// Why a backup cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It begins with something else.
    #[error("this is no Sealane backup: it does not begin with SEALBKUP")]
    Foreign,
    /// Written by another version of this format.
    #[error(
        "version {0} of the backup format is not known here: restore it with the software that made it"
    )]
    Version(u32),
    /// Not what was written. Nothing of it is to be used.
    #[error("the backup is damaged at octet {at}: {what}")]
    Damaged {
        /// Offset in the file.
        at: u64,
        /// What is wrong there.
        what: String,
    },
    /// Every octet is as written, but the state in it does not hold together.
    #[error("group {group}: {what}")]
    Inconsistent {
        /// Of which group.
        group: u32,
        /// What is wrong.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(String),
}

impl From<std::io::Error> for BackupError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e.to_string())
    }
}
