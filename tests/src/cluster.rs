//! A cluster of real processes for one test.
//!
//! Clusters of one test binary run one after another: each has the machine for itself. Unless a test
//! ends with [`Cluster::pass`], the folder with configuration and logs stays and its path is printed.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use crate::layout::{ControlPlane, Layout, Relay, Settings};
use crate::links::Links;
use crate::load::{Kind, Target};
use crate::powerloss::Disk;
use crate::process::{Lifetime, Running};
use crate::sink::{Sink, SinkConfig};
use crate::{policy, ports, tools, wait};

mod disks;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// How long a fresh cluster may take until it accepts mail.
const START: Duration = Duration::from_secs(60);

/// What to build.
#[derive(Debug)]
pub struct Builder {
    control_planes: usize,
    /// How many of them are there from the start.
    founders: Option<usize>,
    relays: usize,
    settings: Settings,
    delays: String,
    next_hop: Option<SocketAddr>,
    cluster: String,
    bare: bool,
    disks: bool,
    links: bool,
}

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
    folder: Option<TempDir>,
    /// The test reached its end: the folder may go.
    passed: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Builder {
    #[must_use]
    pub fn control_planes(mut self, count: usize) -> Self {
        self.control_planes = count;
        self
    }

    /// Only so many control-plane nodes are started, and known to the relay nodes; [`Cluster::start`] starts
    /// the others later.
    #[must_use]
    pub fn founders(mut self, count: usize) -> Self {
        self.founders = Some(count);
        self
    }

    #[must_use]
    pub fn relays(mut self, count: usize) -> Self {
        self.relays = count;
        self
    }

    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Retry delays of the destination `*`, as a YAML list.
    #[must_use]
    pub fn delays(mut self, delays: &str) -> Self {
        delays.clone_into(&mut self.delays);
        self
    }

    /// Route all mail here instead of to the sink.
    #[must_use]
    pub fn next_hop(mut self, address: SocketAddr) -> Self {
        self.next_hop = Some(address);
        self
    }

    /// No policy is applied: relay nodes run, but are not ready.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Each control-plane node keeps its volume on a [`Disk`] of its own.
    #[must_use]
    pub fn disks(mut self) -> Self {
        self.disks = true;
        self
    }

    /// Control-plane nodes are reached through [`Links`].
    #[must_use]
    pub fn links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Name of the cluster in its certificates.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.cluster);
        self
    }

    /// The layout with free ports in `root`, nothing written.
    ///
    /// # Errors
    /// When binaries or ports are missing.
    pub fn layout(&self, root: &Path) -> Result<Layout> {
        let control_planes = (1..=self.control_planes)
            .map(|number| {
                Ok(ControlPlane {
                    name: format!("control-plane-{number}"),
                    listen: ports::free()?,
                    advertise: if self.links {
                        Some(ports::free()?)
                    } else {
                        None
                    },
                    metrics: ports::free()?,
                })
            })
            .collect::<Result<_>>()?;
        let relays = (1..=self.relays)
            .map(|number| {
                Ok(Relay {
                    name: format!("relay-node-{number}"),
                    mx: ports::free()?,
                    submission: ports::free()?,
                    submissions: ports::free()?,
                    metrics: ports::free()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Layout {
            root: root.to_owned(),
            binaries: tools::folder()?,
            cluster: self.cluster.clone(),
            founders: self.founders.unwrap_or(self.control_planes),
            control_planes,
            relays,
            settings: self.settings.clone(),
        })
    }

    /// Starts everything, applies the demo policy and waits until mail is accepted.
    ///
    /// # Errors
    /// When that does not happen in time; the error names the folder with the logs.
    pub async fn start(self) -> Result<Cluster> {
        let began = Instant::now();
        let mut cluster = self.prepare().await?;
        let outcome = cluster.come_up(&self).await;
        if let Err(error) = outcome {
            let kept = cluster.keep_folder();
            return Err(error.context(format!(
                "cluster did not start; see {}",
                kept.join("log").display()
            )));
        }
        println!(
            "cluster up after {:.1} s in {}",
            began.elapsed().as_secs_f32(),
            cluster.layout.root.display()
        );
        Ok(cluster)
    }

    /// Writes configuration and PKI and starts the sink, but no process of the product.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn prepare(&self) -> Result<Cluster> {
        let turn = ONE_AT_A_TIME.lock().await;
        let folder = tempfile::Builder::new().prefix("sealane-").tempdir()?;
        let layout = self.layout(folder.path())?;
        layout.write()?;
        let mut disks = BTreeMap::new();
        if self.disks {
            for node in &layout.control_planes {
                disks.insert(node.name.clone(), Disk::mount(&layout.data(&node.name))?);
            }
        }
        let mut links = self.links.then(Links::new);
        if let Some(links) = &mut links {
            for node in &layout.control_planes {
                links
                    .open(&node.name, node.reached_at(), node.listen)
                    .await?;
            }
        }
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = Sink::start(SinkConfig::at(anywhere, folder.path().join("sink"))).await?;
        Ok(Cluster {
            layout,
            sink,
            processes: BTreeMap::new(),
            disks,
            links,
            folder: Some(folder),
            passed: false,
            _turn: turn,
        })
    }
}

impl Cluster {
    /// Three control-plane nodes and two relay nodes, unless told otherwise.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            control_planes: 3,
            founders: None,
            relays: 2,
            settings: Settings::default(),
            delays: "[1s, 1s, 2s, 5s]".to_owned(),
            next_hop: None,
            cluster: "test".to_owned(),
            bare: false,
            disks: false,
            links: false,
        }
    }

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
        let deadline = Instant::now() + limit;
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
                Instant::now() < deadline,
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

    /// The last lines of a process's log.
    #[must_use]
    pub fn tail(&self, name: &str) -> String {
        let text = self.log(name);
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(15)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// The whole log of a process.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.layout.log(name)).unwrap_or_default()).into_owned()
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

/// GET over a bare socket: Ok when the status is 200.
///
/// # Errors
/// When nobody answers or the status is another.
pub async fn http_ok(address: SocketAddr, path: &str) -> Result<()> {
    http_get(address, path).await.map(|_| ())
}

/// GET over a bare socket; gives the response with its headers.
///
/// # Errors
/// When nobody answers or the status is not 200.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), asking).await??;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "{path}: {}",
        answer.lines().next().unwrap_or("empty answer")
    );
    Ok(answer)
}

