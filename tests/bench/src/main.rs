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
mod load;
mod measure;
mod report;
mod run;
mod sink;
mod times;

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
        return Ok(());
    }
    let cases = cases::select(&args.cases)?;
    let mut report = report::Report::new(args.smoke);
    for case in cases {
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
        report.add(&case, ours, theirs);
    }
    report.write(&args.report)?;
    println!("{report}");
    println!("JSON: {}", args.report.display());
    Ok(())
}
