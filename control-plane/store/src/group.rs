//! The log of one group, and its state machine's storage.
use crate::{
    engine::{Batch, Range},
    error::StoreError,
    layout::{
        BODY, BODY_GC, LOG, META, Meta, SM, frame, index_key, key_index, meta_key, sm_key, unframe,
    },
    log::{
        LogPosition, LogState, StoredEntry, StoredPayload, VoteRecord, decode_entry,
        decode_position, encode_entry_prefix, encode_position, encode_vote, read_position,
        read_vote,
    },
    recent::{LogSizes, Recent, cost},
    store::Core,
    syncer::{Flushed, Wrote},
    transaction::{Applied, ApplyTxn, Reader},
};
use bytes::Bytes;
use sealane_mutants::{Mutant::M10, mutant};
use sealane_types::GroupId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Log entries deleted in one batch.
const PURGE_BATCH: u64 = 1000;

#[derive(Debug)]
pub(crate) struct GroupShared {
    pub(crate) id: GroupId,
    /// Held while a purge or an apply decides whether a body is still needed.
    pub(crate) bodies: Mutex<()>,
    /// The last entries: what replication and apply read most often is what was just written.
    pub(crate) recent: Mutex<Recent>,
    pub(crate) sizes: Mutex<LogSizes>,
    /// The clock record as it was last committed: every entry begins with reading it.
    pub(crate) clock: Mutex<Option<Bytes>>,
}

impl GroupShared {
    pub(crate) fn new(id: GroupId) -> Self {
        Self {
            id,
            bodies: Mutex::new(()),
            recent: Mutex::default(),
            sizes: Mutex::default(),
            clock: Mutex::default(),
        }
    }

    /// The state machine's tables were changed past its transactions.
    pub(crate) fn forget_clock(&self) {
        *self.clock.lock().expect("no panic while held") = None;
    }
}

/// One group of a [`crate::Store`]. Calls are synchronous; reads see all writes that returned.
#[derive(Debug, Clone)]
pub struct GroupStore {
    pub(crate) core: Arc<Core>,
    pub(crate) shared: Arc<GroupShared>,
}

impl GroupStore {
    pub(crate) fn id(&self) -> GroupId {
        self.shared.id
    }

    pub(crate) fn meta(&self, field: Meta) -> Result<Option<Bytes>, StoreError> {
        self.core.get(META, &meta_key(self.id(), field))
    }

    pub(crate) fn put_meta(&self, batch: &mut dyn Batch, field: Meta, payload: &[u8]) {
        batch.put(META, &meta_key(self.id(), field), &frame(&[payload]));
    }

    // ---- log

    /// Both ends of the log.
    pub fn log_state(&self) -> Result<LogState, StoreError> {
        self.core.noticed(self.read_log_state())
    }

    fn read_log_state(&self) -> Result<LogState, StoreError> {
        let purged = self.purged()?;
        let last = self.core.engine.last(Range {
            family: LOG,
            from: &index_key(self.id(), 0),
            to: &index_key(self.id(), u64::MAX),
            cache: true,
        })?;
        let last = match last {
            Some((key, value)) => {
                let (entry, _) = decode_entry(unframe(LOG, &key, value)?)?;
                (purged < Some(entry.position)).then_some(entry.position)
            }
            None => None,
        };
        Ok(LogState { purged, last })
    }

    pub(crate) fn purged(&self) -> Result<Option<LogPosition>, StoreError> {
        self.meta(Meta::Purged)?.map(decode_position).transpose()
    }

    /// Writes entries (readable when this returns); `done` runs when they are synced.
    pub fn append(&self, entries: Vec<StoredEntry>, done: Flushed) -> Result<(), StoreError> {
        let wrote = entries
            .last()
            .map_or(Wrote::Nothing, |e| Wrote::Log(e.position));
        // Grown step by step, a batch with bodies would be copied again and again.
        let octets: usize = entries.iter().map(cost).sum();
        self.core.write(octets, |batch| {
            for e in &entries {
                let key = index_key(self.id(), e.position.index);
                let prefix = encode_entry_prefix(e);
                let header: &[u8] = match &e.payload {
                    StoredPayload::Blank => &[],
                    StoredPayload::Membership(b) => b,
                    StoredPayload::Command { header, body } => {
                        if !body.is_empty() {
                            batch.put(BODY, &key, &frame(&[body]));
                        }
                        header
                    }
                };
                batch.put(LOG, &key, &frame(&[&prefix, header]));
            }
            Ok(())
        })?;
        {
            let mut sizes = self.shared.sizes.lock().expect("no panic while held");
            for e in &entries {
                sizes.push(e.position.index, cost(e) as u64);
            }
        }
        self.recent().push(entries);
        self.core.syncer.submit(self.id(), wrote, done);
        Ok(())
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.shared.recent.lock().expect("no panic while held")
    }

