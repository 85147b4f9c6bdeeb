//! A folder that loses what was not synced: the process `sealane-powerloss-fs`, and its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::{awake, process, tools};

/// How long mounting may take.
const START: Duration = Duration::from_secs(10);

/// What the file system counted since it was mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Statistics {
    /// Octets that a cut now would take.
    pub unsynced: u64,
    pub power_losses: u64,
    /// Octets taken by power losses.
    pub discarded: u64,
    pub discarded_names: u64,
    pub syncs: u64,
    /// Syncs that did nothing.
    pub lies: u64,
    pub failed_syncs: u64,
    pub failed_writes: u64,
    /// Writes that found no space.
    pub no_space: u64,
    pub written: u64,
    pub persisted: u64,
    pub used: u64,
}

impl Statistics {
    /// Adds what another disk counted.
    pub fn add(&mut self, other: &Self) {
        self.unsynced += other.unsynced;
        self.power_losses += other.power_losses;
        self.discarded += other.discarded;
        self.discarded_names += other.discarded_names;
        self.syncs += other.syncs;
        self.lies += other.lies;
        self.failed_syncs += other.failed_syncs;
        self.failed_writes += other.failed_writes;
        self.no_space += other.no_space;
        self.written += other.written;
        self.persisted += other.persisted;
        self.used += other.used;
    }
}

/// A mounted file system. Dropping it unmounts it; nothing in it stays.
#[derive(Debug)]
pub struct Disk {
    child: Child,
    mount: PathBuf,
    control: PathBuf,
}

impl Disk {
    /// Mounts an empty one on `mount`; its other files are beside it.
    ///
    /// # Errors
    /// When this process may not mount, or `/dev/fuse` is missing.
    pub fn mount(mount: &Path) -> Result<Self> {
        let beside = |ending: &str| {
            let mut name = mount.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            mount.with_file_name(name)
        };
        let (backing, control) = (beside(".durable"), beside(".control"));
        let log = std::fs::File::create(beside(".log"))?;
        // It unmounts on SIGTERM, so that is what it gets when its parent ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(tools::folder()?.join("sealane-powerloss-fs"))
            .arg("--mount")
            .arg(mount)
            .arg("--backing")
            .arg(backing)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting sealane-powerloss-fs")?;
        let mut disk = Self {
            child,
            mount: mount.to_owned(),
            control,
        };
        let began = Instant::now();
        while UnixStream::connect(&disk.control).is_err() {
            if let Some(status) = disk.child.try_wait()? {
                bail!("sealane-powerloss-fs ended with {status}: {}", disk.log());
            }
            ensure!(awake::since(began) < START, "not mounted: {}", disk.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(disk)
    }

    fn log(&self) -> String {
        let log = self.control.with_extension("log");
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Sends a line to its control socket; `docs` of `sealane_powerloss::control` has them.
    ///
    /// # Errors
    /// When it does not answer or refuses.
    pub fn tell(&self, line: &str) -> Result<Statistics> {
        let mut stream = UnixStream::connect(&self.control)
            .with_context(|| format!("{line}: {}", self.control.display()))?;
        writeln!(stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| line.to_owned())?;
        if let Some(error) = answer.get("error") {
            bail!("{line}: {error}");
        }
        serde_json::from_value(answer).with_context(|| line.to_owned())
    }

    /// # Errors
    /// When it does not answer.
    pub fn statistics(&self) -> Result<Statistics> {
        self.tell("stats")
    }

    /// The power goes and comes back; whoever had a file open has lost it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn lose_power(&self, how: PowerLoss) -> Result<Statistics> {
        let line = match how {
            PowerLoss::Clean => "cut".to_owned(),
            PowerLoss::Torn(seed) => format!("cut torn {seed}"),
            PowerLoss::Reordered(seed) => format!("cut reordered {seed}"),
        };
        self.tell(&line)?;
        self.tell("on")
    }
}

/// What a power loss leaves of what was not synced.
#[derive(Debug, Clone, Copy)]
pub enum PowerLoss {
    /// Nothing.
    Clean,
    /// Beginnings; the number is the seed.
    Torn(u64),
    /// Any sectors.
    Reordered(u64),
}

impl Drop for Disk {
    fn drop(&mut self) {
        process::send(self.child.id(), Signal::SIGTERM);
        let _reaped = self.child.wait();
    }
}
