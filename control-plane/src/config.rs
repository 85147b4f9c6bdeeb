//! Configuration of a control-plane node, validated whole before anything binds.
use sealane_runtime::{
    config::{ByteSize, ConfigError, ConfigSpan, Validate},
    identity::IdentityConfig,
    telemetry::TelemetryConfig,
};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The file given with `--config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneConfig {
    /// For people and for the certificate: `spiffe://<cluster>/control/<name>`. May be left to `--name`.
    #[serde(default)]
    pub name: String,
    /// gRPC listener.
    pub listen: SocketAddr,
    /// Where other members and relays reach this node, host:port. Default: `listen`.
    pub advertise: Option<String>,
    /// The volume: database, node id, staged snapshots.
    pub data_dir: PathBuf,
    /// Workload identity for mTLS.
    pub identity: IdentityConfig,
    /// The cluster to found or to join.
    pub cluster: ClusterConfig,
    /// Name of this mail system in non-delivery reports (Reporting-MTA, RFC 3464).
    pub hostname: String,
    /// How long a relay may hold a message without renewing (fenced afterwards).
    #[serde(default = "default_lease")]
    pub lease: ConfigSpan,
    /// Logs and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// HTTP listener of /metrics, /livez, /readyz.
    pub metrics_listen: Option<SocketAddr>,
    /// Raft timing.
    #[serde(default)]
    pub raft: RaftConfig,
    /// Octets of bodies that may be in flight through this node at once.
    #[serde(default = "default_in_flight")]
    pub in_flight: ByteSize,
    /// New mail is refused with 452 when the volume has less than this free.
    #[serde(default = "default_reserve")]
    pub disk_reserve: ByteSize,
    /// Kept back in a file beside the database, so that a node whose volume is full can start again; 0: none.
    #[serde(default = "default_ballast")]
    pub disk_ballast: ByteSize,
    /// How the volume is read for damage that nobody would notice otherwise.
    #[serde(default)]
    pub scrub: ScrubConfig,
}

/// Reading everything on the volume now and then.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// From the beginning of a pass to that of the next. Default 24h.
    pub every: ConfigSpan,
    /// Octets a second at most. Default 8MiB.
    pub rate: ByteSize,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self {
            every: ConfigSpan(Duration::from_secs(24 * 3600)),
            rate: ByteSize(8 << 20),
        }
    }
}

/// How the cluster is found.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterConfig {
    /// Found the cluster if the volume is empty and no peer knows one. Exactly one node says so.
    #[serde(default)]
    pub bootstrap: bool,
    /// gRPC addresses of other control-plane nodes, asked when the volume is empty.
    #[serde(default)]
    pub peers: Vec<String>,
    /// Queue shards, fixed when the cluster is founded.
    #[serde(default = "default_shards")]
    pub shards: u32,
    /// Copies of everything, fixed when the cluster is founded. Mail is taken once a shard has them.
    #[serde(default = "default_replicas")]
    pub replicas: u32,
}

/// Raft timing. An election takes at least ten times the slowest usual sync.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RaftConfig {
    /// Between heartbeats of a leader.
    pub heartbeat: ConfigSpan,
    /// Shortest silence before an election.
    pub election_min: ConfigSpan,
    /// Longest.
    pub election_max: ConfigSpan,
    /// Applied entries kept per group for members that lag. What every member has goes at once.
    pub keep_entries: u64,
    /// Octets of them.
    pub keep_size: ByteSize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: ConfigSpan(Duration::from_millis(150)),
            election_min: ConfigSpan(Duration::from_millis(600)),
            election_max: ConfigSpan(Duration::from_millis(1200)),
            keep_entries: 50_000,
            keep_size: ByteSize(256 << 20),
        }
    }
}

fn default_lease() -> ConfigSpan {
    ConfigSpan(Duration::from_secs(60))
}
fn default_shards() -> u32 {
    8
}
fn default_replicas() -> u32 {
    3
}
fn default_in_flight() -> ByteSize {
    ByteSize(128 << 20)
}
fn default_reserve() -> ByteSize {
    ByteSize(512 << 20)
}
/// What opening a database may write: all that its memtables may hold.
fn default_ballast() -> ByteSize {
    ByteSize(256 << 20)
}

