//! The external ledger: what was offered, what was answered, what arrived.
//!
//! It joins two things only: what the load generator wrote down before and after each attempt, and
//! the files of the sink. The product's own counters are not asked.

mod arrival;
mod judge;
mod verdict;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::awake;
use crate::sink::{Store, now_ms};

use arrival::{Arrival, arrival, check};
pub use arrival::{behind_trace, token};
pub use verdict::Verdict;

/// The header that carries the token; its value is random and means nothing to the product.
pub const TOKEN_HEADER: &str = "X-Ledger: ";

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Temporary(String),
    Permanent(String),
    /// The connection broke behind the final dot: it may have been accepted.
    Unknown(String),
    /// The connection broke before the final dot was sent: it cannot have been accepted.
    Broken(String),
}

/// One message as offered.
#[derive(Debug, Clone)]
pub struct Offer {
    pub token: String,
    pub reverse_path: String,
    pub recipients: Vec<String>,
    pub octets: usize,
    pub sha256: [u8; 32],
    /// Those of the recipients that the next hop refuses for good: each needs exactly one report.
    pub failing: Vec<String>,
}

impl Offer {
    /// Describes `content`, which must hold the token header.
    #[must_use]
    pub fn of(token: &str, reverse_path: &str, recipients: &[String], content: &[u8]) -> Self {
        Self {
            token: token.to_owned(),
            reverse_path: reverse_path.to_owned(),
            recipients: recipients.to_vec(),
            octets: content.len(),
            sha256: Sha256::digest(content).into(),
            failing: Vec::new(),
        }
    }

    /// These of the recipients are refused for good by the next hop.
    #[must_use]
    pub fn failing(mut self, recipients: &[String]) -> Self {
        self.failing = recipients.to_vec();
        self
    }
}

#[derive(Debug)]
struct Entry {
    offer: Offer,
    outcomes: Vec<Outcome>,
    /// When the last 250 was read, by the machine's clock.
    accepted_ms: Option<u64>,
}

impl Entry {
    fn is_answered(&self) -> bool {
        !self.outcomes.is_empty()
    }
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<String, Entry>,
    /// When each 250 was read.
    accepted_at: Vec<Instant>,
    /// What is known about each sink file; files never change.
    files: HashMap<PathBuf, Arrival>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    book: Mutex<Book>,
    /// Files of the sink are deleted once they were found right.
    thrifty: bool,
}

impl Ledger {
    /// For long runs: what was looked at and is right takes no more room on the disk.
    #[must_use]
    pub fn thrifty() -> Self {
        Self {
            thrifty: true,
            ..Self::default()
        }
    }

    /// Writes an offer down, before any octet of it is sent.
    pub fn offer(&self, offer: Offer) {
        let entry = Entry {
            outcomes: Vec::new(),
            accepted_ms: None,
            offer,
        };
        self.lock().entries.insert(entry.offer.token.clone(), entry);
    }

    /// Writes down how an attempt ended.
    pub fn outcome(&self, token: &str, outcome: Outcome) {
        let mut book = self.lock();
        let accepted = outcome == Outcome::Accepted;
        if accepted {
            book.accepted_at.push(Instant::now());
        }
        if let Some(entry) = book.entries.get_mut(token) {
            if accepted {
                entry.accepted_ms = Some(now_ms());
            }
            entry.outcomes.push(outcome);
        }
    }

    /// 250s so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.lock().accepted_at.len()
    }

    /// 250s read after `moment`.
    #[must_use]
    pub fn accepted_since(&self, moment: Instant) -> usize {
        self.lock()
            .accepted_at
            .iter()
            .filter(|&&at| at > moment)
            .count()
    }

    /// The longest time without a 250 between `from` and `to` in which this process ran.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let mut moments: Vec<Instant> = self
            .lock()
            .accepted_at
            .iter()
            .copied()
            .filter(|&at| at > from && at < to)
            .collect();
        moments.push(to);
        moments.sort();
        let mut last = from;
        let mut longest = Duration::ZERO;
        for moment in moments {
            longest = longest.max(awake::between(last, moment));
            last = moment;
        }
        longest
    }

    /// Joins offers and outcomes with what is in the sink now.
    ///
    /// # Errors
    /// When a file of the sink cannot be read.
    pub fn judge(&self, sink: &Store) -> Result<Verdict> {
        self.read_files(sink)?;
        Ok(judge::judge(&self.lock()))
    }

    /// Milliseconds from the 250 to the arrival, sorted, of messages that were accepted in this time (by the
    /// machine's clock) and are of interest. Who has not arrived counts as arriving at `to`.
    #[must_use]
    pub fn delays(
        &self,
        from_ms: u64,
        to_ms: u64,
        of_interest: impl Fn(&Offer) -> bool,
    ) -> Vec<u64> {
        let book = self.lock();
        let mut arrived: HashMap<&str, u64> = HashMap::new();
        for arrival in book.files.values() {
            if let Arrival::Checked { token, at_ms, .. } = arrival {
                let first = arrived.entry(token).or_insert(*at_ms);
                *first = (*first).min(*at_ms);
            }
        }
        let entries = book.entries.values();
        let mut delays: Vec<u64> = entries
            .filter(|entry| of_interest(&entry.offer))
            .filter_map(|entry| {
                let accepted = entry
                    .accepted_ms
                    .filter(|at| (from_ms..to_ms).contains(at))?;
                let at = arrived.get(entry.offer.token.as_str()).unwrap_or(&to_ms);
                Some(at.saturating_sub(accepted))
            })
            .collect();
        delays.sort_unstable();
        delays
    }

    /// Judges again and again until nothing accepted is missing or `limit` is over; gives the last verdict.
    ///
    /// # Errors
    /// When a file of the sink cannot be read.
    pub async fn settle(&self, sink: &Store, limit: Duration) -> Result<Verdict> {
        let began = Instant::now();
        loop {
            let verdict = self.judge(sink)?;
            if verdict.lost.is_empty() || awake::since(began) >= limit {
                return Ok(verdict);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn read_files(&self, sink: &Store) -> Result<()> {
        for file in sink.files()? {
            if self.lock().files.contains_key(&file) {
                continue;
            }
            let received = sink.received(file)?;
            let arrival = arrival(&received)?;
            let mut book = self.lock();
            let checked = check(arrival, &book.entries);
            if self.thrifty && checked.is_right() {
                sink.forget(&received.file)?;
            }
            book.files.insert(received.file, checked);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
