//! Figures, and how they are shown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::cases::Case;
use crate::failover;
use crate::growth;
use crate::measure::{Syncs, Usage};
use crate::times::Times;
use crate::waiting;

/// Milliseconds at percentiles.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub(crate) max: f64,
}

impl Latency {
    fn of(sorted: &[u64]) -> Self {
        let at = |q: f64| {
            let index = ((sorted.len() as f64 * q).ceil() as usize).saturating_sub(1);
            sorted.get(index).map_or(0.0, |us| *us as f64 / 1000.0)
        };
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} / {:.1} / {:.1} / {:.0}",
            self.p50, self.p90, self.p99, self.max
        )
    }
}

/// What one run gave.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) messages: usize,
    pub(crate) accepted_per_second: f64,
    pub(crate) delivered_per_second: f64,
    /// Final dot to 250, milliseconds.
    pub(crate) reply_ms: Latency,
    /// Final dot to the sink, milliseconds.
    pub(crate) sink_ms: Latency,
    pub(crate) duplicates: u64,
    /// CPU seconds per 1,000 messages, by process.
    pub cpu_per_1000: BTreeMap<String, f64>,
    /// All of the system under test.
    pub cpu_per_1000_total: f64,
    /// Load and sink, by thread name.
    pub own_cpu_per_1000: BTreeMap<String, f64>,
    pub(crate) syncs: BTreeMap<String, Syncs>,
    /// Messages per sync, of the node that synced most.
    pub(crate) messages_per_sync: f64,
    /// Bytes written per replica per body byte: the mean over the processes that keep the queue.
    pub(crate) written_per_body_byte: f64,
    /// Octets, by process.
    pub(crate) peak_memory: BTreeMap<String, u64>,
    /// TLS sessions at the sink.
    pub(crate) sink_connections: u64,
}

impl Figures {
    pub(crate) fn new(
        case: &Case,
        times: &Times,
        processes: BTreeMap<String, Usage>,
        syncs: BTreeMap<String, Syncs>,
        own: BTreeMap<String, f64>,
        sink_connections: u64,
    ) -> Self {
        let n = case.messages as f64;
        let per_1000 = |s: f64| s * 1000.0 / n;
        let keepers: Vec<u64> = processes
            .iter()
            .filter(|(name, _)| !name.starts_with("relay"))
            .map(|(_, u)| u.written)
            .collect();
        let body = (case.messages * case.size) as f64;
        let written = keepers.iter().sum::<u64>() as f64 / keepers.len().max(1) as f64;
        let most = syncs.values().map(|s| s.syncs).max().unwrap_or(0);
        Self {
            messages: case.messages,
            accepted_per_second: times.accepted_count() as f64 / times.accepting().as_secs_f64(),
            delivered_per_second: times.delivered_count() as f64 / times.delivering().as_secs_f64(),
            reply_ms: Latency::of(&times.to_reply()),
            sink_ms: Latency::of(&times.to_sink()),
            duplicates: times.duplicates(),
            cpu_per_1000_total: per_1000(processes.values().map(|u| u.cpu_seconds).sum()),
            cpu_per_1000: processes
                .iter()
                .map(|(k, u)| (k.clone(), per_1000(u.cpu_seconds)))
                .collect(),
            own_cpu_per_1000: own.into_iter().map(|(k, s)| (k, per_1000(s))).collect(),
            messages_per_sync: if most == 0 { 0.0 } else { n / most as f64 },
            syncs,
            written_per_body_byte: written / body,
            peak_memory: processes
                .iter()
                .map(|(k, u)| (k.clone(), u.peak_memory))
                .collect(),
            sink_connections,
        }
    }

    /// One line for the progress.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:.0} accepted/s, {:.0} delivered/s, 250 after {} ms (p50/p90/p99/max), {:.2} CPU-ms per message, {:.1} messages per sync, {:.2} bytes written per body byte",
            self.accepted_per_second,
            self.delivered_per_second,
            self.reply_ms,
            self.cpu_per_1000_total,
            self.messages_per_sync,
            self.written_per_body_byte
        )
    }
}

/// The run in the middle, by delivered messages per second.
pub(crate) fn median(mut runs: Vec<Figures>) -> Option<Figures> {
    runs.sort_by(|a, b| a.delivered_per_second.total_cmp(&b.delivered_per_second));
    let middle = runs.len().checked_sub(1)? / 2;
    runs.into_iter().nth(middle)
}

