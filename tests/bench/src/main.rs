#![forbid(unsafe_code)]
//! `make bench`: how much mail the whole system takes and delivers, at what latency, and what it costs.
//!
//! ```text
//!  load ── SMTP+TLS ──▶ the system under test (Sealane or Postfix) ── SMTP+TLS ──▶ sink
//!   └──────────────── one table of times per message number ───────────────────────┘
//! ```
//!
//! Load and sink share this process but no thread; both do as little as the protocol allows. Every
//! case starts a fresh system on empty volumes. Durability is never off.

mod cases;
mod failover;
mod growth;
mod load;
mod measure;
mod profile;
mod report;
mod run;
mod sink;
mod times;
mod waiting;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// Measures Sealane, alone or against a peer on the same work in the same run.
#[derive(Debug, Parser)]
#[command(name = "sealane-bench", version)]
struct Args {
    /// Cases to run, by name; all if none is given. `--list` names them.
    cases: Vec<String>,
    /// Run these on the peer too and print the ratio.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// A few hundred messages per case: shows that everything works, measures nothing.
    #[arg(long)]
    smoke: bool,
    /// Runs of every case; the median by delivered messages is reported.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Messages that wait in the case `waiting`.
    #[arg(long, default_value_t = 1_000_000)]
    waiting: usize,
    /// Run every case once more under perf: a flame graph of each process beside the report.
    #[arg(long)]
    profile: bool,
    /// JSON report.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    /// Name the cases and what they are.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Debian's Postfix.
    Postfix,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.list {
        for case in cases::all() {
            println!("{:<24} {}", case.name, case.describe());
        }
        println!(
            "{:<24} leaders killed with -9 while mail flows: the longest gap in acceptance",
            cases::FAILOVER
        );
        println!(
            "{:<24} 3 → 5 → 3 control-plane nodes while mail flows",
            cases::GROWTH
        );
        println!(
            "{:<24} {} messages to 1,000 deferring destinations, then base again, then a restart",
            cases::WAITING,
            args.waiting
        );
        return Ok(());
    }
    let selected = cases::select(&args.cases)?;
    let mut report = report::Report::new(args.smoke);
    for case in selected.cases {
        let case = if args.smoke { case.small() } else { case };
        eprintln!("== {} ({})", case.name, case.describe());
        let mut runs = Vec::new();
        for _ in 0..args.repeat.max(1) {
            runs.push(run::sealane(&case).with_context(|| format!("case {}", case.name))?);
        }
        let ours = report::median(runs).context("no run")?;
        eprintln!("   sealane: {}", ours.line());
        let theirs = match args.peer {
            Some(Peer::Postfix) if case.peer => {
                let mut runs = Vec::new();
                for _ in 0..args.repeat.max(1) {
                    runs.push(
                        run::postfix(&case)
                            .with_context(|| format!("case {} on Postfix", case.name))?,
                    );
                }
                let theirs = report::median(runs).context("no run")?;
                eprintln!("   postfix: {}", theirs.line());
                Some(theirs)
            }
            _ => None,
        };
        if args.profile {
            let folder = args.report.with_file_name(case.name);
            for graph in run::profiled(&case, &folder)? {
                eprintln!("   profile: {}", graph.display());
            }
        }
        report.add(&case, ours, theirs);
        // A later case may fail: what was measured is kept.
        report.write(&args.report)?;
    }
    if selected.failover {
        eprintln!("== {}", cases::FAILOVER);
        let kills = if args.smoke { 1 } else { 5 };
        report.failover = Some(failover::run(kills).context("case failover")?);
        report.write(&args.report)?;
    }
    if selected.growth {
        eprintln!("== {}", cases::GROWTH);
        report.growth = Some(growth::run(args.smoke).context("case growth")?);
        report.write(&args.report)?;
    }
    if selected.waiting {
        let (count, probe) = if args.smoke {
            (2_000, 200)
        } else {
            (args.waiting, 30_000)
        };
        eprintln!("== {} ({count} messages)", cases::WAITING);
        report.waiting = Some(waiting::run(count, probe).context("case waiting")?);
    }
    report.write(&args.report)?;
    println!("{report}");
    println!("JSON: {}", args.report.display());
    Ok(())
}
