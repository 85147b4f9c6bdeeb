//! The foreground run: shows deliveries, notes deaths, ends all on Ctrl-C.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use super::state::{RunFolder, SINK, State};
use super::{runtime, stop};

const TICK: Duration = Duration::from_millis(200);

/// Whether Ctrl-C, SIGTERM or SIGHUP came.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on these signals no longer end this process by themselves.
    pub(super) fn install() -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&came);
        let runtime = runtime()?;
        let (mut int, mut term, mut hup) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            )
        };
        std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! { _ = int.recv() => {} _ = term.recv() => {} _ = hup.recv() => {} }
                flag.store(true, Ordering::SeqCst);
                // Further signals are heard and change nothing: the end is on its way.
                std::future::pending::<()>().await;
            });
        });
        Ok(Self(came))
    }

    pub(super) fn came(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Watches until Ctrl-C, or until another command stopped everything.
pub(super) fn watch(
    path: &Path,
    mut children: Vec<(String, Child)>,
    interrupt: &Interrupt,
) -> Result<ExitCode> {
    let mut deliveries = Deliveries::open(path)?;
    loop {
        std::thread::sleep(TICK);
        deliveries.show();
        // Our own children are reaped; who replaced them by `start` is somebody else's child.
        children.retain_mut(|(_, child)| !matches!(child.try_wait(), Ok(Some(_))));
        let folder = RunFolder::open(path, false)?;
        let Some(mut state) = load(&folder, interrupt)? else {
            println!("stopped");
            return Ok(ExitCode::SUCCESS);
        };
        if interrupt.came() {
            println!("\nstopping ...");
            state.supervisor = None;
            stop::all(&folder, &mut state, &mut children)?;
            deliveries.show();
            println!(
                "stopped; data, mail and logs stay in {} until the next run",
                path.display()
            );
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The state with deaths noted; `None` when another command ended this run.
fn load(folder: &RunFolder, interrupt: &Interrupt) -> Result<Option<State>> {
    let recorded = folder.recorded()?;
    let Some(mut state) = recorded else {
        return Ok(None);
    };
    if state
        .supervisor
        .is_none_or(|id| id.pid != std::process::id())
    {
        return Ok(None);
    }
    let dead = state.forget_dead();
    if !dead.is_empty() && !interrupt.came() {
        for name in &dead {
            println!(
                "{name} ended by itself; log: {}; `make start NAME={name}` starts it again\n{}",
                state.layout.log(name).display(),
                state.tail(name)
            );
        }
        folder.save(&state)?;
    }
    Ok(Some(state))
}

/// Follows the sink's log.
struct Deliveries(BufReader<File>);

impl Deliveries {
    fn open(path: &Path) -> Result<Self> {
        let log = RunFolder::open(path, false)?.state()?.layout.log(SINK);
        Ok(Self(BufReader::new(File::open(log)?)))
    }

    fn show(&mut self) {
        let mut line = String::new();
        while self.0.read_line(&mut line).is_ok_and(|count| count > 0) {
            if line.starts_with("delivered") {
                print!("{line}");
            }
            line.clear();
        }
    }
}
