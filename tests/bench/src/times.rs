//! When each message was offered, ended, accepted and delivered: one row of atomics per number.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Never.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Row {
    dot: AtomicU64,
    accepted: AtomicU64,
    delivered: AtomicU64,
    copies: AtomicU32,
}

/// Times of all messages, microseconds since the start.
#[derive(Debug)]
pub(crate) struct Times {
    start: OnceLock<Instant>,
    rows: Vec<Row>,
}

impl Times {
    pub(crate) fn new(messages: usize) -> Self {
        let row = || Row {
            dot: AtomicU64::new(NEVER),
            accepted: AtomicU64::new(NEVER),
            delivered: AtomicU64::new(NEVER),
            copies: AtomicU32::new(0),
        };
        Self {
            start: OnceLock::new(),
            rows: std::iter::repeat_with(row).take(messages).collect(),
        }
    }

    /// The work begins now.
    pub(crate) fn begin(&self) {
        self.start.get_or_init(Instant::now);
    }

    fn now(&self) -> u64 {
        let start = self.start.get_or_init(Instant::now);
        u64::try_from(start.elapsed().as_micros()).unwrap_or(NEVER - 1)
    }

    /// The final dot of message `n` is about to be sent.
    pub(crate) fn dot(&self, n: usize) {
        if let Some(row) = self.rows.get(n) {
            row.dot.store(self.now(), Relaxed);
        }
    }

    /// 250 was read for it.
    pub(crate) fn accepted(&self, n: usize) {
        if let Some(row) = self.rows.get(n) {
            row.accepted.store(self.now(), Relaxed);
        }
    }

    /// The sink has it.
    pub(crate) fn delivered(&self, n: usize) {
        if let Some(row) = self.rows.get(n) {
            let _first = row
                .delivered
                .compare_exchange(NEVER, self.now(), Relaxed, Relaxed);
            row.copies.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn delivered_count(&self) -> usize {
        let there = |row: &&Row| row.delivered.load(Relaxed) != NEVER;
        self.rows.iter().filter(there).count()
    }

    /// Copies beyond the first.
    pub(crate) fn duplicates(&self) -> u64 {
        let more = |row: &Row| u64::from(row.copies.load(Relaxed).saturating_sub(1));
        self.rows.iter().map(more).sum()
    }

    pub(crate) fn accepted_count(&self) -> usize {
        let there = |row: &&Row| row.accepted.load(Relaxed) != NEVER;
        self.rows.iter().filter(there).count()
    }

    /// From the start to the last 250.
    pub(crate) fn accepting(&self) -> Duration {
        self.last(|row| &row.accepted)
    }

    /// From the start to the last delivery.
    pub(crate) fn delivering(&self) -> Duration {
        self.last(|row| &row.delivered)
    }

    fn last(&self, of: impl Fn(&Row) -> &AtomicU64) -> Duration {
        let times = self.rows.iter().map(|row| of(row).load(Relaxed));
        Duration::from_micros(times.filter(|at| *at != NEVER).max().unwrap_or(0))
    }

    /// Final dot to 250, microseconds, sorted.
    pub(crate) fn to_reply(&self) -> Vec<u64> {
        self.spans(|row| &row.accepted)
    }

    /// Final dot to the sink, microseconds, sorted.
    pub(crate) fn to_sink(&self) -> Vec<u64> {
        self.spans(|row| &row.delivered)
    }

    /// The longest time without a 250 that ended after `from`, if there were any.
    pub(crate) fn longest_gap(&self, from: Instant) -> Option<Duration> {
        let start = self.start.get()?;
        let from = u64::try_from(from.duration_since(*start).as_micros()).ok()?;
        let times = self.rows.iter().map(|row| row.accepted.load(Relaxed));
        let mut after: Vec<u64> = times.filter(|at| *at != NEVER && *at >= from).collect();
        after.push(from);
        after.sort_unstable();
        let gaps = after.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().map(Duration::from_micros)
    }

    fn spans(&self, end: impl Fn(&Row) -> &AtomicU64) -> Vec<u64> {
        let mut out: Vec<u64> = self
            .rows
            .iter()
            .filter_map(|row| {
                let (from, to) = (row.dot.load(Relaxed), end(row).load(Relaxed));
                (from != NEVER && to != NEVER).then(|| to.saturating_sub(from))
            })
            .collect();
        out.sort_unstable();
        out
    }
}
