//! Column families, keys and record framing: the disk format.
//!
//! | family      | key                              | value                         |
//! |-------------|----------------------------------|-------------------------------|
//! | `raft_meta` | group, field octet               | vote, purged, committed, applied, identity |
//! | `raft_log`  | group, index                     | entry header                  |
//! | `body`      | group, index                     | message octets (blob file)    |
//! | `body_gc`   | group, index                     | empty: released, not purged   |
//! | `sm`        | group, table octet, key          | record of the state machine   |
//!
//! Numbers are big-endian. Every value but the empty one is framed: version octet, payload,
//! CRC-32C (little-endian) of both.
use crate::error::StoreError;
use bytes::Bytes;
use sealane_types::GroupId;

/// Version octet of every record.
pub(crate) const VERSION: u8 = 1;
const CRC: usize = 4;

pub(crate) const META: &str = "raft_meta";
pub(crate) const LOG: &str = "raft_log";
pub(crate) const BODY: &str = "body";
pub(crate) const BODY_GC: &str = "body_gc";
pub(crate) const SM: &str = "sm";
pub(crate) const FAMILIES: [&str; 5] = [META, LOG, BODY, BODY_GC, SM];

/// Field octet of `raft_meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Meta {
    Vote = 1,
    Purged = 2,
    Committed = 3,
    Applied = 4,
    Installing = 5,
    /// How far the logs of other members are known to be durable and committed.
    Witnessed = 6,
    /// How far the log was when this replica was emptied.
    Emptied = 7,
    Identity = 16,
    Incarnation = 17,
}

pub(crate) fn meta_key(group: GroupId, field: Meta) -> [u8; 5] {
    let mut k = [0; 5];
    k[..4].copy_from_slice(&group.0.to_be_bytes());
    k[4] = field as u8;
    k
}

pub(crate) fn index_key(group: GroupId, index: u64) -> [u8; 12] {
    let mut k = [0; 12];
    k[..4].copy_from_slice(&group.0.to_be_bytes());
    k[4..].copy_from_slice(&index.to_be_bytes());
    k
}

/// The index of a key of `raft_log`, `body` or `body_gc`, if it belongs to `group`.
pub(crate) fn key_index(group: GroupId, key: &[u8]) -> Option<u64> {
    let (g, index) = key.split_at_checked(4)?;
    (g == group.0.to_be_bytes()).then_some(())?;
    Some(u64::from_be_bytes(index.try_into().ok()?))
}

pub(crate) fn sm_key(group: GroupId, table: u8, key: &[u8]) -> Vec<u8> {
    let mut k = Vec::with_capacity(5 + key.len());
    k.extend_from_slice(&group.0.to_be_bytes());
    k.push(table);
    k.extend_from_slice(key);
    k
}

pub(crate) fn frame(payload: &[&[u8]]) -> Vec<u8> {
    let len: usize = payload.iter().map(|p| p.len()).sum();
    let mut out = Vec::with_capacity(1 + len + CRC);
    out.push(VERSION);
    payload.iter().for_each(|p| out.extend_from_slice(p));
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

pub(crate) fn unframe(
    family: &'static str,
    key: &[u8],
    value: Vec<u8>,
) -> Result<Bytes, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt {
        family,
        key: hex(key),
        reason,
    };
    let Some(body) = value.len().checked_sub(CRC).filter(|n| *n >= 1) else {
        return Err(corrupt(format!("{} octets", value.len())));
    };
    let (framed, crc) = value.split_at(body);
    let computed = crc32c::crc32c(framed);
    if crc != computed.to_le_bytes() {
        return Err(corrupt("checksum does not match".into()));
    }
    if framed[0] != VERSION {
        return Err(corrupt(format!("version {} is not known", framed[0])));
    }
    Ok(Bytes::from(value).slice(1..body))
}

pub(crate) fn hex(key: &[u8]) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads fixed-width fields; running out is an error of the record.
pub(crate) struct Fields {
    rest: Bytes,
    family: &'static str,
}

impl Fields {
    pub(crate) fn new(family: &'static str, rest: Bytes) -> Self {
        Self { rest, family }
    }
    fn take(&mut self, n: usize) -> Result<Bytes, StoreError> {
        if self.rest.len() < n {
            return Err(StoreError::Corrupt {
                family: self.family,
                key: String::new(),
                reason: "too short".into(),
            });
        }
        Ok(self.rest.split_to(n))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, StoreError> {
        Ok(self.take(1)?[0])
    }
    pub(crate) fn u32(&mut self) -> Result<u32, StoreError> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, StoreError> {
        let b = self.take(8)?;
        Ok(u64::from_be_bytes([
            b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7],
        ]))
    }
    pub(crate) fn bytes(&mut self) -> Result<Bytes, StoreError> {
        let n = self.u32()?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
    pub(crate) fn rest(self) -> Bytes {
        self.rest
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}
