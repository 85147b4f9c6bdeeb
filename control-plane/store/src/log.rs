//! Log records: positions, votes, entries.
use crate::{
    error::StoreError,
    layout::{Fields, LOG, META},
};
use bytes::Bytes;

/// Where an entry stands, and under which leader it was made. Ordered as Raft orders logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Term of the leader.
    pub term: u64,
    /// Node id of the leader.
    pub node: u64,
    /// From 1 (the first entry of a fresh group is 0 or 1).
    pub index: u64,
}

/// A vote. Ordered as openraft orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VoteRecord {
    /// Term.
    pub term: u64,
    /// Candidate or leader.
    pub node: u64,
    /// Granted by a quorum.
    pub committed: bool,
}

/// Ends of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    /// Last purged entry.
    pub purged: Option<LogPosition>,
    /// Last stored entry; `None` if the log is empty (then `purged` is the end).
    pub last: Option<LogPosition>,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Where.
    pub position: LogPosition,
    /// What.
    pub payload: StoredPayload,
}

/// What an entry carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPayload {
    /// Nothing: a leader's first entry.
    Blank,
    /// An encoded membership.
    Membership(Bytes),
    /// A command; `body` is stored apart and may be empty.
    Command {
        /// Encoded command.
        header: Bytes,
        /// Message octets.
        body: Bytes,
    },
}

pub(crate) fn encode_position(p: LogPosition) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&p.term.to_be_bytes());
    out[8..16].copy_from_slice(&p.node.to_be_bytes());
    out[16..].copy_from_slice(&p.index.to_be_bytes());
    out
}

pub(crate) fn read_position(f: &mut Fields) -> Result<LogPosition, StoreError> {
    Ok(LogPosition {
        term: f.u64()?,
        node: f.u64()?,
        index: f.u64()?,
    })
}

pub(crate) fn decode_position(bytes: Bytes) -> Result<LogPosition, StoreError> {
    read_position(&mut Fields::new(META, bytes))
}

pub(crate) fn encode_vote(v: VoteRecord) -> [u8; 17] {
    let mut out = [0; 17];
    out[..8].copy_from_slice(&v.term.to_be_bytes());
    out[8..16].copy_from_slice(&v.node.to_be_bytes());
    out[16] = u8::from(v.committed);
    out
}

pub(crate) fn read_vote(f: &mut Fields) -> Result<VoteRecord, StoreError> {
    Ok(VoteRecord {
        term: f.u64()?,
        node: f.u64()?,
        committed: f.u8()? != 0,
    })
}

/// Term, leader, index, kind, body length; the header octets follow.
pub(crate) fn encode_entry_prefix(e: &StoredEntry) -> [u8; 29] {
    let (kind, body_len) = match &e.payload {
        StoredPayload::Blank => (0, 0),
        StoredPayload::Membership(_) => (1, 0),
        StoredPayload::Command { body, .. } => (2, u32::try_from(body.len()).unwrap_or(u32::MAX)),
    };
    let mut out = [0; 29];
    out[..24].copy_from_slice(&encode_position(e.position));
    out[24] = kind;
    out[25..].copy_from_slice(&body_len.to_be_bytes());
    out
}

/// An entry without its body, and the body's length.
pub(crate) fn decode_entry(bytes: Bytes) -> Result<(StoredEntry, u32), StoreError> {
    let mut f = Fields::new(LOG, bytes);
    let position = read_position(&mut f)?;
    let kind = f.u8()?;
    let body_len = f.u32()?;
    let rest = f.rest();
    let payload = match kind {
        0 => StoredPayload::Blank,
        1 => StoredPayload::Membership(rest),
        2 => StoredPayload::Command {
            header: rest,
            body: Bytes::new(),
        },
        k => {
            return Err(StoreError::Corrupt {
                family: LOG,
                key: position.index.to_string(),
                reason: format!("entry kind {k} is not known"),
            });
        }
    };
    Ok((StoredEntry { position, payload }, body_len))
}
