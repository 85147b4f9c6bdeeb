//! openraft's log storage on [`sealane_store::GroupStore`].
//!
//! `append` writes synchronously (entries are readable when it returns) and hands its callback to
//! the store's one syncer thread; the vote takes the same way and is awaited (pitfalls P1 to P3).
//! Reads and writes of the log take microseconds and run on the worker's thread: moving them to
//! another thread cost more CPU than all of them together. A stalled write moves (`node.rs`).
use super::{
    codec,
    types::{Entry, LogId, TypeConfig, Vote},
};
use futures_util::{Stream, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use sealane_runtime::blocking;
use sealane_store::{GroupStore, StoreError};
use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
};
use tokio::sync::oneshot;

/// Most octets of entries that one read (and so one AppendEntries request) takes, beyond its first entry.
const READ_LIMIT: usize = 2 << 20;

/// The log of one group.
#[derive(Clone, Debug)]
pub(super) struct LogStore {
    store: GroupStore,
}

pub(super) fn io_error(e: StoreError) -> io::Error {
    io::Error::other(e)
}

impl LogStore {
    pub(super) fn new(store: GroupStore) -> Self {
        Self { store }
    }

    fn read(&self, start: u64, end: u64, limit: usize) -> io::Result<Vec<Entry>> {
        self.store
            .read_entries(start, end, limit)
            .map_err(io_error)?
            .into_iter()
            .map(codec::entry)
            .collect()
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(n) => *n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(n) => n.saturating_add(1),
        Bound::Excluded(n) => *n,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.store.read_vote().map_err(io_error)?.map(codec::vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_LIMIT)
    }

    /// In pages: apply never holds more than one page of bodies.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let reader = self.clone();
        let pages = stream::unfold(start, move |at| {
            let reader = reader.clone();
            async move {
                if at >= end {
                    return None;
                }
                match reader.read(at, end, READ_LIMIT) {
                    Ok(entries) if entries.is_empty() => None,
                    Ok(entries) => {
                        let next = at + entries.len() as u64;
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), next))
                    }
                    Err(e) => Some((vec![Err(e)], end)),
                }
            }
        });
        Box::pin(futures_util::StreamExt::flat_map(pages, stream::iter))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.store.log_state().map_err(io_error)?;
        let purged = state.purged.map(codec::log_id);
        Ok(LogState {
            last_log_id: state.last.map(codec::log_id).or(purged),
            last_purged_log_id: purged,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |r| drop(tx.send(r)));
        self.store
            .save_vote(codec::vote_record(vote), done)
            .map_err(io_error)?;
        match rx.await {
            Ok(r) => r.map_err(io_error),
            Err(_) => Err(io::Error::other(
                "the syncer stopped before the vote was durable",
            )),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.store
            .save_committed(committed.as_ref().map(codec::position))
            .map_err(io_error)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self
            .store
            .read_committed()
            .map_err(io_error)?
            .map(codec::log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(codec::stored_entry).collect();
        let done =
            Box::new(move |r: Result<(), StoreError>| callback.io_completed(r.map_err(io_error)));
        self.store.append(entries, done).map_err(io_error)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        blocking::in_place(|| self.store.truncate_after(last.map(|l| l.index))).map_err(io_error)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        blocking::in_place(|| self.store.purge(codec::position(&upto))).map_err(io_error)
    }
}