#[derive(Debug, Serialize)]
struct Row {
    case: Case,
    sealane: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_ratio: Option<f64>,
}

/// Everything of one invocation.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Figures of a smoke run say nothing.
    smoke: bool,
    cores: usize,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failover: Option<failover::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) growth: Option<growth::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<waiting::Figures>,
}

impl Report {
    pub(crate) fn new(smoke: bool) -> Self {
        Self {
            smoke,
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            rows: Vec::new(),
            failover: None,
            growth: None,
            waiting: None,
        }
    }

    pub(crate) fn add(&mut self, case: &Case, sealane: Figures, peer: Option<Figures>) {
        let ratio = |of: fn(&Figures) -> f64| peer.as_ref().map(|p| of(&sealane) / of(p));
        self.rows.push(Row {
            case: case.clone(),
            accepted_ratio: ratio(|f| f.accepted_per_second),
            delivered_ratio: ratio(|f| f.delivered_per_second),
            sealane,
            peer,
        });
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)?)?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "case",
            "accepted/s",
            "delivered/s",
            "dot→250 ms p50/p90/p99/max",
            "dot→sink ms p50/p90/p99/max",
            "CPU-ms/message",
            "messages/sync",
            "written/body byte",
            "peak memory",
            "peer",
            "ratio",
        ]);
        for row in &self.rows {
            let s = &row.sealane;
            let memory = s.peak_memory.values().max().copied().unwrap_or(0) >> 20;
            let peer = row.peer.as_ref().map_or_else(String::new, |p| {
                format!(
                    "{:.0} / {:.0}",
                    p.accepted_per_second, p.delivered_per_second
                )
            });
            let ratio = match (row.accepted_ratio, row.delivered_ratio) {
                (Some(a), Some(d)) => format!("{a:.2} / {d:.2}"),
                _ => String::new(),
            };
            table.add_row([
                row.case.name.to_owned(),
                format!("{:.0}", s.accepted_per_second),
                format!("{:.0}", s.delivered_per_second),
                s.reply_ms.to_string(),
                s.sink_ms.to_string(),
                format!("{:.2}", s.cpu_per_1000_total),
                format!("{:.1}", s.messages_per_sync),
                format!("{:.2}", s.written_per_body_byte),
                format!("{memory} MiB"),
                peer,
                ratio,
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if self.smoke {
            writeln!(f, "(smoke run: these figures measure nothing)")?;
        }
        if !self.rows.is_empty() {
            writeln!(f, "{table}")?;
        }
        if let Some(failover) = &self.failover {
            writeln!(
                f,
                "leader killed {} times: longest gap in acceptance {:.0} ms (each: {:.0?})",
                failover.gaps_ms.len(),
                failover.longest_ms(),
                failover.gaps_ms
            )?;
        }
        if let Some(g) = &self.growth {
            writeln!(
                f,
                "3 → 5 → 3 nodes in {:.0} s: {:.0} accepted/s meanwhile, {} of {} delivered, {} lost, {} duplicates",
                g.seconds, g.accepted_per_second, g.delivered, g.accepted, g.lost, g.duplicates
            )?;
        }
        if let Some(w) = &self.waiting {
            let keepers = w
                .memory
                .iter()
                .filter(|(name, _)| !name.starts_with("relay"));
            let memory = keepers.map(|(_, m)| *m).max().unwrap_or(0) >> 20;
            writeln!(
                f,
                "{} messages waiting: {:.2} of the acceptance and {:.2} of the delivery rate of an empty queue, \
                 250 after p99 {:.1} ms ({:.1} with an empty queue); medians of {} runs each, in turn; \
                 {:.2} processors taken while idle; {memory} MiB at most in a control-plane node; \
                 all killed: first 250 after {:.1} s, all ready after {:.1} s",
                w.waiting,
                w.accepted_ratio,
                w.delivered_ratio,
                waiting::median(&w.crowded, |f| f.reply_ms.p99),
                waiting::median(&w.empty, |f| f.reply_ms.p99),
                w.empty.len(),
                w.idle_processors,
                w.restart_to_first_250,
                w.restart_to_ready
            )?;
        }
        Ok(())
    }
}