/// Whether every group has a leader and three voters (or as many as there are nodes).
///
/// # Errors
/// Says which group has not.
pub(crate) fn settled(layout: &Layout) -> Result<()> {
    let status = layout.admin_json(&["cluster", "status"])?;
    let groups = groups(&status)?;
    ensure!(
        groups.len() as u64 == u64::from(layout.settings.shards) + 1,
        "{} groups",
        groups.len()
    );
    let voters = layout.control_planes.len().min(3);
    for group in groups {
        ensure!(number(group, "leader") != 0, "no leader: {group}");
        let known = group
            .get("voters")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        ensure!(known >= voters, "{known} voters: {group}");
    }
    Ok(())
}

fn groups(status: &Value) -> Result<&Vec<Value>> {
    status
        .get("groups")
        .and_then(Value::as_array)
        .with_context(|| format!("no groups in {status}"))
}

/// A number of a JSON object; JSON mappings of protobuf may write 64-bit numbers as strings.
#[must_use]
pub fn number(value: &Value, key: &str) -> u64 {
    match value.get(key) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(other) => other.as_u64().unwrap_or(0),
        None => 0,
    }
}

fn leader_and_follower(layout: &Layout, group: u64) -> Result<(String, String)> {
    let status = layout.admin_json(&["cluster", "status"])?;
    let entry = groups(&status)?
        .iter()
        .find(|one| number(one, "group") == group)
        .with_context(|| format!("group {group} in {status}"))?;
    let leader = number(entry, "leader");
    ensure!(leader != 0, "group {group} has no leader");
    let nodes = layout.admin_json(&["node", "list"])?;
    let list = nodes
        .as_array()
        .or_else(|| nodes.get("nodes").and_then(Value::as_array))
        .context("nodes")?;
    let mut found = (None, None);
    for node in list {
        let id = ["nodeId", "node_id", "id"]
            .iter()
            .map(|key| number(node, key))
            .max()
            .unwrap_or(0);
        let name = node
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if id == leader {
            found.0 = Some(name);
        } else if id != 0 {
            found.1 = Some(name);
        }
    }
    Ok((
        found.0.context("leader's name")?,
        found.1.context("a follower's name")?,
    ))
}
