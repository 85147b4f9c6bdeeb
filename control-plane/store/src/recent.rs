//! The last entries of a group's log, as they were written: replication and apply read them without
//! asking the database.
use crate::log::{StoredEntry, StoredPayload};
use std::collections::VecDeque;

/// Octets of headers and bodies kept per group.
const LIMIT: usize = 4 << 20;
/// What an entry costs besides its octets.
const OVERHEAD: usize = 128;

/// Octets between two marks.
const MARK: u64 = 1 << 20;

/// How much log there is behind an index, in steps of a MiB. Begins empty at every start.
#[derive(Debug, Default)]
pub(crate) struct LogSizes {
    total: u64,
    /// Octets before this entry, and its index.
    marks: VecDeque<(u64, u64)>,
}

impl LogSizes {
    pub(crate) fn push(&mut self, index: u64, octets: u64) {
        let last = self.marks.back().map_or(0, |(at, _)| *at);
        if self.marks.is_empty() || self.total.saturating_sub(last) >= MARK {
            self.marks.push_back((self.total, index));
        }
        self.total = self.total.saturating_add(octets);
    }

    /// Entries before the answer exceed `octets`; 0 if none do.
    pub(crate) fn oldest_within(&mut self, octets: u64) -> u64 {
        let mut oldest = 0;
        while let Some((before, index)) = self.marks.front().copied() {
            if self.total.saturating_sub(before) <= octets {
                break;
            }
            self.marks.pop_front();
            oldest = index;
        }
        oldest
    }
}

/// A run of entries without holes that ends with the last entry of the log.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    entries: VecDeque<StoredEntry>,
    size: usize,
}

pub(crate) fn cost(e: &StoredEntry) -> usize {
    OVERHEAD
        + match &e.payload {
            StoredPayload::Blank => 0,
            StoredPayload::Membership(b) => b.len(),
            StoredPayload::Command { header, body } => header.len() + body.len(),
        }
}

impl Recent {
    /// What was just appended.
    pub(crate) fn push(&mut self, entries: Vec<StoredEntry>) {
        for e in entries {
            let follows = self
                .entries
                .back()
                .is_none_or(|last| last.position.index + 1 == e.position.index);
            if !follows {
                self.entries.clear();
                self.size = 0;
            }
            self.size += cost(&e);
            self.entries.push_back(e);
        }
        while self.size > LIMIT && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(e) = self.entries.pop_front() {
            self.size -= cost(&e);
        }
    }

    /// Entries of `start..end`, at least one, not more than `max_bytes` beyond the first; `None` if the first is not here.
    pub(crate) fn read(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<StoredEntry>> {
        let first = self.entries.front()?.position.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let mut size = 0usize;
        let mut out = Vec::new();
        for e in self.entries.range(skip.min(self.entries.len())..) {
            size = size.saturating_add(cost(e));
            if e.position.index >= end || (size > max_bytes && !out.is_empty()) {
                break;
            }
            out.push(e.clone());
        }
        (!out.is_empty()).then_some(out)
    }

    /// Entries after `index` are no more; all, if `None`.
    pub(crate) fn truncate_after(&mut self, index: Option<u64>) {
        while let Some(e) = self.entries.back() {
            if index.is_some_and(|i| e.position.index <= i) {
                break;
            }
            self.size -= cost(e);
            self.entries.pop_back();
        }
    }

    /// Entries up to `index` are no more.
    pub(crate) fn purge(&mut self, index: u64) {
        while self
            .entries
            .front()
            .is_some_and(|e| e.position.index <= index)
        {
            self.pop_front();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::log::LogPosition;
    use bytes::Bytes;

    fn entry(index: u64, octets: usize) -> StoredEntry {
        StoredEntry {
            position: LogPosition {
                term: 1,
                node: 1,
                index,
            },
            payload: StoredPayload::Command {
                header: Bytes::new(),
                body: vec![0; octets].into(),
            },
        }
    }

    fn indexes(r: Option<Vec<StoredEntry>>) -> Vec<u64> {
        let all = r.unwrap_or_default();
        all.into_iter().map(|e| e.position.index).collect()
    }

    #[test]
    fn it_reads_what_was_pushed_and_nothing_else() {
        let mut r = Recent::default();
        assert!(r.read(1, 9, usize::MAX).is_none());
        r.push((5..10).map(|n| entry(n, 10)).collect());
        assert_eq!(indexes(r.read(5, 8, usize::MAX)), [5, 6, 7]);
        assert_eq!(indexes(r.read(7, 99, usize::MAX)), [7, 8, 9]);
        assert_eq!(indexes(r.read(7, 99, 0)), [7]);
        assert!(r.read(4, 8, usize::MAX).is_none());
        assert!(r.read(10, 12, usize::MAX).is_none());
        r.truncate_after(Some(7));
        assert_eq!(indexes(r.read(5, 99, usize::MAX)), [5, 6, 7]);
        r.purge(5);
        assert!(r.read(5, 99, usize::MAX).is_none());
        assert_eq!(indexes(r.read(6, 99, usize::MAX)), [6, 7]);
        // A hole: only what comes after it stays.
        r.push(vec![entry(20, 1)]);
        assert!(r.read(6, 99, usize::MAX).is_none());
        assert_eq!(indexes(r.read(20, 99, usize::MAX)), [20]);
        r.truncate_after(None);
        assert!(r.read(20, 99, usize::MAX).is_none());
        assert_eq!(r.size, 0);
    }

    #[test]
    fn log_beyond_a_size_is_found() {
        let mut s = LogSizes::default();
        for index in 1..=100 {
            s.push(index, 1 << 20);
        }
        assert_eq!(s.oldest_within(100 << 20), 0);
        let oldest = s.oldest_within(10 << 20);
        assert!((89..=91).contains(&oldest), "{oldest}");
    }

    #[test]
    fn it_keeps_no_more_than_its_limit() {
        let mut r = Recent::default();
        for n in 0..20 {
            r.push(vec![entry(n, 1 << 20)]);
        }
        assert!(r.size <= LIMIT);
        assert_eq!(indexes(r.read(19, 20, usize::MAX)), [19]);
        assert!(r.read(0, 20, usize::MAX).is_none());
    }
}