fn check_name(field: &str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() {
        let reason = "must not be empty: give it in the file, with --name or in SEALANE_NAME";
        return Err(ConfigError::field(field, reason));
    }
    Ok(())
}

impl ControlPlaneConfig {
    /// Takes the name that the command line gives, if it gives one.
    pub fn rename(&mut self, name: Option<String>) -> Result<(), ConfigError> {
        if let Some(name) = name {
            check_name("--name", &name)?;
            self.name = name;
        }
        Ok(())
    }

    /// Where others reach this node.
    pub fn advertised(&self) -> String {
        self.advertise
            .clone()
            .unwrap_or_else(|| self.listen.to_string())
    }
}

impl Validate for ControlPlaneConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, field: &str, reason: &str| {
            if ok {
                Ok(())
            } else {
                Err(ConfigError::field(field, reason))
            }
        };
        check_name("name", &self.name)?;
        sealane_types::DomainName::parse(&self.hostname)
            .map_err(|e| ConfigError::field("hostname", e.to_string()))?;
        check(
            (1..=255).contains(&self.cluster.shards),
            "cluster.shards",
            "must be 1 to 255",
        )?;
        check(
            matches!(self.cluster.replicas, 1 | 3 | 5 | 7),
            "cluster.replicas",
            "must be 1, 3, 5 or 7: an even number of copies survives no more failures than one less",
        )?;
        check(
            self.cluster.bootstrap || !self.cluster.peers.is_empty(),
            "cluster.peers",
            "a node that does not found the cluster needs the address of a node that belongs to it",
        )?;
        check(
            self.lease.0 >= Duration::from_secs(5),
            "lease",
            "must be at least 5s",
        )?;
        check(
            self.raft.heartbeat.0 >= Duration::from_millis(20),
            "raft.heartbeat",
            "must be at least 20ms",
        )?;
        check(
            self.raft.election_min.0 >= self.raft.heartbeat.0 * 3,
            "raft.electionMin",
            "must be at least three heartbeats",
        )?;
        check(
            self.raft.election_max.0 > self.raft.election_min.0,
            "raft.electionMax",
            "must be above raft.electionMin",
        )?;
        check(
            self.raft.keep_entries >= 16,
            "raft.keepEntries",
            "must be at least 16",
        )?;
        check(
            self.scrub.every.0 >= Duration::from_secs(1),
            "scrub.every",
            "must be at least 1s",
        )?;
        check(
            self.scrub.rate.0 >= 64 << 10,
            "scrub.rate",
            "must be at least 64KiB",
        )?;
        check(
            self.in_flight.0 >= 8 << 20,
            "inFlight",
            "must be at least 8MiB",
        )?;
        self.identity.validate()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_a_node_that_its_file_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.yaml");
        let text = "{listen: '127.0.0.1:7000', dataDir: /data, hostname: mail.example, cluster: {bootstrap: true},
            identity: {certificate: /none.crt, key: /none.key, ca: /none.crt}}";
        std::fs::write(&file, text).unwrap();
        // Of what is wrong with a file without a name that is said first; with one it is the next.
        let complaint = |name: Option<&str>| {
            let rename = |c: &mut ControlPlaneConfig| c.rename(name.map(str::to_owned));
            let loaded = sealane_runtime::config::load(&file, rename);
            loaded.unwrap_err().to_string()
        };
        let e = complaint(None);
        assert!(
            e.contains(": name: must not be empty") && e.contains("SEALANE_NAME"),
            "{e}"
        );
        let e = complaint(Some(""));
        assert!(e.contains(": --name: must not be empty"), "{e}");
        let e = complaint(Some("control-plane-0"));
        assert!(e.contains("identity.certificate: /none.crt"), "{e}");
    }
}