    /// Writes the vote through the same sync; `done` runs when it is durable.
    pub fn save_vote(&self, vote: VoteRecord, done: Flushed) -> Result<(), StoreError> {
        self.core.write(0, |batch| {
            self.put_meta(batch, Meta::Vote, &encode_vote(vote));
            Ok(())
        })?;
        self.core.syncer.submit(self.id(), Wrote::Vote(vote), done);
        Ok(())
    }

    /// The last saved vote.
    pub fn read_vote(&self) -> Result<Option<VoteRecord>, StoreError> {
        self.meta(Meta::Vote)?
            .map(|b| read_vote(&mut crate::layout::Fields::new(META, b)))
            .transpose()
    }

    /// Remembers the committed position, unsynced: a hint after a restart.
    pub fn save_committed(&self, committed: Option<LogPosition>) -> Result<(), StoreError> {
        self.core.write(0, |batch| {
            match committed {
                Some(p) => self.put_meta(batch, Meta::Committed, &encode_position(p)),
                None => batch.delete(META, &meta_key(self.id(), Meta::Committed)),
            }
            Ok(())
        })
    }

    /// The remembered committed position.
    pub fn read_committed(&self) -> Result<Option<LogPosition>, StoreError> {
        self.meta(Meta::Committed)?.map(decode_position).transpose()
    }

    /// Entries of `start..end` with their bodies; stops before exceeding `max_bytes`, but returns at least one if there is one.
    pub fn read_entries(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(recent) = self.recent().read(start, end, max_bytes) {
            return Ok(recent);
        }
        self.core.noticed(self.read_stored(start, end, max_bytes))
    }

    fn read_stored(
        &self,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut out = Vec::new();
        let range = Range {
            family: LOG,
            from: &index_key(self.id(), start),
            to: &index_key(self.id(), end),
            cache: true,
        };
        let mut size = 0usize;
        self.core.engine.scan(range, &mut |key, value| {
            let Some(index) = key_index(self.id(), key) else {
                return Ok(false);
            };
            let (mut entry, body_len) = decode_entry(unframe(LOG, key, value.to_vec())?)?;
            let expected = out
                .last()
                .map_or(start, |e: &StoredEntry| e.position.index + 1);
            if index != expected || entry.position.index != index {
                return Err(StoreError::Corrupt {
                    family: LOG,
                    key: crate::layout::hex(key),
                    reason: format!("a hole: expected index {expected}"),
                });
            }
            size = size
                .saturating_add(value.len())
                .saturating_add(usize::try_from(body_len).unwrap_or(usize::MAX));
            if size > max_bytes && !out.is_empty() {
                return Ok(false);
            }
            if body_len > 0
                && let StoredPayload::Command { body, .. } = &mut entry.payload
            {
                let stored = self
                    .read_body(index)?
                    .filter(|b| b.len() as u64 == u64::from(body_len));
                *body = stored.ok_or_else(|| StoreError::Corrupt {
                    family: BODY,
                    key: crate::layout::hex(key),
                    reason: "the body of an unpurged entry is missing".into(),
                })?;
            }
            out.push(entry);
            Ok(true)
        })?;
        Ok(out)
    }

    /// Waits for what is queued: it still raises the high-water mark.
    fn drain(&self) -> Result<(), StoreError> {
        self.core.syncer.drain(self.id())
    }

    /// Empties a replica that is no member of the group any more: log, bodies and state go, in one
    /// batch. The vote stays: what this node promised in a term it has promised. Synced when it returns.
    pub fn forget(&self) -> Result<(), StoreError> {
        let _guard = self.shared.bodies.lock().expect("no panic while held");
        self.drain()?;
        let state = self.log_state()?;
        let held = state.last.max(state.purged).max(self.applied()?.last);
        let emptied = held.max(self.emptied()?);
        self.core
            .hwm
            .lock()
            .expect("no panic while held")
            .lower(self.id(), None)?;
        self.recent().truncate_after(None);
        *self.shared.sizes.lock().expect("no panic while held") = LogSizes::default();
        self.shared.forget_clock();
        self.core.write_once(|batch| {
            let (start, end) = (index_key(self.id(), 0), index_key(self.id(), u64::MAX));
            for family in [LOG, BODY, BODY_GC] {
                batch.delete_range(family, &start, &end);
            }
            let (start, end) = (sm_key(self.id(), 0, b""), sm_key(self.id(), u8::MAX, b""));
            batch.delete_range(SM, &start, &end);
            for field in [
                Meta::Purged,
                Meta::Committed,
                Meta::Applied,
                Meta::Installing,
                Meta::Witnessed,
            ] {
                batch.delete(META, &meta_key(self.id(), field));
            }
            // What this node said of its log before holds it to nothing any more.
            if let Some(at) = emptied {
                self.put_meta(batch, Meta::Emptied, &encode_position(at));
            }
            Ok(())
        })?;
        self.core.sync()
    }

