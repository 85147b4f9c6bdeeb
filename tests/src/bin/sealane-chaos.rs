//! `sealane-chaos`: faults on real processes under load; `make chaos` runs it.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use rand::Rng;
use sealane_tests::chaos::damage::{self, Damage};
use sealane_tests::chaos::space::{self, Ill, Place};
use sealane_tests::chaos::{mixed, power};

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Plan {
    /// Everything at random.
    Mixed,
    /// Power losses of one, of two and of all nodes at once.
    Powerloss,
    /// Flipped bits and old copies, one volume after the other.
    Damage,
    /// Full and slow disks.
    Space,
}

/// Faults on real processes under load. The exit status says whether all promises held.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "mixed")]
    plan: Plan,
    /// Repeats a run's choices; the times of real processes are their own.
    #[arg(long)]
    seed: Option<u64>,
    /// How long the mixed plan goes on.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Power losses of each number of nodes.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Only these faults, numbers of nodes, damages, or cases.
    #[arg(long)]
    only: Vec<String>,
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
    let plan = if args.lie { Plan::Powerloss } else { args.plan };
    match plan {
        Plan::Mixed => {
            let time = std::time::Duration::from_secs(60 * args.minutes);
            let only = args.only.clone();
            Box::pin(mixed::run(&mixed::Plan { seed, time, only }))
                .await?
                .hold()?;
        }
        Plan::Powerloss => {
            let together = match (args.lie, args.only.as_slice()) {
                (true, _) => vec![3],
                (false, []) => vec![1, 2, 3],
                (false, only) => only.iter().map(|n| n.parse()).collect::<Result<_, _>>()?,
            };
            let quantities = Box::pin(power::run(&power::Plan {
                rounds: args.rounds,
                together: together.clone(),
                lie: args.lie,
                seed,
            }))
            .await?;
            if args.lie {
                let lost = quantities.verdict.lost.len();
                ensure!(
                    lost > 0 && quantities.disks.lies > 0,
                    "the judge saw no loss of disks that lie: {quantities}"
                );
                println!("the run failed as it had to: {lost} messages lost after 250");
                return Ok(());
            }
            quantities.hold()?;
            ensure!(
                quantities.faults.values().sum::<usize>() == together.len() * args.rounds,
                "not every power loss took effect: {quantities}"
            );
        }
        Plan::Damage => {
            let chosen = |damage: &Damage| {
                args.only.is_empty() || args.only.contains(&format!("{damage:?}"))
            };
            let damages: Vec<Damage> = Damage::ALL.into_iter().filter(chosen).collect();
            Box::pin(damage::run(&damages)).await?.hold()?;
        }
        Plan::Space => {
            let mut cases = Vec::new();
            for place in [Place::Leader, Place::Follower, Place::Everywhere] {
                for ill in [Ill::Full, Ill::Exhausted, Ill::Slow(1000), Ill::Slow(3000)] {
                    let name = format!("{ill:?} {place:?}");
                    if args.only.is_empty() || args.only.contains(&name) {
                        cases.push((ill, place));
                    }
                }
            }
            Box::pin(space::run(&cases)).await?.hold()?;
        }
    }
    println!("all promises held");
    Ok(())
}
