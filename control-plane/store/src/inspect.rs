//! What raw records say, for those who look at a volume from outside of a [`crate::Store`].
use crate::{
    engine::Family,
    error::StoreError,
    layout::{BODY, BODY_GC, Fields, LOG, META, Meta, SM, index_key, key_index, meta_key, unframe},
    log::{LogPosition, VoteRecord, decode_entry, decode_position, read_vote},
    transaction::Applied,
};
use bytes::Bytes;
use sealane_types::GroupId;

/// A record, with its checksum verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The vote of a group.
    Vote(VoteRecord),
    /// Where the log of a group begins.
    Purged(LogPosition),
    /// How far its state machine is.
    Applied(Applied),
    /// A snapshot is being installed.
    Installing,
    /// Whose volume this is.
    Identity(u64),
    /// An entry of the log, without its body.
    Entry(LogPosition),
    /// The body of an entry.
    Body(u64, Bytes),
    /// The body of this entry may go with it.
    Released(u64),
    /// A row of the state machine: table, key, value.
    Row(u8, Bytes, Bytes),
    /// Something else.
    Other,
}

/// Reads a record as an engine has it.
pub fn record(family: Family, key: &[u8], value: &[u8]) -> Result<(GroupId, Record), StoreError> {
    let group = key
        .first_chunk()
        .map_or(GroupId(u32::MAX), |g| GroupId(u32::from_be_bytes(*g)));
    let index = key_index(group, key);
    if family == BODY_GC {
        return Ok((group, index.map_or(Record::Other, Record::Released)));
    }
    let payload = unframe(family, key, value.to_vec())?;
    let field = key.get(4).copied();
    let is = |f: Meta| family == META && field == Some(f as u8);
    let record = if is(Meta::Vote) {
        Record::Vote(read_vote(&mut Fields::new(META, payload))?)
    } else if is(Meta::Purged) {
        Record::Purged(decode_position(payload)?)
    } else if is(Meta::Applied) {
        Record::Applied(Applied::decode(payload)?)
    } else if is(Meta::Installing) {
        Record::Installing
    } else if is(Meta::Identity) {
        Record::Identity(Fields::new(META, payload).u64()?)
    } else if family == LOG {
        Record::Entry(decode_entry(payload)?.0.position)
    } else if family == BODY {
        Record::Body(index.unwrap_or(u64::MAX), payload)
    } else if family == SM {
        let key = Bytes::copy_from_slice(key.get(5..).unwrap_or_default());
        Record::Row(field.unwrap_or_default(), key, payload)
    } else {
        Record::Other
    };
    Ok((group, record))
}

/// Where the record of a kind is: family and key.
pub fn vote_key(group: GroupId) -> (Family, Vec<u8>) {
    (META, meta_key(group, Meta::Vote).to_vec())
}
/// See [`Record::Purged`].
pub fn purged_key(group: GroupId) -> (Family, Vec<u8>) {
    (META, meta_key(group, Meta::Purged).to_vec())
}
/// See [`Record::Applied`].
pub fn applied_key(group: GroupId) -> (Family, Vec<u8>) {
    (META, meta_key(group, Meta::Applied).to_vec())
}
/// See [`Record::Installing`].
pub fn installing_key(group: GroupId) -> (Family, Vec<u8>) {
    (META, meta_key(group, Meta::Installing).to_vec())
}
/// See [`Record::Identity`].
pub fn identity_key() -> (Family, Vec<u8>) {
    (META, meta_key(GroupId::META, Meta::Identity).to_vec())
}
/// See [`Record::Entry`].
pub fn entry_key(group: GroupId, index: u64) -> (Family, Vec<u8>) {
    (LOG, index_key(group, index).to_vec())
}
/// The log of a group.
pub const LOGS: Family = LOG;
/// The bodies of all groups.
pub const BODIES: Family = BODY;
/// The state machines of all groups.
pub const ROWS: Family = SM;
/// The records about groups.
pub const METAS: Family = META;
