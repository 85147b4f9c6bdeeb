//! Where the time goes: `perf` beside a run, a flame graph of each process in the folder of the report.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as Collapsing};
use inferno::flamegraph::{self, Options as Drawing};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Samples a second and thread: not a divisor of anybody's timer.
const FREQUENCY: &str = "199";
/// Octets of stack kept per sample. The binaries have no frame pointers: perf unwinds them afterwards.
const STACK: &str = "dwarf,16384";

/// One `perf record` per process.
pub(crate) struct Profile {
    folder: PathBuf,
    recorders: BTreeMap<String, Child>,
}

impl Profile {
    /// Starts to sample.
    ///
    /// # Errors
    /// When there is no perf, or it may not look.
    pub(crate) fn start(folder: &Path, pids: &BTreeMap<String, u32>) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut recorders = BTreeMap::new();
        for (name, pid) in pids {
            let recorder = Command::new("perf")
                .args(["record", "-F", FREQUENCY, "--call-graph", STACK, "-o"])
                .arg(folder.join(format!("{name}.perf")))
                .args(["-p", &pid.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("running perf (Debian package linux-perf)")?;
            recorders.insert(name.clone(), recorder);
        }
        Ok(Self {
            folder: folder.to_owned(),
            recorders,
        })
    }

    /// Stops, and draws one SVG per process; gives their paths.
    ///
    /// # Errors
    /// When a process gave no samples.
    pub(crate) fn finish(mut self) -> Result<Vec<PathBuf>> {
        for recorder in self.recorders.values_mut() {
            signal::kill(Pid::from_raw(recorder.id().cast_signed()), Signal::SIGINT)?;
        }
        let mut drawn = Vec::new();
        for (name, recorder) in &mut self.recorders {
            recorder.wait()?;
            drawn.push(draw(&self.folder, name).with_context(|| format!("flame graph of {name}"))?);
        }
        Ok(drawn)
    }
}

fn draw(folder: &Path, name: &str) -> Result<PathBuf> {
    let (data, folded) = (
        folder.join(format!("{name}.perf")),
        folder.join(format!("{name}.folded")),
    );
    // Inlined calls would need the debug information of each address, which takes minutes.
    let mut script = Command::new("perf")
        .args(["script", "--no-inline", "-i"])
        .arg(&data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stacks = BufReader::new(script.stdout.take().context("its output")?);
    let mut out = File::create(&folded)?;
    Folder::from(Collapsing::default()).collapse(stacks, &mut out)?;
    out.flush()?;
    script.wait()?;
    ensure!(
        out.metadata()?.len() > 0,
        "no samples in {}",
        data.display()
    );
    let svg = folder.join(format!("{name}.svg"));
    let mut options = Drawing::default();
    options.title = name.to_owned();
    flamegraph::from_files(&mut options, &[folded], File::create(&svg)?)?;
    std::fs::remove_file(&data)?;
    Ok(svg)
}
