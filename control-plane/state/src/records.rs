//! Typed access to the tables.
use crate::tables::{ReadTables, Table, TableError, WriteTables};
use bytes::Bytes;
use prost::Message;
use sealane_types::MessageId;
use sealane_wire::v1;

/// Up to this many recipients are read one by one.
const FEW: usize = 8;
/// Most recipients that are read of one message.
pub(crate) const RECIPIENT_LIMIT: usize = 1 << 16;

pub(crate) fn decode<M: Message + Default>(table: Table, bytes: Bytes) -> Result<M, TableError> {
    M::decode(bytes).map_err(|e| TableError {
        table,
        reason: format!("undecodable record: {e}"),
    })
}

pub(crate) fn get<M: Message + Default>(
    t: &impl ReadTables,
    table: Table,
    key: &[u8],
) -> Result<Option<M>, TableError> {
    t.get(table, key)?.map(|b| decode(table, b)).transpose()
}

pub(crate) fn put(t: &mut impl WriteTables, table: Table, key: &[u8], record: &impl Message) {
    t.put(table, key, &record.encode_to_vec());
}

pub(crate) fn recipient_key(id: MessageId, n: u32) -> [u8; 18] {
    let mut key = [0; 18];
    key[..16].copy_from_slice(id.as_bytes());
    // MAX_RECIPIENTS is far below 65536; a larger number finds nothing.
    key[16..].copy_from_slice(&u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes());
    key
}

pub(crate) fn upload_key(id: MessageId, seq: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..16].copy_from_slice(id.as_bytes());
    key[16..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// The first key behind all keys that start with `prefix`.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    end
}

/// Records of the recipients 0..`count`.
pub(crate) fn recipients(
    t: &impl ReadTables,
    id: MessageId,
    count: usize,
) -> Result<Vec<v1::RecipientRecord>, TableError> {
    let missing = |n: usize| TableError {
        table: Table::Recipient,
        reason: format!("{id}: recipient {n} is missing"),
    };
    if count <= FEW {
        // Cheaper than an iterator.
        return (0..count)
            .map(|n| {
                let key = recipient_key(id, u32::try_from(n).unwrap_or(u32::MAX));
                get(t, Table::Recipient, &key)?.ok_or_else(|| missing(n))
            })
            .collect();
    }
    let rows = t.scan(
        Table::Recipient,
        id.as_bytes(),
        &prefix_end(id.as_bytes()),
        RECIPIENT_LIMIT,
    )?;
    if rows.len() < count {
        return Err(missing(rows.len()));
    }
    rows.into_iter()
        .enumerate()
        .map(|(n, (key, v))| {
            // The position in the result is the number of the recipient: a gap would shift it.
            if key.as_ref() != recipient_key(id, u32::try_from(n).unwrap_or(u32::MAX)) {
                return Err(missing(n));
            }
            decode(Table::Recipient, v)
        })
        .collect()
}

/// Recipients of a message's envelope.
pub(crate) fn recipient_count(m: &v1::MessageRecord) -> usize {
    m.envelope.as_ref().map_or(0, |e| e.recipients.len())
}

pub(crate) fn uploads(
    t: &impl ReadTables,
    id: MessageId,
) -> Result<Vec<(Bytes, v1::UploadRecord)>, TableError> {
    t.scan(
        Table::Upload,
        id.as_bytes(),
        &prefix_end(id.as_bytes()),
        usize::MAX,
    )?
    .into_iter()
    .map(|(k, v)| Ok((k, decode(Table::Upload, v)?)))
    .collect()
}

pub(crate) fn clock(t: &impl ReadTables) -> Result<v1::ClockRecord, TableError> {
    Ok(get(t, Table::Clock, b"")?.unwrap_or_default())
}
