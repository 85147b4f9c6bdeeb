//! What a run did, in numbers: a pass says nothing without them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, number};
use crate::ledger::Verdict;
use crate::powerloss::Statistics;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Quantities {
    pub verdict: Verdict,
    pub disks: Statistics,
    /// How often each fault took effect.
    pub faults: BTreeMap<String, usize>,
    /// Terms of all groups that passed: every leader change is at least one.
    pub terms: u64,
    /// Changes of a group's leader, as seen after each fault.
    pub leader_changes: usize,
    /// What was seen until all was well again, by fault.
    pub after: BTreeMap<String, After>,
    /// Faults after which what was in the air may be given out again.
    pub may_repeat: usize,
    /// Times that the whole machine stopped: a pause of every process.
    pub stops: usize,
    /// Mail that the peer may have kept without an answer.
    pub kept_and_dropped: usize,
    /// Packets that the kernel dropped or refused.
    pub packets: u64,
    /// Octets in which nothing in clear was found.
    pub overheard: usize,
    /// Mail commands that the peer was sent in clear.
    pub clear_commands: u64,
    /// Messages in the queue at the end.
    pub waiting: u64,
    /// Lines in the logs that should not be there.
    pub said_by_logs: BTreeMap<String, usize>,
    duplicates_before: usize,
    /// Most duplicates that the faults explain.
    pub explained: usize,
    /// 250s for messages that were in the queue only when power was lost.
    pub at_stake: usize,
    pub seconds: f32,
}

/// What was seen from a fault on until all was well again.
#[derive(Debug, Default)]
pub struct After {
    pub duplicates: usize,
    pub longest_gap: Duration,
}

impl fmt::Display for Quantities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict)?;
        writeln!(
            f,
            "seconds={:.0} accepted/s={:.0} faults={} {:?} elections={} leader-changes={} at-stake={} duplicates={} of at most {}",
            self.seconds,
            self.verdict.accepted as f32 / self.seconds.max(1.0),
            self.faults.values().sum::<usize>(),
            self.faults,
            self.terms,
            self.leader_changes,
            self.at_stake,
            self.verdict.duplicates,
            self.explained,
        )?;
        for (fault, after) in &self.after {
            writeln!(
                f,
                "    {fault}: {} times, longest gap {:.1} s, {} delivered twice",
                self.faults.get(fault).copied().unwrap_or_default(),
                after.longest_gap.as_secs_f32(),
                after.duplicates,
            )?;
        }
        writeln!(
            f,
            "stops-of-the-machine={} packets-dropped={} overheard={} octets clear-commands={} waiting={} logs={:?}",
            self.stops,
            self.packets,
            self.overheard,
            self.clear_commands,
            self.waiting,
            self.said_by_logs,
        )?;
        write!(
            f,
            "power-losses={} discarded={} octets and {} names, syncs={} lies={} failed-syncs={} no-space={}",
            self.disks.power_losses,
            self.disks.discarded,
            self.disks.discarded_names,
            self.disks.syncs,
            self.disks.lies,
            self.disks.failed_syncs,
            self.disks.no_space,
        )
    }
}

impl Quantities {
    /// Counts an effect of a fault, and what came of it; gives the deliveries that were repeated since the last.
    pub fn note(&mut self, fault: &str, verdict: &Verdict, gap: Duration) -> usize {
        self.took_effect(fault);
        let duplicates = verdict.duplicates.saturating_sub(self.duplicates_before);
        self.duplicates_before = verdict.duplicates;
        let after = self.after.entry(fault.to_owned()).or_default();
        after.duplicates += duplicates;
        after.longest_gap = after.longest_gap.max(gap);
        duplicates
    }

    /// Counts an effect of a fault.
    pub fn took_effect(&mut self, fault: &str) {
        *self.faults.entry(fault.to_owned()).or_default() += 1;
    }

    /// Nothing lost, nothing invented, no more duplicates than explained, and not a run in which nothing happened.
    ///
    /// # Errors
    /// Says which of these does not hold.
    pub fn hold(&self) -> Result<()> {
        self.verdict.holds()?;
        ensure!(
            self.verdict.duplicates <= self.explained,
            "too many duplicates: {self}"
        );
        ensure!(
            self.verdict.permanent == 0,
            "a fault of ours became a 5xx: {self}"
        );
        ensure!(self.waiting == 0, "the queue is not empty: {self}");
        ensure!(self.clear_commands == 0, "mail commands in clear: {self}");
        let panics = self.said_by_logs.get("panicked at").copied();
        ensure!(panics.unwrap_or_default() == 0, "a panic: {self}");
        ensure!(
            self.faults.values().sum::<usize>() > 0,
            "no fault took effect: {self}"
        );
        ensure!(
            self.verdict.accepted > 100,
            "hardly anything flowed: {self}"
        );
        Ok(())
    }
}

/// The terms of all groups, added up.
///
/// # Errors
/// When the admin CLI fails.
pub(crate) async fn terms(cluster: &Cluster) -> Result<u64> {
    let status = cluster.admin_json(&["cluster", "status"]).await?;
    let groups = status
        .get("groups")
        .and_then(Value::as_array)
        .context("groups")?;
    Ok(groups.iter().map(|group| number(group, "term")).sum())
}
