//! Costs, as the kernel counts them: CPU, bytes written, memory; and the product's own sync counters.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde::Serialize;

/// Kernel clock ticks per second: a constant of the Linux ABI.
const TICKS: f64 = 100.0;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// User and system, children that ended included.
    pub(crate) cpu_seconds: f64,
    /// To block devices.
    pub(crate) written: u64,
    /// Most resident memory so far.
    pub(crate) peak_memory: u64,
}

impl Usage {
    /// What was used since `earlier`; the peak stays the peak.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
            written: self.written.saturating_sub(earlier.written),
            peak_memory: self.peak_memory,
        }
    }
}

/// Of one process.
///
/// # Errors
/// When it is gone.
pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("io")?;
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    Ok(Usage {
        cpu_seconds: cpu(&format!("/proc/{pid}/stat"), true)?,
        written,
        peak_memory: sealane_tests::process::peak_resident(pid).unwrap_or(0),
    })
}

/// Of a process and all its living descendants, memory added up.
///
/// # Errors
/// When it is gone.
pub(crate) fn tree(root: u32) -> Result<Usage> {
    let mut parents: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if let Some(parent) = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok())
        {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let mut total = usage(root)?;
    let mut open = parents.remove(&root).unwrap_or_default();
    while let Some(pid) = open.pop() {
        open.extend(parents.remove(&pid).unwrap_or_default());
        if let Ok(one) = usage(pid) {
            total.cpu_seconds += one.cpu_seconds;
            total.written += one.written;
            total.peak_memory += one.peak_memory;
        }
    }
    Ok(total)
}

/// CPU seconds of this process's threads by the first word of their names.
///
/// # Errors
/// When /proc is not there.
pub(crate) fn threads() -> Result<BTreeMap<String, f64>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task")?.flatten() {
        let folder = entry.path();
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let name = name.trim().split('-').next().unwrap_or_default().to_owned();
        if let Ok(seconds) = cpu(&folder.join("stat").display().to_string(), false) {
            *out.entry(name).or_default() += seconds;
        }
    }
    Ok(out)
}

fn cpu(path: &str, with_children: bool) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let fields = text.rsplit_once(") ").context("stat")?.1;
    // utime, stime, cutime, cstime are fields 14 to 17; the first one here is field 3.
    let count = if with_children { 4 } else { 2 };
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(count)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / TICKS)
}

/// Syncs of a node's store, and writes that they made durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Syncs {
    pub(crate) syncs: u64,
    pub(crate) writes: u64,
}

/// Read from the Prometheus endpoint of a control-plane node.
///
/// # Errors
/// When nobody answers.
pub(crate) async fn syncs(metrics: SocketAddr) -> Result<Syncs> {
    let text = sealane_tests::cluster::http_get(metrics, "/metrics").await?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok(Syncs {
        syncs: value("sealane_store_syncs_total"),
        writes: value("sealane_store_synced_writes_total"),
    })
}
