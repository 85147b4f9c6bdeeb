//! Deterministic simulation of a Sealane cluster: `make sim SEEDS=200`, `make sim SEED=7`.
//!
//! ```text
//!  seed ─► plan ─► founding ─► storm (mail and faults) ─► settle ─► durability scan ─► report
//!                    │            │
//!                    whole nodes of the product, whole clients of the relays
//!                    over turmoil's network, a simulated disk, simulated clocks
//! ```
//!
//! What is simulated: the network below TCP ([`world`]), the database below its write-ahead log and the
//! small files ([`disk`], [`files`]), wall clocks ([`clocks`]), the machine's randomness (`c/chance.c`).
//! Everything above is the product. Who judges knows nothing of it: [`ledger`] sees mail from outside,
//! [`witness`] and [`audit`] see the disks from below.
//!
//! Every run is a process of its own, and every seed is run twice: the hash over all events must agree.
#![forbid(unsafe_code)]

mod admin;
mod audit;
mod clocks;
mod disk;
mod files;
mod ledger;
mod many;
mod node;
mod pki;
mod plan;
mod relay;
mod report;
mod run;
mod sink;
mod storm;
mod trace;
mod witness;
mod world;
mod zombie;

use clap::Parser;
use std::process::ExitCode;

/// Simulates clusters; every seed decides everything.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first of them; 0: chosen by the clock, and printed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// One seed only, with every event on standard error.
    #[arg(long)]
    seed: Option<u64>,
    /// A file of seeds, one a line, `#` begins a comment: they are run before the others.
    #[arg(long)]
    regressions: Option<std::path::PathBuf>,
    /// Syncs are acknowledged and not done: the runs must fail.
    #[arg(long)]
    lies: bool,
    /// Clocks are wrong by an hour and by years in every seed, not in two of five.
    #[arg(long)]
    wild_clocks: bool,
    /// Each seed once only: does not notice what makes a run unrepeatable.
    #[arg(long)]
    once: bool,
    /// Begins no other seed after one that is red.
    #[arg(long)]
    first_red: bool,
    /// Simulations at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// One run in this process; prints its report as JSON.
    #[arg(long, hide = true)]
    one: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.one {
        Some(seed) => one(&arguments, seed),
        None => many::run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("sealane-sim: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The simulation must go on; so many pulses without a step are a loop that no simulated time ends.
const PULSE: std::time::Duration = std::time::Duration::from_millis(50);
const STUCK: u32 = 400;

/// On a thread of its own: what it asks of chance is counted by thread.
fn one(arguments: &Arguments, seed: u64) -> anyhow::Result<bool> {
    // Names of temporary files repeat from run to run, so the folder must be this run's own (`many`).
    let temporary = std::env::temp_dir();
    anyhow::ensure!(
        std::fs::read_dir(&temporary)?.next().is_none(),
        "seed {seed}: {} is not empty: another run in it would change this one",
        temporary.display()
    );
    if arguments.seed.is_some() {
        trace::print();
    }
    let mut plan = plan::Plan::new(seed);
    plan.lies = arguments.lies;
    if arguments.wild_clocks {
        plan.skew_ms = plan::WILD_MS;
    }
    let worker = std::thread::Builder::new().stack_size(64 << 20);
    let run = worker.spawn(move || run::run(plan))?;
    let (mut steps, mut silent) = (0, 0);
    let report = loop {
        if run.is_finished() {
            break run
                .join()
                .map_err(|_| anyhow::anyhow!("the simulation panicked"))??;
        }
        std::thread::sleep(PULSE);
        let now = run::steps();
        silent = if now == steps { silent + 1 } else { 0 };
        steps = now;
        if silent >= STUCK {
            break report::Report {
                seed,
                violations: vec![format!(
                    "a task goes round without time passing, since {} ms",
                    trace::now()
                )],
                ..Default::default()
            };
        }
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(report.violations.is_empty())
}
