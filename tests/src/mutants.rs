//! Negative controls: breaks the product one rule at a time and sees who notices.
//!
//! ```text
//!  table ─► build once with the feature ─► for each catcher: without a mutant it is green,
//!                                          with the mutant it is red, and for this reason
//! ```
//!
//! A catcher that is red is believed only if the process said that the broken place was reached, and if
//! the named test or invariant is what failed: a test that does not start proves nothing.

mod build;
mod catch;
mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;

use build::Built;
use catch::Verdict;
use table::{Catcher, MUTANTS, Mutant};

/// Breaks the product on purpose, one rule at a time, and shows which test notices.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Only what a test of one crate catches: no binary is built for it.
    #[arg(long)]
    quick: bool,
    /// These mutants only: M1,M14.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Prints what the catchers printed.
    #[arg(long)]
    verbose: bool,
}

/// One line of the answer.
struct Line {
    mutant: &'static Mutant,
    catcher: &'static Catcher,
    verdict: Verdict,
    took: Duration,
}

fn chosen(cli: &Cli) -> Result<Vec<(&'static Mutant, &'static Catcher)>> {
    for name in &cli.only {
        if !MUTANTS.iter().any(|m| m.name == name) {
            bail!("--only: no mutant is named {name}");
        }
    }
    Ok(MUTANTS
        .iter()
        .filter(|m| cli.only.is_empty() || cli.only.iter().any(|name| name == m.name))
        .flat_map(|m| m.caught_by.iter().map(move |c| (m, c)))
        .filter(|(m, c)| {
            let first = m.caught_by.first() == Some(*c);
            !cli.quick || (first && matches!(c, Catcher::Test { .. }))
        })
        .collect())
}

/// True if every mutant is caught.
///
/// # Errors
/// When the mutants cannot be built, or a catcher cannot be started.
pub async fn main(cli: Cli) -> Result<bool> {
    let work = chosen(&cli)?;
    let started = Instant::now();
    let built = Built::make(cli.quick).await?;
    println!(
        "built with the feature in {:.0} s; {} binaries hold the marker, {} of the product do not",
        started.elapsed().as_secs_f64(),
        built.marked,
        built.clean
    );
    let mut lines = Vec::new();
    let mut green: BTreeMap<String, bool> = BTreeMap::new();
    for (mutant, catcher) in work {
        let known = green.get(&catcher.control()).copied();
        let sound = match known {
            Some(sound) => sound,
            None => {
                let run = catch::run(&built, catcher, None).await?;
                let sound = catch::is_green(catcher, &run);
                if !sound {
                    println!("without a mutant: {catcher} is not green:\n{}", run.said);
                }
                green.insert(catcher.control(), sound);
                sound
            }
        };
        let run = catch::run(&built, catcher, Some(mutant.name)).await?;
        let verdict = if sound {
            catch::judge(mutant.name, catcher, &run)
        } else {
            Verdict::Unsound
        };
        if cli.verbose || !matches!(verdict, Verdict::Caught) {
            println!("{} under {catcher}:\n{}", mutant.name, run.said);
        }
        eprintln!(
            "{}: {verdict}, {:.0} s, {catcher}",
            mutant.name,
            run.took.as_secs_f64()
        );
        lines.push(Line {
            mutant,
            catcher,
            verdict,
            took: run.took,
        });
    }
    Ok(report(&lines, started.elapsed()))
}

fn report(lines: &[Line], took: Duration) -> bool {
    println!("mutant  {:<62}  seconds  caught by", "what it breaks");
    for line in lines {
        let words = match &line.verdict {
            Verdict::Caught => line.catcher.to_string(),
            other => format!("NOT CAUGHT by {}: {other}", line.catcher),
        };
        println!(
            "{:<6}  {:<62}  {:>7.1}  {words}",
            line.mutant.name,
            line.mutant.breaks,
            line.took.as_secs_f64()
        );
    }
    let all: std::collections::BTreeSet<_> = lines.iter().map(|l| l.mutant.name).collect();
    let missed: std::collections::BTreeSet<_> = lines
        .iter()
        .filter(|l| !matches!(l.verdict, Verdict::Caught))
        .map(|l| l.mutant.name)
        .collect();
    println!(
        "{} mutants, {} caught by every test that must, in {:.0} s",
        all.len(),
        all.len() - missed.len(),
        took.as_secs_f64()
    );
    missed.is_empty() && !all.is_empty()
}
