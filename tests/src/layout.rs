//! A cluster on paper: names, addresses, folders, configuration files, command lines.
//!
//! Shared by the tests and by `make run`. A folder holds everything of one cluster:
//!
//! ```text
//! pki/          the cluster CA and one identity per process
//! config/       one YAML file per process, and policy.yaml
//! data/NAME/    what a process keeps (a relay node: nothing)
//! log/NAME.log  what it says
//! ```

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::Spec;
use crate::{clocks, tools};

/// One control-plane node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlPlane {
    pub name: String,
    pub listen: SocketAddr,
    /// Where others reach it, if that is not where it listens.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    pub metrics: SocketAddr,
    /// The file of its network namespace, if that is not ours.
    #[serde(default)]
    pub namespace: Option<PathBuf>,
}

impl ControlPlane {
    /// Where others reach it.
    #[must_use]
    pub fn reached_at(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }
}

/// One relay node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Relay {
    pub name: String,
    pub mx: SocketAddr,
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    pub metrics: SocketAddr,
    /// The file of its network namespace, if that is not ours.
    #[serde(default)]
    pub namespace: Option<PathBuf>,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layout {
    /// The folder of the cluster, absolute.
    pub root: PathBuf,
    /// The folder of the binaries.
    pub binaries: PathBuf,
    /// Name of the cluster in its certificates.
    pub cluster: String,
    pub control_planes: Vec<ControlPlane>,
    /// So many of them are there from the start; relay nodes learn of the others from the cluster.
    pub founders: usize,
    pub relays: Vec<Relay>,
    pub settings: Settings,
}

/// What differs between a test cluster and the demo, and between tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    pub shards: u32,
    /// How long a relay may be silent before its mail is given to another.
    pub lease: String,
    pub drain: String,
    pub body_budget: String,
    pub max_message: String,
    pub connections: u32,
    /// From the final dot to the reply; `None`: the default.
    #[serde(default)]
    pub enqueue_timeout: Option<String>,
    /// OTLP collector, `http://host:port`.
    pub otlp: Option<String>,
    pub log_filter: String,
    /// Each process has a clock of its own that can be set wrong.
    #[serde(default)]
    pub clocks: bool,
    /// All relay nodes have the certificate of this name, and are named on their command lines.
    #[serde(default)]
    pub relay_group: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shards: 8,
            lease: "10s".to_owned(),
            drain: "10s".to_owned(),
            body_budget: "256MiB".to_owned(),
            max_message: "64MiB".to_owned(),
            connections: 1000,
            enqueue_timeout: None,
            otlp: None,
            log_filter: "info,openraft=error".to_owned(),
            clocks: false,
            relay_group: None,
        }
    }
}

impl Layout {
    /// `host:port` of every control-plane node, separated by commas.
    #[must_use]
    pub fn control_addresses(&self) -> String {
        joined(self.control_planes.iter().map(|node| node.listen))
    }

