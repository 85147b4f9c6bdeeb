//! Many simulations, each twice, each in a process of its own.
use crate::{Arguments, report::Report};
use anyhow::Context;
use std::{
    collections::VecDeque,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Where chance comes from: see `c/chance.c`.
const CHANCE: &str = "SEALANE_SIM_CHANCE";

/// One seed to run.
#[derive(Debug, Clone, Copy)]
struct Job {
    seed: u64,
    /// Whatever it would be by itself.
    wild_clocks: bool,
}

/// After the number of a seed in the file of regressions.
const WILD: &str = "wild-clocks";

fn simulate(arguments: &Arguments, job: Job, print: bool) -> anyhow::Result<Report> {
    let seed = job.seed;
    // A simulation's names of temporary files are as repeatable as all its chance: in a folder that others use
    // a name may be taken, and the second try would be another run.
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--one", &seed.to_string()])
        .env(CHANCE, seed.to_string())
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped());
    for (yes, flag) in [
        (arguments.lies, "--lies"),
        (job.wild_clocks, "--wild-clocks"),
    ] {
        if yes {
            command.arg(flag);
        }
    }
    if print {
        command.args(["--seed", &seed.to_string()]);
    }
    let out = command.spawn()?.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last)
        .with_context(|| format!("seed {seed}: {} without a report", out.status))
}

/// A seed, twice.
fn twice(arguments: &Arguments, job: Job) -> Report {
    let seed = job.seed;
    let run = || match simulate(arguments, job, false) {
        Ok(report) => report,
        Err(e) => Report {
            seed,
            violations: vec![format!("{e:#}")],
            ..Report::default()
        },
    };
    let mut first = run();
    if arguments.once {
        return first;
    }
    let second = run();
    if first.hash != second.hash {
        first.violations.push(format!(
            "two runs differ: {} events with hash {:016x}, {} with {:016x}",
            first.number("events"),
            first.hash,
            second.number("events"),
            second.hash
        ));
    }
    first
}

fn regressions(arguments: &Arguments) -> anyhow::Result<Vec<Job>> {
    let Some(path) = &arguments.regressions else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let seeds = text
        .lines()
        .map(|l| l.split('#').next().unwrap_or_default().trim())
        .filter(|l| !l.is_empty());
    seeds
        .map(|l| {
            let (number, wild) = match l.strip_suffix(WILD) {
                Some(number) => (number.trim(), true),
                None => (l, false),
            };
            let seed = number
                .parse()
                .with_context(|| format!("{}: {l:?}", path.display()))?;
            Ok(Job {
                seed,
                wild_clocks: wild || arguments.wild_clocks,
            })
        })
        .collect()
}

/// True if all is as it must be.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(seed) = arguments.seed {
        let job = Job {
            seed,
            wild_clocks: arguments.wild_clocks,
        };
        let report = simulate(arguments, job, true)?;
        print(&report, 1);
        return Ok(report.violations.is_empty());
    }
    let first = match arguments.first {
        0 => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() * 1000,
        n => n,
    };
    let mut seeds: VecDeque<Job> = regressions(arguments)?.into();
    seeds.extend((first..first + arguments.seeds).map(|seed| Job {
        seed,
        wild_clocks: arguments.wild_clocks,
    }));
    let count = seeds.len();
    println!(
        "{count} seeds, each {}; new ones begin at {first}",
        if arguments.once { "once" } else { "twice" }
    );
    let started = Instant::now();
    let (queue, done) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = next else { return };
                    let report = twice(arguments, job);
                    if arguments.first_red && !report.violations.is_empty() {
                        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    }
                    for what in &report.violations {
                        println!("seed {}: {what}", job.seed);
                    }
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(report);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut sum = Report::default();
    done.iter().for_each(|r| sum.add(r));
    print(&sum, count);
    println!("{:>12.0} s of real time", started.elapsed().as_secs_f64());
    let mut red: Vec<u64> = done
        .iter()
        .filter(|r| !r.violations.is_empty())
        .map(|r| r.seed)
        .collect();
    red.sort_unstable();
    if !red.is_empty() {
        println!(
            "FAILED seeds: {red:?}; replay: make sim SEED={}",
            red.first().unwrap_or(&0)
        );
    }
    let idle = sum.faults() == 0 || sum.number("offered") == 0 || sum.number("acknowledged") == 0;
    if idle {
        println!("FAILED: nothing was offered, or no fault took effect");
    }
    Ok(red.is_empty() && !idle)
}

fn print(report: &Report, seeds: usize) {
    println!("{seeds:>12} seeds");
    for (what, n) in &report.numbers {
        println!("{n:>12} {what}");
    }
    println!("{:>12} faults in effect", report.faults());
    println!("{:>12} violations", report.violations.len());
}
