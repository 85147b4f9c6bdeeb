//! The state machine's tables in the store.
use crate::{
    engine::Range,
    error::StoreError,
    group::GroupStore,
    layout::{BODY, BODY_GC, Fields, META, Meta, SM, frame, index_key, put_bytes, sm_key, unframe},
    log::{LogPosition, encode_position, read_position},
};
use bytes::Bytes;
use sealane_mutants::{Mutant::M6, mutant};
use sealane_state::{ReadTables, Table, TableError, WriteTables};
use std::collections::BTreeMap;

/// How far the state machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Last applied entry.
    pub last: Option<LogPosition>,
    /// Entry that made the membership.
    pub membership_at: Option<LogPosition>,
    /// Encoded membership; opaque here.
    pub membership: Bytes,
}

impl Applied {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for p in [self.last, self.membership_at] {
            out.push(u8::from(p.is_some()));
            out.extend_from_slice(&encode_position(p.unwrap_or(LogPosition {
                term: 0,
                node: 0,
                index: 0,
            })));
        }
        put_bytes(&mut out, &self.membership);
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, StoreError> {
        let mut f = Fields::new(META, bytes);
        let mut position = || -> Result<Option<LogPosition>, StoreError> {
            let some = f.u8()? == 1;
            let p = read_position(&mut f)?;
            Ok(some.then_some(p))
        };
        Ok(Self {
            last: position()?,
            membership_at: position()?,
            membership: f.bytes()?,
        })
    }
}

/// Reads the state machine of a group as it is now.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) group: GroupStore,
}

fn table_error(table: Table, e: StoreError) -> TableError {
    TableError {
        table,
        reason: e.to_string(),
    }
}

impl Reader {
    fn rows(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let core = &self.group.core;
        core.noticed(self.rows_unnoticed(table, start, end, limit))
    }

    fn rows_unnoticed(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let core = &self.group.core;
        let from = sm_key(self.group.id(), table as u8, start);
        let upper = if end.is_empty() {
            sm_key(self.group.id(), table as u8 + 1, b"")
        } else {
            sm_key(self.group.id(), table as u8, end)
        };
        let range = Range {
            family: SM,
            from: &from,
            to: &upper,
            cache: true,
        };
        let mut out = Vec::new();
        if limit == 0 {
            return Ok(out);
        }
        core.engine.scan(range, &mut |key, value| {
            let value = unframe(SM, key, value.to_vec())?;
            out.push((Bytes::copy_from_slice(key).slice(5..), value));
            Ok(out.len() < limit)
        })?;
        Ok(out)
    }
}

impl ReadTables for Reader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let key = sm_key(self.group.id(), table as u8, key);
        self.group
            .core
            .get(SM, &key)
            .map_err(|e| table_error(table, e))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, TableError> {
        self.rows(table, start, end, limit)
            .map_err(|e| table_error(table, e))
    }
}

/// Changes of a run of entries: read-your-writes, then one batch.
#[derive(Debug)]
pub struct ApplyTxn {
    reader: Reader,
    overlay: BTreeMap<(Table, Vec<u8>), Option<Bytes>>,
    released: Vec<u64>,
    applied: Option<Applied>,
}

impl ApplyTxn {
    pub(crate) fn new(group: GroupStore) -> Self {
        Self {
            reader: group.reader(),
            overlay: BTreeMap::new(),
            released: Vec::new(),
            applied: None,
        }
    }

    /// The position that the changes lead to.
    pub fn set_applied(&mut self, applied: Applied) {
        self.applied = Some(applied);
    }

    /// Writes everything in one batch, unsynced.
    pub fn commit(self) -> Result<(), StoreError> {
        let group = &self.reader.group;
        let core = &group.core;
        let _guard = group.shared.bodies.lock().expect("no panic while held");
        core.write(0, |batch| {
            for ((table, key), value) in &self.overlay {
                let key = sm_key(group.id(), *table as u8, key);
                match value {
                    Some(v) => batch.put(SM, &key, &frame(&[v])),
                    None => batch.delete(SM, &key),
                }
            }
            if let Some(applied) = &self.applied {
                group.put_meta(batch, Meta::Applied, &applied.encode());
            }
            let purged = match self.released.is_empty() {
                true => None,
                false => group.purged()?,
            };
            for index in &self.released {
                let key = index_key(group.id(), *index);
                if mutant(M6) || purged.is_some_and(|p| *index <= p.index) {
                    batch.delete(BODY, &key);
                } else {
                    batch.put(BODY_GC, &key, b"");
                }
            }
            Ok(())
        })?;
        if let Some(value) = self.overlay.get(&(Table::Clock, Vec::new())) {
            group
                .shared
                .clock
                .lock()
                .expect("no panic while held")
                .clone_from(value);
        }
        Ok(())
    }

    /// The clock record, from the database once.
    fn clock(&self) -> Result<Option<Bytes>, TableError> {
        let mut known = self
            .reader
            .group
            .shared
            .clock
            .lock()
            .expect("no panic while held");
        if known.is_none() {
            *known = self.reader.get(Table::Clock, b"")?;
        }
        Ok(known.clone())
    }
}

impl ReadTables for ApplyTxn {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        match self.overlay.get(&(table, key.to_vec())) {
            Some(v) => Ok(v.clone()),
            None if table == Table::Clock && key.is_empty() => self.clock(),
            None => self.reader.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, TableError> {
        let ours: Vec<(&Vec<u8>, &Option<Bytes>)> = self
            .overlay
            .range((table, start.to_vec())..)
            .take_while(|((t, k), _)| *t == table && (end.is_empty() || k.as_slice() < end))
            .map(|((_, k), v)| (k, v))
            .collect();
        // Each of our rows hides or adds at most one.
        let stored = self
            .reader
            .scan(table, start, end, limit.saturating_add(ours.len()))?;
        let mut rows: BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
        for (k, v) in ours {
            match v {
                Some(v) => drop(rows.insert(Bytes::copy_from_slice(k), v.clone())),
                None => drop(rows.remove(k.as_slice())),
            }
        }
        Ok(rows.into_iter().take(limit).collect())
    }
}

impl WriteTables for ApplyTxn {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.overlay
            .insert((table, key.to_vec()), Some(Bytes::copy_from_slice(value)));
    }
    fn delete(&mut self, table: Table, key: &[u8]) {
        self.overlay.insert((table, key.to_vec()), None);
    }
    fn release_body(&mut self, log_index: u64) {
        self.released.push(log_index);
    }
}
