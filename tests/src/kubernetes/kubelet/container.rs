//! A container: one process, started again when it ends.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::http_get;
use crate::process::{Lifetime, Running, Spec};

/// The longest pause before a process that ended is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a container says that it is ready.
#[derive(Debug, Clone)]
pub(super) enum Probe {
    /// By running.
    None,
    /// By an HTTP status of success at a path.
    Http(SocketAddr, String),
    /// By taking connections.
    Tcp(SocketAddr),
}

/// How a process ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) began: String,
    pub(super) at: String,
}

/// One container of a pod.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) spec: Spec,
    pub(super) probe: Probe,
    pub(super) running: Option<Running>,
    /// When the process began, as the API writes times.
    pub(super) began: String,
    pub(super) restarts: u32,
    pub(super) ended: Option<Ended>,
    pub(super) ready: bool,
    again_at: Option<Instant>,
}

/// Now, as the API writes times.
pub(super) fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

impl Container {
    pub(super) fn new(name: String, image: String, spec: Spec, probe: Probe) -> Self {
        Self {
            name,
            image,
            spec,
            probe,
            running: None,
            began: String::new(),
            restarts: 0,
            ended: None,
            ready: false,
            again_at: None,
        }
    }

    /// Notices that the process ended.
    pub(super) fn look(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let Some(status) = running.try_wait()? else {
            return Ok(());
        };
        self.ended = Some(Ended {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            began: self.began.clone(),
            at: now(),
        });
        self.running = None;
        self.ready = false;
        let pause = Duration::from_secs(u64::from(self.restarts)).min(LONGEST_PAUSE);
        self.again_at = Some(Instant::now() + pause);
        Ok(())
    }

    /// Starts the process if it does not run and its time has come. Without `again`, only once.
    pub(super) fn keep_running(&mut self, again: bool) -> Result<()> {
        self.look()?;
        if self.running.is_some() || (self.ended.is_some() && !again) {
            return Ok(());
        }
        if self.again_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let child = self
            .spec
            .spawn(Lifetime::WithParent)
            .context("starting its process")?;
        self.running = Some(Running::new(child));
        self.began = now();
        if self.ended.is_some() {
            self.restarts += 1;
        }
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }

    /// Asks whether it is ready.
    pub(super) async fn ask(&mut self) {
        self.ready = self.running.is_some()
            && match &self.probe {
                Probe::None => true,
                Probe::Http(address, path) => http_get(*address, path).await.is_ok(),
                Probe::Tcp(address) => {
                    let connecting = TcpStream::connect(*address);
                    matches!(timeout(Duration::from_secs(1), connecting).await, Ok(Ok(_)))
                }
            };
    }
}
