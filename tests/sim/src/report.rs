//! What a run did, to print and to judge.
use crate::{disk::DiskCounts, ledger::Counts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What counts as a fault that took effect.
const FAULTS: [&str; 11] = [
    "power losses",
    "kills",
    "relay kills",
    "storage aborts",
    "links cut",
    "links held",
    "clocks set wrong",
    "stalled writes",
    "slow syncs",
    "failed writes or syncs",
    "bits flipped",
];

/// One run, or the sum of several.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Which.
    pub(crate) seed: u64,
    /// Of all events: equal for two runs of a seed.
    pub(crate) hash: u64,
    /// By name.
    pub(crate) numbers: BTreeMap<String, u64>,
    /// Rules that were broken.
    pub(crate) violations: Vec<String>,
}

impl Report {
    /// Counts more of something.
    pub(crate) fn count(&mut self, what: &str, n: u64) {
        *self.numbers.entry(what.to_owned()).or_default() += n;
    }

    /// How much of it there was.
    pub(crate) fn number(&self, what: &str) -> u64 {
        self.numbers.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn disk(&mut self, d: &DiskCounts) {
        self.count("octets of unsynced data discarded", d.lost_octets);
        self.count("batches discarded", d.lost_batches);
        self.count("batches torn", d.torn);
        self.count("failed writes or syncs", d.errors);
        self.count("syncs after a failed one", d.after_error);
        self.count("stalled writes", d.stalls);
        self.count("slow syncs", d.slow);
        self.count("syncs", d.syncs);
        self.count("batches written", d.batches);
        self.count("bits flipped", d.flips + d.flips_before);
    }

    pub(crate) fn mail(&mut self, c: &Counts) {
        self.count("offered", c.offered);
        self.count("acknowledged", c.accepted);
        self.count("refused", c.refused);
        self.count("withdrawn and refused", c.withdrawn);
        self.count("unanswered", c.silent);
        self.count("recipients delivered", c.delivered);
        self.count("duplicates", c.duplicates);
        self.count("recipients returned with a report", c.returned);
        self.count("leases", c.leases);
        self.count("reports under an old epoch", c.lies);
    }

    /// Faults that had an effect.
    pub(crate) fn faults(&self) -> u64 {
        FAULTS.iter().map(|f| self.number(f)).sum()
    }

    /// Adds the numbers of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        for (what, n) in &other.numbers {
            self.count(what, *n);
        }
        self.violations.extend(other.violations.iter().cloned());
    }
}
