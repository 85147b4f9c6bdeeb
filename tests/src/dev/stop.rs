//! `kill`, `stop` and `status`.

use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::banner;
use super::state::{RunFolder, SINK, State};

/// How long processes may take to end after SIGTERM; a relay node lets its sessions end.
const GRACE: Duration = Duration::from_secs(20);

/// SIGKILL, and the record says so.
pub(super) fn kill(dir: &Path, name: &str) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, false)?;
    let mut state = folder.state()?;
    state.spec(name)?;
    let id = state
        .processes
        .remove(name)
        .with_context(|| format!("{name} does not run"))?;
    id.signal(Signal::SIGKILL);
    let gone = id.wait_gone(Duration::from_secs(10));
    folder.save(&state)?;
    anyhow::ensure!(gone, "{name} (pid {}) does not go away", id.pid);
    println!(
        "{name} (pid {}) was killed; `make start NAME={name}` starts it again",
        id.pid
    );
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM to one process, and the record says so once it is gone.
pub(super) fn stop_one(dir: &Path, name: &str) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, false)?;
    let mut state = folder.state()?;
    state.spec(name)?;
    anyhow::ensure!(state.processes.contains_key(name), "{name} does not run");
    end(&mut state, &[name.to_owned()]);
    folder.save(&state)?;
    println!("{name} ended; `make start NAME={name}` starts it again");
    Ok(ExitCode::SUCCESS)
}

/// Stops everything; data, mail and logs stay until the next `run`.
pub(super) fn stop(dir: &Path) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, false)?;
    let mut state = folder.state()?;
    // A foreground run ends by itself when its processes are gone.
    state.supervisor = None;
    let count = state.processes.len();
    all(&folder, &mut state, &mut Vec::new())?;
    println!(
        "stopped {count} processes; data, mail and logs stay in {}",
        folder.path.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Relay nodes first (they still need the control plane to give back what they hold), the sink last.
pub(super) fn all(
    folder: &RunFolder,
    state: &mut State,
    children: &mut Vec<(String, Child)>,
) -> Result<()> {
    let relays: Vec<String> = state
        .layout
        .relays
        .iter()
        .map(|node| node.name.clone())
        .collect();
    let control: Vec<String> = state
        .layout
        .control_planes
        .iter()
        .map(|node| node.name.clone())
        .collect();
    for group in [relays, control, vec![SINK.to_owned()]] {
        end(state, &group);
        folder.save(state)?;
    }
    for (_, child) in children.iter_mut() {
        let _reaped = child.wait();
    }
    children.clear();
    Ok(())
}

fn end(state: &mut State, names: &[String]) {
    let ids: Vec<_> = names
        .iter()
        .filter_map(|name| state.processes.remove(name))
        .collect();
    // A stopped process (SIGSTOP) cannot end in order: let it run.
    for id in &ids {
        id.signal(Signal::SIGTERM);
        id.signal(Signal::SIGCONT);
    }
    let deadline = Instant::now() + GRACE;
    for id in ids {
        if !id.wait_gone(deadline.saturating_duration_since(Instant::now())) {
            id.signal(Signal::SIGKILL);
            let _gone = id.wait_gone(Duration::from_secs(5));
        }
    }
}

pub(super) fn status(dir: &Path) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, false)?;
    let state = folder.state()?;
    folder.save(&state)?;
    print!("{}", banner::processes(&state));
    Ok(ExitCode::SUCCESS)
}
