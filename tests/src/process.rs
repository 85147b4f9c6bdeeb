//! Real processes: started, signalled, looked at through `/proc`, and reaped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How a process is started. Starting it twice gives the same process again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The name it is known by: `control-plane-1`.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// The file of the network namespace that it runs in; `None`: ours.
    #[serde(default)]
    pub namespace: Option<PathBuf>,
    /// Variables of its environment, beside ours.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Its working folder and the place of what it keeps.
    pub folder: PathBuf,
    /// Standard output and standard error, appended.
    pub log: PathBuf,
}

/// What happens to the process when its parent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is killed with the thread that started it.
    WithParent,
    /// It lives on, in a session of its own.
    Detached,
}

impl Spec {
    /// Starts the process.
    ///
    /// # Errors
    /// When its folder or log cannot be made or the program cannot be run.
    pub fn spawn(&self, lifetime: Lifetime) -> Result<Child> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("making {}", self.folder.display()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening {}", self.log.display()))?;
        // All helpers are of util-linux and become the program by exec: the pid stays.
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            let mut net = OsString::from("--net=");
            net.push(namespace);
            words.extend(["nsenter".into(), net, "--".into()]);
        }
        match lifetime {
            Lifetime::WithParent => {
                words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
            }
            Lifetime::Detached => words.push("setsid".into()),
        }
        let (helper, rest) = words.split_first().context("a helper")?;
        let mut command = Command::new(helper);
        command
            .args(rest)
            .arg(&self.program)
            .args(&self.args)
            .envs(self.environment.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("log handle")?)
            .stderr(log);
        if lifetime == Lifetime::WithParent {
            command.process_group(0);
        }
        command
            .spawn()
            .with_context(|| format!("starting {} ({})", self.name, self.program.display()))
    }
}

/// Identity of a running process that survives the reuse of its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks since boot at which it was started (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl ProcessId {
    /// Takes the identity of the process that has `pid` now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (_, started) = stat(pid)?;
        Some(Self { pid, started })
    }

    /// Whether this very process still runs (a zombie does not).
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid)
            .is_some_and(|(state, started)| started == self.started && state != 'Z' && state != 'X')
    }

    /// Sends a signal if the process still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            send(self.pid, signal);
        }
    }

    /// Waits until it is gone; false if it is not within `limit`.
    #[must_use]
    pub fn wait_gone(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// Sends `signal` to `pid`; a process that is gone is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _gone = signal::kill(Pid::from_raw(pid), signal);
    }
}

/// State letter and start time of a process.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// Resident memory of a process in octets.
///
/// # Errors
/// When the process is gone.
pub fn resident(pid: u32) -> Result<u64> {
    memory_line(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in octets.
///
/// # Errors
/// When the process is gone.
pub fn peak_resident(pid: u32) -> Result<u64> {
    memory_line(pid, "VmHWM:")
}

fn memory_line(pid: u32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid}"))?;
    let Some(line) = text.lines().find(|line| line.starts_with(key)) else {
        bail!("process {pid} has no {key}")
    };
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .context("memory value")?
        .parse()?;
    Ok(kib * 1024)
}

/// A child of this process.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    #[must_use]
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Its exit status if it ended.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL and reap: when this returns the process holds no port and no lock any more.
    pub fn kill_and_reap(&mut self) {
        self.signal(Signal::SIGKILL);
        let _reaped = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_and_reap();
    }
}
