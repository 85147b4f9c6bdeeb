//! Records: rows of the state machine's tables, and bodies.
use bytes::{Buf, Bytes};
use sealane_state::Table;

/// Number of the bodies; tables have their own. As in a snapshot.
const BODY: u8 = 0;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its table; `None`: a body.
    pub table: Option<Table>,
    /// Key within its table and group; of a body, its log index.
    pub key: Bytes,
    /// What is stored.
    pub value: Bytes,
}

/// Where a table stands in a group: bodies are last.
pub(crate) fn rank(table: Option<Table>) -> u8 {
    table.map_or(u8::MAX, |t| t as u8)
}

impl Row {
    /// The value, as what its table holds.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.value.clone())
    }

    pub(crate) fn place(&self) -> (u8, &[u8]) {
        (rank(self.table), &self.key)
    }
}

/// Appends a record to a payload. `None`: a field does not fit.
pub(crate) fn encode(out: &mut Vec<u8>, table: u8, key: &[u8], value: &[u8]) -> Option<()> {
    out.push(table);
    for field in [key, value] {
        out.extend_from_slice(&u32::try_from(field.len()).ok()?.to_be_bytes());
        out.extend_from_slice(field);
    }
    Some(())
}

/// Takes the next record off a payload; the error says what is wrong.
pub(crate) fn next(payload: &mut Bytes) -> Result<Option<Row>, String> {
    if payload.is_empty() {
        return Ok(None);
    }
    let table = match payload.get_u8() {
        BODY => None,
        n => Some(Table::from_number(n).ok_or_else(|| format!("a record of table {n}"))?),
    };
    let mut field = || {
        let length = payload
            .try_get_u32()
            .map_err(|_| "a record without length")?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > payload.len() {
            return Err("a record longer than its frame");
        }
        Ok(payload.split_to(length))
    };
    let key = field()?;
    let value = field()?;
    Ok(Some(Row { table, key, value }))
}
