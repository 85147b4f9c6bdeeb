//! Runs who must notice, and judges whether it noticed that.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::process::Command;
use tokio::time::timeout;

use super::build::Built;
use super::table::Catcher;

/// Nobody takes longer, except who is stuck: that is no verdict.
const DEADLINE: Duration = Duration::from_secs(1200);

/// What a catcher did.
#[derive(Debug)]
pub(super) struct Run {
    /// `None`: it did not end.
    pub(super) status: Option<ExitStatus>,
    pub(super) said: String,
    /// The mutant that a process says it was, where it breaks the rule.
    pub(super) reached: String,
    pub(super) took: Duration,
}

/// What it means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It noticed, and for this reason.
    Caught,
    /// It saw nothing wrong.
    Missed,
    /// It is red without a mutant too.
    Unsound,
    /// It is red, but not for this reason.
    Otherwise(&'static str),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caught => "caught",
            Self::Missed => "it saw nothing wrong",
            Self::Unsound => "it is not green without a mutant",
            Self::Otherwise(why) => why,
        })
    }
}

fn command(built: &Built, catcher: &Catcher) -> Result<Command> {
    let mut command = match catcher {
        Catcher::Test { target, name } => {
            let test = built.test(target)?;
            let mut command = Command::new(&test.executable);
            // Elsewhere: proptest and insta write what failed into the clone.
            command
                .args(["--exact", name])
                .current_dir(std::env::temp_dir())
                .env("INSTA_UPDATE", "no")
                .env("CARGO_MANIFEST_DIR", &test.folder);
            command
        }
        Catcher::Simulation { first, seeds, .. } => {
            let mut command = Command::new(built.folder.join("sealane-sim"));
            command
                .args(["--once", "--first-red", "--first", &first.to_string()])
                .args(["--seeds", &seeds.to_string()]);
            command
        }
    };
    command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .env_remove("SEALANE_MUTANT");
    Ok(command)
}

/// Runs a catcher, with or without a mutant.
pub(super) async fn run(built: &Built, catcher: &Catcher, mutant: Option<&str>) -> Result<Run> {
    let mut command = command(built, catcher)?;
    let folder = tempfile::tempdir()?;
    let reached = folder.path().join("reached");
    command.env("SEALANE_MUTANT_REACHED", &reached);
    if let Some(name) = mutant {
        command.env("SEALANE_MUTANT", name);
    }
    let started = Instant::now();
    let (status, said) = match timeout(DEADLINE, command.output()).await {
        Ok(ended) => {
            let ended = ended.with_context(|| catcher.to_string())?;
            let text = |octets| String::from_utf8_lossy(octets).into_owned();
            let said = text(&ended.stdout) + &text(&ended.stderr);
            (Some(ended.status), said)
        }
        Err(_) => (None, String::new()),
    };
    Ok(Run {
        status,
        said,
        reached: std::fs::read_to_string(&reached).unwrap_or_default(),
        took: started.elapsed(),
    })
}

/// Whether it is content, and did something.
pub(super) fn is_green(catcher: &Catcher, run: &Run) -> bool {
    let did = match catcher {
        Catcher::Test { .. } => run.said.contains("1 passed"),
        Catcher::Simulation { .. } => run.said.contains("faults in effect"),
    };
    run.status.is_some_and(|s| s.success()) && did
}

/// Whether it noticed this mutant.
pub(super) fn judge(mutant: &str, catcher: &Catcher, run: &Run) -> Verdict {
    let Some(status) = run.status else {
        return Verdict::Otherwise("it did not end");
    };
    if status.success() {
        return Verdict::Missed;
    }
    if run.reached != mutant {
        return Verdict::Otherwise("the broken place was not reached");
    }
    let this = match catcher {
        Catcher::Test { name, .. } => {
            run.said.contains("0 passed; 1 failed") && run.said.contains(&format!("\n    {name}\n"))
        }
        Catcher::Simulation { says, .. } => run
            .said
            .lines()
            .any(|l| l.starts_with("seed ") && l.contains(says)),
    };
    if this {
        Verdict::Caught
    } else {
        Verdict::Otherwise("it failed for another reason")
    }
}
