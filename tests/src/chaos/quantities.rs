//! What a run did, in numbers: a pass says nothing without them.

use std::collections::BTreeMap;
use std::fmt;

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
    /// Most duplicates that the faults explain.
    pub explained: usize,
    /// 250s for messages that were in the queue only when power was lost.
    pub at_stake: usize,
    pub seconds: f32,
}

impl fmt::Display for Quantities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict)?;
        writeln!(
            f,
            "seconds={:.0} accepted/s={:.0} faults={} {:?} terms={} at-stake={} duplicates={} of at most {}",
            self.seconds,
            self.verdict.accepted as f32 / self.seconds.max(1.0),
            self.faults.values().sum::<usize>(),
            self.faults,
            self.terms,
            self.at_stake,
            self.verdict.duplicates,
            self.explained,
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
