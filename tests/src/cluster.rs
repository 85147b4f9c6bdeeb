//! A cluster of real processes for one test.
//!
//! Clusters of one test binary run one after another: each has the machine for itself. Unless a test
//! ends with [`Cluster::pass`], the folder with configuration and logs stays and its path is printed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::layout::Layout;
use crate::links::Links;
use crate::load::{Kind, Target};
use crate::powerloss::Disk;
use crate::process::{Lifetime, Running};
use crate::sink::Sink;
use crate::{awake, policy, wait};

mod builder;
mod disks;
mod logs;
mod namespaces;
mod status;

pub use builder::Builder;
pub use namespaces::{Loss, Namespaces};
use status::leader_and_follower;
pub(crate) use status::settled;
pub use status::{http_get, http_ok, number};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// How long a fresh cluster may take until it accepts mail.
const START: Duration = Duration::from_secs(120);

/// A running cluster. Dropping it kills every process.
#[derive(Debug)]
pub struct Cluster {
    pub layout: Layout,
    pub sink: Sink,
    processes: BTreeMap<String, Running>,
    /// Volumes that can lose power, by the name of their control-plane node.
    disks: BTreeMap<String, Disk>,
    /// The network between the nodes, if it is in our hands.
    pub links: Option<Links>,
    /// Where the processes run, if not beside us.
    pub namespaces: Option<Namespaces>,
    folder: Option<TempDir>,
    /// The test reached its end: the folder may go.
    passed: bool,
    /// `None`: it was started beside another one.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    async fn come_up(&mut self, builder: &Builder) -> Result<()> {
        let later: Vec<String> = self.layout.later().map(|node| node.name.clone()).collect();
        for name in self.layout.names() {
            if !later.contains(&name) {
                self.spawn(&name)?;
            }
        }
        self.control_plane_ready(START).await?;
        if builder.bare {
            return Ok(());
        }
        let next_hop = builder.next_hop.unwrap_or(self.sink.address());
        self.apply_policy(&policy::demo(next_hop, &builder.delays))
            .await?;
        for relay in self.layout.relays.clone() {
            self.ready(&relay.name, START).await?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str) -> Result<()> {
        let child = self.layout.spec(name)?.spawn(Lifetime::WithParent)?;
        if let Some(links) = &self.links {
            links.runs(name, child.id());
        }
        self.processes.insert(name.to_owned(), Running::new(child));
        Ok(())
    }

    fn running(&self, name: &str) -> Result<&Running> {
        self.processes
            .get(name)
            .with_context(|| format!("{name} does not run"))
    }

    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> Result<u32> {
        self.running(name).map(Running::pid)
    }

    /// Starts a process that does not run.
    ///
    /// # Errors
    /// When it runs or cannot be started.
    pub fn start(&mut self, name: &str) -> Result<()> {
        ensure!(!self.processes.contains_key(name), "{name} runs already");
        self.spawn(name)
    }

    /// SIGKILL; the process is gone when this returns.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut running = self
            .processes
            .remove(name)
            .with_context(|| format!("{name} does not run"))?;
        ensure!(
            running.try_wait()?.is_none(),
            "{name} had ended by itself: {}",
            self.tail(name)
        );
        running.kill_and_reap();
        Ok(())
    }

    /// SIGTERM, then waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`, or ends with a failure.
    pub async fn terminate(&mut self, name: &str, limit: Duration) -> Result<()> {
        let mut running = self
            .processes
            .remove(name)
            .with_context(|| format!("{name} does not run"))?;
        running.signal(Signal::SIGTERM);
        let began = Instant::now();
        loop {
            if let Some(status) = running.try_wait()? {
                ensure!(
                    status.success(),
                    "{name} ended with {status}: {}",
                    self.tail(name)
                );
                return Ok(());
            }
            ensure!(
                awake::since(began) < limit,
                "{name} did not end within {limit:?}: {}",
                self.tail(name)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Any signal, for example SIGSTOP and SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.running(name)?.signal(signal);
        Ok(())
    }

    /// Fails if a process ended by itself.
    ///
    /// # Errors
    /// Names the process and shows the end of its log.
    pub fn all_alive(&mut self) -> Result<()> {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for name in names {
            if let Some(running) = self.processes.get_mut(&name)
                && let Some(status) = running.try_wait()?
            {
                bail!("{name} ended by itself with {status}: {}", self.tail(&name));
            }
        }
        Ok(())
    }

    /// Waits for `/readyz` of a process to say 200.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn ready(&mut self, name: &str, limit: Duration) -> Result<()> {
        let address = self
            .layout
            .metrics(name)
            .with_context(|| format!("no process is called {name}"))?;
        let outcome = wait::until(&format!("{name} ready"), limit, || {
            http_ok(address, "/readyz")
        })
        .await;
        self.all_alive()?;
        outcome.with_context(|| self.tail(name))
    }

    /// Waits until every group has a leader and all its voters, as the admin CLI shows it.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn control_plane_ready(&mut self, limit: Duration) -> Result<()> {
        let layout = self.layout.clone();
        let outcome = wait::until("every group led with all voters", limit, || {
            let layout = layout.clone();
            async move { tokio::task::spawn_blocking(move || settled(&layout)).await? }
        })
        .await;
        self.all_alive()?;
        outcome
    }

    /// Applies policy documents.
    ///
    /// # Errors
    /// When the cluster refuses them.
    pub async fn apply_policy(&self, text: &str) -> Result<()> {
        let (layout, text) = (self.layout.clone(), text.to_owned());
        tokio::task::spawn_blocking(move || layout.apply_policy(&text)).await??;
        Ok(())
    }

    /// The admin CLI's JSON.
    ///
    /// # Errors
    /// When it fails.
    pub async fn admin_json(&self, args: &[&str]) -> Result<Value> {
        let layout = self.layout.clone();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            layout.admin_json(&args)
        })
        .await?
    }

    /// Name of the control-plane node that leads a group now, and of one that does not.
    ///
    /// # Errors
    /// When the group has no leader.
    pub async fn leader_and_follower(&self, group: u64) -> Result<(String, String)> {
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || leader_and_follower(&layout, group)).await?
    }

    /// All listeners of one kind.
    #[must_use]
    pub fn targets(&self, kind: Kind) -> Vec<Target> {
        self.layout
            .relays
            .iter()
            .map(|relay| Target {
                kind,
                address: match kind {
                    Kind::Mx => relay.mx,
                    Kind::Submission => relay.submission,
                    Kind::Submissions => relay.submissions,
                },
            })
            .collect()
    }

    /// All listeners.
    #[must_use]
    pub fn all_targets(&self) -> Vec<Target> {
        [Kind::Mx, Kind::Submission, Kind::Submissions]
            .into_iter()
            .flat_map(|kind| self.targets(kind))
            .collect()
    }

    /// The test passed: every process still has to run, then all are killed and the folder goes.
    ///
    /// # Errors
    /// When a process ended by itself.
    pub fn pass(mut self) -> Result<()> {
        self.all_alive()?;
        self.passed = true;
        Ok(())
    }

    fn keep_folder(&mut self) -> PathBuf {
        self.folder
            .take()
            .map_or_else(|| self.layout.root.clone(), TempDir::keep)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.processes.clear();
        self.keep_damaged_volumes();
        self.disks.clear();
        if !self.passed || std::env::var_os("SEALANE_KEEP").is_some() {
            println!(
                "logs and configuration stay in {}",
                self.keep_folder().display()
            );
        }
    }
}