    /// Control-plane nodes that join later.
    pub fn later(&self) -> impl Iterator<Item = &ControlPlane> {
        self.control_planes.iter().skip(self.founders)
    }

    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.root.join("pki").join("ca.crt")
    }

    #[must_use]
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(format!("{name}.crt"))
    }

    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.root.join("pki").join(format!("{name}.key"))
    }

    #[must_use]
    pub fn config(&self, name: &str) -> PathBuf {
        self.root.join("config").join(format!("{name}.yaml"))
    }

    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join("data").join(name)
    }

    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// The file that says how wrong the clock of a process is.
    #[must_use]
    pub fn clock(&self, name: &str) -> PathBuf {
        self.root.join("clock").join(name)
    }

    #[must_use]
    pub fn sealane(&self) -> PathBuf {
        self.binaries.join("sealane")
    }

    /// Names of all processes of the product, control plane first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.control_planes
            .iter()
            .map(|node| node.name.clone())
            .chain(self.relays.iter().map(|node| node.name.clone()))
            .collect()
    }

    /// Makes folders, PKI and configuration files.
    ///
    /// # Errors
    /// When a file cannot be written or `sealane pki` fails.
    pub fn write(&self) -> Result<()> {
        for folder in ["config", "data", "log"] {
            fs::create_dir_all(self.root.join(folder))?;
        }
        self.write_pki()?;
        if self.settings.clocks {
            clocks::prepare(&self.root.join("clock"))?;
            for name in self.names() {
                clocks::set(&self.clock(&name), 0)?;
            }
        }
        for node in &self.control_planes {
            fs::write(self.config(&node.name), self.control_plane_yaml(node))?;
        }
        for node in &self.relays {
            fs::write(self.config(&node.name), self.relay_yaml(node))?;
        }
        Ok(())
    }

    fn write_pki(&self) -> Result<()> {
        let dir = self.root.join("pki");
        tools::run(
            Command::new(self.sealane())
                .args(["pki", "init", "--cluster", &self.cluster, "--dir"])
                .arg(&dir),
        )?;
        for node in &self.control_planes {
            self.issue("control", &node.name)?;
        }
        if let Some(group) = &self.settings.relay_group {
            self.issue("relay", group)?;
        }
        for node in &self.relays {
            if self.settings.relay_group.is_none() {
                self.issue("relay", &node.name)?;
            }
            let name = public(&node.name);
            let smtp = format!("{}.{}.example", node.name, self.cluster);
            tools::run(
                Command::new(self.sealane())
                    .args([
                        "pki",
                        "issue",
                        "--public",
                        "--name",
                        &name,
                        "--dns",
                        &smtp,
                        "--dns",
                        "localhost",
                    ])
                    .args(["--ip", "127.0.0.1", "--dir"])
                    .arg(&dir),
            )?;
        }
        self.issue("admin", "admin")
    }

    /// Issues an identity of this cluster.
    ///
    /// # Errors
    /// When `sealane pki issue` fails.
    pub fn issue(&self, role: &str, name: &str) -> Result<()> {
        let dir = self.root.join("pki");
        let mut command = Command::new(self.sealane());
        command
            .args(["pki", "issue", "--role", role, "--name", name, "--dir"])
            .arg(&dir);
        tools::run(&mut command).map(|_| ())
    }

    fn identity_yaml(&self, name: &str) -> String {
        format!(
            "identity:\n  certificate: {}\n  key: {}\n  ca: {}\n",
            quoted(&self.certificate(name)),
            quoted(&self.key(name)),
            quoted(&self.ca())
        )
    }

    fn telemetry_yaml(&self) -> String {
        let mut text = format!(
            "telemetry:\n  logFormat: text\n  logFilter: {:?}\n",
            self.settings.log_filter
        );
        if let Some(endpoint) = &self.settings.otlp {
            let _infallible = writeln!(text, "  otlpEndpoint: {endpoint:?}");
        }
        text
    }

    /// Configuration of a control-plane node. The first node founds the cluster.
    #[must_use]
    pub fn control_plane_yaml(&self, node: &ControlPlane) -> String {
        let peers: Vec<String> = self
            .control_planes
            .iter()
            .filter(|other| other.name != node.name)
            .map(|other| format!("\"{}\"", other.reached_at()))
            .collect();
        let bootstrap = self
            .control_planes
            .first()
            .is_some_and(|first| first.name == node.name);
        let replicas = if self.control_planes.len() >= 3 { 3 } else { 1 };
        format!(
            "name: {name}\nlisten: \"{listen}\"\nadvertise: \"{advertise}\"\ndataDir: {data}\nhostname: {cluster}.example\n\
             lease: {lease}\nmetricsListen: \"{metrics}\"\ncluster:\n  bootstrap: {bootstrap}\n  peers: [{peers}]\n  \
             shards: {shards}\n  replicas: {replicas}\n{identity}{telemetry}",
            name = node.name,
            listen = node.listen,
            advertise = node.reached_at(),
            data = quoted(&self.data(&node.name)),
            cluster = self.cluster,
            lease = self.settings.lease,
            metrics = node.metrics,
            peers = peers.join(", "),
            shards = self.settings.shards,
            identity = self.identity_yaml(&node.name),
            telemetry = self.telemetry_yaml(),
        )
    }

    /// Configuration of a relay node.
    #[must_use]
    pub fn relay_yaml(&self, node: &Relay) -> String {
        let control: Vec<String> = self
            .control_planes
            .iter()
            .take(self.founders)
            .map(|node| format!("\"{}\"", node.reached_at()))
            .collect();
        let group = self.settings.relay_group.as_ref();
        let named = match group {
            Some(_) => String::new(),
            None => format!("name: {}\n", node.name),
        };
        format!(
            "{named}hostname: {name}.{cluster}.example\nlisteners:\n  mx: \"{mx}\"\n  submission: \"{submission}\"\n  \
             submissions: \"{submissions}\"\ncertificate:\n  certificate: {certificate}\n  key: {key}\n{identity}\
             controlPlane: [{control}]\nbodyBudget: {budget}\nmaxMessageSize: {max}\nconnections: {connections}\n\
             metricsListen: \"{metrics}\"\ndrainTimeout: {drain}\n{sessions}{telemetry}",
            name = node.name,
            cluster = self.cluster,
            mx = node.mx,
            submission = node.submission,
            submissions = node.submissions,
            certificate = quoted(&self.certificate(&public(&node.name))),
            key = quoted(&self.key(&public(&node.name))),
            identity = self.identity_yaml(group.unwrap_or(&node.name)),
            control = control.join(", "),
            budget = self.settings.body_budget,
            max = self.settings.max_message,
            connections = self.settings.connections,
            metrics = node.metrics,
            drain = self.settings.drain,
            sessions = self
                .settings
                .enqueue_timeout
                .as_ref()
                .map_or(String::new(), |limit| format!(
                    "sessions:\n  enqueueTimeout: {limit}\n"
                )),
            telemetry = self.telemetry_yaml(),
        )
    }

    /// How a process of the product is started.
    ///
    /// # Errors
    /// When the name is not one of this cluster.
    pub fn spec(&self, name: &str) -> Result<Spec> {
        let control = self.control_planes.iter().find(|node| node.name == name);
        let relay = self.relays.iter().find(|node| node.name == name);
        let (binary, namespace) = if let Some(node) = control {
            ("control-plane", &node.namespace)
        } else if let Some(node) = relay {
            ("relay-node", &node.namespace)
        } else {
            anyhow::bail!(
                "no process is called {name}; there are {}",
                self.names().join(", ")
            );
        };
        let mut args = vec![
            "--config".to_owned(),
            self.config(name).display().to_string(),
        ];
        if relay.is_some() && self.settings.relay_group.is_some() {
            args.extend(["--name".to_owned(), name.to_owned()]);
        }
        Ok(Spec {
            name: name.to_owned(),
            namespace: namespace.clone(),
            environment: if self.settings.clocks {
                clocks::environment(&self.clock(name))
            } else {
                Vec::new()
            },
            program: self.binaries.join(binary),
            args,
            folder: self.data(name),
            log: self.log(name),
        })
    }

    /// Address of a process's `/readyz`.
    #[must_use]
    pub fn metrics(&self, name: &str) -> Option<SocketAddr> {
        let control = self
            .control_planes
            .iter()
            .map(|node| (&node.name, node.metrics));
        let relays = self.relays.iter().map(|node| (&node.name, node.metrics));
        control
            .chain(relays)
            .find(|(one, _)| *one == name)
            .map(|(_, address)| address)
    }

    /// The admin CLI with this cluster's addresses and the admin identity.
    #[must_use]
    pub fn admin(&self) -> Command {
        self.cli_as("admin")
    }

    /// The admin CLI with another identity of `pki/`.
    #[must_use]
    pub fn cli_as(&self, identity: &str) -> Command {
        let mut command = Command::new(self.sealane());
        command
            .env("SEALANE_CONTROL", self.control_addresses())
            .env("SEALANE_CERT", self.certificate(identity))
            .env("SEALANE_KEY", self.key(identity))
            .env("SEALANE_CA", self.ca());
        command
    }

    /// Runs the admin CLI and gives its JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn admin_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = tools::run(self.admin().args(args).args(["-o", "json"]))?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "{args:?} printed no JSON: {}",
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }

    /// Writes `text` to `config/policy.yaml` and applies it.
    ///
    /// # Errors
    /// When the cluster refuses it.
    pub fn apply_policy(&self, text: &str) -> Result<Output> {
        let file = self.root.join("config").join("policy.yaml");
        fs::write(&file, text)?;
        tools::run(self.admin().args(["policy", "apply", "-f"]).arg(&file))
    }
}

/// File stem of a relay's certificate for SMTP clients.
#[must_use]
pub fn public(name: &str) -> String {
    format!("{name}-smtp")
}

fn joined(addresses: impl Iterator<Item = SocketAddr>) -> String {
    addresses
        .map(|address| address.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// A path as a YAML scalar (JSON strings are).
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}
