//! `sealane-chaos`: faults on real processes under load; `make chaos` runs it.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use rand::Rng;
use sealane_tests::chaos::power;

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Plan {
    /// Power losses of one, of two and of all nodes at once.
    Powerloss,
}

/// Faults on real processes under load. The exit status says whether all promises held.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "powerloss")]
    plan: Plan,
    /// Repeats a run's choices; the times of real processes are their own.
    #[arg(long)]
    seed: Option<u64>,
    /// Power losses of each number of nodes.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// All disks lie about their syncs and all nodes lose power: the run has to fail with lost mail.
    #[arg(long)]
    lie: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args
        .seed
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    match args.plan {
        Plan::Powerloss => {
            let quantities = Box::pin(power::run(&power::Plan {
                rounds: args.rounds,
                together: if args.lie { vec![3] } else { vec![1, 2, 3] },
                lie: args.lie,
                seed,
            }))
            .await?;
            quantities.hold()?;
            ensure!(
                quantities.faults.len() == if args.lie { 1 } else { 3 },
                "not all kinds of power loss took effect: {quantities}"
            );
        }
    }
    println!("all promises held");
    Ok(())
}