    /// How far the log was when this replica was last emptied.
    pub(crate) fn emptied(&self) -> Result<Option<LogPosition>, StoreError> {
        self.meta(Meta::Emptied)?.map(decode_position).transpose()
    }

    /// Remembers how far the logs of other nodes are durable and committed: they are told when they start.
    /// Unsynced; the next sync covers it.
    pub fn save_witnessed(&self, of: &BTreeMap<u64, LogPosition>) -> Result<(), StoreError> {
        let mut payload = Vec::new();
        for (node, position) in of {
            payload.extend_from_slice(&node.to_be_bytes());
            payload.extend_from_slice(&encode_position(*position));
        }
        self.core.write(0, |batch| {
            self.put_meta(batch, Meta::Witnessed, &payload);
            Ok(())
        })
    }

    /// What [`Self::save_witnessed`] remembered last.
    pub fn read_witnessed(&self) -> Result<BTreeMap<u64, LogPosition>, StoreError> {
        let mut of = BTreeMap::new();
        if let Some(payload) = self.meta(Meta::Witnessed)? {
            let mut f = crate::layout::Fields::new(META, payload);
            while !f.is_empty() {
                of.insert(f.u64()?, read_position(&mut f)?);
            }
        }
        Ok(of)
    }

    /// Drops entries after `index` (all, if `None`) with their bodies.
    pub fn truncate_after(&self, index: Option<u64>) -> Result<(), StoreError> {
        self.drain()?;
        let keep = match index {
            Some(i) => self
                .read_entries(i, i + 1, 0)?
                .first()
                .map(|e| e.position)
                .or(self.purged()?),
            None => None,
        };
        self.core
            .hwm
            .lock()
            .expect("no panic while held")
            .lower(self.id(), keep)?;
        let start = index_key(self.id(), index.map_or(0, |i| i + 1));
        let end = index_key(self.id(), u64::MAX);
        self.recent().truncate_after(index);
        self.core.write(0, |batch| {
            for family in [LOG, BODY, BODY_GC] {
                batch.delete_range(family, &start, &end);
            }
            Ok(())
        })
    }

    /// Drops entries up to `upto`, and those of their bodies that nothing refers to. Point deletes (P12), in batches
    /// that each leave a consistent log (P10).
    pub fn purge(&self, upto: LogPosition) -> Result<(), StoreError> {
        let _guard = self.shared.bodies.lock().expect("no panic while held");
        let mut next = self.purged()?.map_or(0, |p| p.index + 1);
        if self.purged()?.is_some_and(|p| p >= upto) {
            return Ok(());
        }
        while next <= upto.index {
            let last = upto.index.min(next + PURGE_BATCH - 1);
            let position = if last == upto.index {
                Some(upto)
            } else {
                self.position_at(last)?
            };
            self.core.write(0, |batch| {
                // A batch that ends in a hole (after a snapshot) is marked by the next one.
                if let Some(p) = position.filter(|_| !mutant(M10)) {
                    self.put_meta(batch, Meta::Purged, &encode_position(p));
                }
                for index in next..=last {
                    let key = index_key(self.id(), index);
                    batch.delete(LOG, &key);
                    if self.core.engine.has(BODY_GC, &key)? {
                        batch.delete(BODY, &key);
                        batch.delete(BODY_GC, &key);
                    }
                }
                Ok(())
            })?;
            self.recent().purge(last);
            next = last + 1;
        }
        Ok(())
    }

    fn position_at(&self, index: u64) -> Result<Option<LogPosition>, StoreError> {
        let key = index_key(self.id(), index);
        let value = self.core.get(LOG, &key)?;
        value.map(|b| Ok(decode_entry(b)?.0.position)).transpose()
    }

    /// Entries up to the answer are more than `octets` away from the end of the log; 0 if none are,
    /// or none that were written since the start.
    pub fn oldest_within(&self, octets: u64) -> u64 {
        let mut sizes = self.shared.sizes.lock().expect("no panic while held");
        sizes.oldest_within(octets)
    }

    // ---- state machine

    /// Position and membership of the last applied entry.
    pub fn applied(&self) -> Result<Applied, StoreError> {
        self.meta(Meta::Applied)?
            .map_or_else(|| Ok(Applied::default()), Applied::decode)
    }

    /// A batch of changes to the state machine.
    pub fn transaction(&self) -> ApplyTxn {
        ApplyTxn::new(self.clone())
    }

    /// Reads the state machine.
    pub fn reader(&self) -> Reader {
        Reader {
            group: self.clone(),
        }
    }

    /// The body of an entry.
    pub fn read_body(&self, log_index: u64) -> Result<Option<Bytes>, StoreError> {
        self.core.get(BODY, &index_key(self.id(), log_index))
    }
}
