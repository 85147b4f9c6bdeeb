//! What the ledger says at one moment.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

/// What the ledger says at one moment.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Different messages offered.
    pub offered: usize,
    /// Attempts, and how they ended.
    pub attempts: usize,
    pub accepted: usize,
    pub temporary: usize,
    pub permanent: usize,
    pub unknown: usize,
    pub broken: usize,
    /// Different messages that arrived for all their recipients.
    pub delivered: usize,
    /// Deliveries beyond the first (or beyond the number of 250s) of a message to a recipient.
    pub duplicates: usize,
    /// Reports (null reverse-path).
    pub dsns: usize,
    /// Recipients whose failure was reported.
    pub reported: usize,
    /// Reported twice, too often, or for somebody who did not fail.
    pub false_reports: Vec<String>,
    /// Arrived without any 250: the outcome was unknown to the client.
    pub unanswered_arrivals: usize,
    /// Arrived, though every attempt was refused or broke before the final dot: a 4xx that was not true.
    pub refused_arrivals: Vec<String>,
    /// Accepted, and not arrived or not reported.
    pub lost: Vec<String>,
    /// Arrived, never offered, or only ever refused with 5xx.
    pub phantoms: Vec<String>,
    /// Arrived with other content, another envelope, bare line ends, or without TLS.
    pub damaged: Vec<String>,
    /// Distinct texts of refusals and how often they came.
    pub refusals: BTreeMap<String, usize>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "offered={} attempts={} 250={} 4xx={} 5xx={} unknown={} broken={} delivered={} dups={} dsns={} reported={} false-reports={} \
             unanswered-arrivals={} refused-arrivals={} lost={} phantoms={} damaged={}",
            self.offered,
            self.attempts,
            self.accepted,
            self.temporary,
            self.permanent,
            self.unknown,
            self.broken,
            self.delivered,
            self.duplicates,
            self.dsns,
            self.reported,
            self.false_reports.len(),
            self.unanswered_arrivals,
            self.refused_arrivals.len(),
            self.lost.len(),
            self.phantoms.len(),
            self.damaged.len()
        )?;
        for (text, times) in self.refusals.iter().take(8) {
            write!(formatter, "\n    {times} x {text}")?;
        }
        Ok(())
    }
}

impl Verdict {
    /// Nothing lost, nothing invented, nothing changed, and something happened at all.
    ///
    /// # Errors
    /// Names the first few messages that break a rule.
    pub fn holds(&self) -> Result<()> {
        ensure!(self.accepted > 0, "vacuous: nothing was accepted: {self}");
        ensure!(
            self.lost.is_empty(),
            "lost after 250: {:?}: {self}",
            first(&self.lost)
        );
        ensure!(
            self.phantoms.is_empty(),
            "delivered but not offered: {:?}: {self}",
            first(&self.phantoms)
        );
        ensure!(
            self.false_reports.is_empty(),
            "false reports: {:?}: {self}",
            first(&self.false_reports)
        );
        ensure!(
            self.refused_arrivals.is_empty(),
            "delivered, but every answer was a refusal: {:?}: {self}",
            first(&self.refused_arrivals)
        );
        ensure!(
            self.damaged.is_empty(),
            "damaged: {:?}: {self}",
            first(&self.damaged)
        );
        Ok(())
    }
}

fn first(list: &[String]) -> &[String] {
    list.get(..5).unwrap_or(list)
}
