//! Configuration of a relay node, validated whole before anything binds.
use crate::{delivery::DeliveryOptions, networks::Network};
use sealane_runtime::{
    config::{ByteSize, ConfigError, ConfigSpan, Validate},
    identity::{self, IdentityConfig},
    reload::CertificateFigures,
    telemetry::TelemetryConfig,
};
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The file given with `--config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayNodeConfig {
    /// Which relay this is. The certificate says `spiffe://<cluster>/relay/<name>`; where several relays share one,
    /// each has another name here, and is known as `<certificate's name>/<name>`. May be left to `--name`.
    #[serde(default)]
    pub name: String,
    /// Our name in greetings, in EHLO and in Received headers.
    pub hostname: String,
    /// Where mail comes in.
    pub listeners: Listeners,
    /// Shown to SMTP clients.
    pub certificate: PublicCertificate,
    /// Workload identity for mTLS with the control plane.
    pub identity: IdentityConfig,
    /// gRPC addresses (host:port) of control-plane nodes; the others are learnt from these.
    pub control_plane: Vec<String>,
    /// Octets of message bodies that may be in memory at once, over all connections: half for mail
    /// coming in, half for mail going out. Default 256MiB.
    #[serde(default = "default_body_budget")]
    pub body_budget: ByteSize,
    /// Octets of one message, headers counted. Default 64MiB: 50 MiB and room for what is added on the way.
    #[serde(default = "default_max_message_size")]
    pub max_message_size: ByteSize,
    /// SMTP connections at once to each listener. Default 1000.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Of these from one address; loopback addresses are not counted. Default 100.
    #[serde(default = "default_connections_per_address")]
    pub connections_per_address: usize,
    /// Limits and deadlines of SMTP sessions.
    #[serde(default)]
    pub sessions: SessionLimits,
    /// Limits and deadlines of outbound delivery.
    #[serde(default)]
    pub delivery: DeliveryOptions,
    /// Name resolution.
    #[serde(default)]
    pub resolver: ResolverConfig,
    /// Dial loopback, private and link-local addresses that DNS names. Static routes may always. Default false.
    #[serde(default)]
    pub allow_private_destinations: bool,
    /// Logs and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// HTTP listener of /metrics, /livez, /readyz.
    pub metrics_listen: Option<SocketAddr>,
    /// How long sessions and deliveries may take to finish after SIGTERM. Default 30s.
    #[serde(default = "default_drain_timeout")]
    pub drain_timeout: ConfigSpan,
}

/// Addresses to listen on; at least one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listeners {
    /// Mail for served domains, STARTTLS required (port 25).
    pub mx: Option<SocketAddr>,
    /// Submission, STARTTLS and AUTH required (port 587).
    pub submission: Option<SocketAddr>,
    /// Submission over implicit TLS, AUTH required (port 465).
    pub submissions: Option<SocketAddr>,
    /// Load balancers that announce the client in a PROXY header (version 1 or 2). Every connection from these
    /// networks has to begin with one; from all others it is never read. Default: none.
    #[serde(default)]
    pub proxy_protocol_from: Vec<Network>,
}

/// PEM files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicCertificate {
    /// Chain, end entity first.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// DNS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResolverConfig {
    /// Servers to ask; empty: those of the system.
    #[serde(default)]
    pub nameservers: Vec<SocketAddr>,
}

/// Limits and deadlines of SMTP sessions (RFC 5321 section 4.5.3).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SessionLimits {
    /// Recipients of one message; at least 100. Default 1000.
    pub recipients: usize,
    /// Protocol errors before 421. Default 20.
    pub errors: u32,
    /// Failed authentications before 421. Default 3.
    pub auth_failures: u32,
    /// Octets of a command line. Default 4096.
    pub command_line: usize,
    /// Wait for a command, from the end of the one before. Default 5m.
    pub command_timeout: ConfigSpan,
    /// The same before TLS, and before AUTH where it is required. Default 60s.
    pub early_timeout: ConfigSpan,
    /// Wait for a block of the message, and for the peer to take a reply. Default 3m.
    pub data_timeout: ConfigSpan,
    /// TLS handshake. Default 30s.
    pub handshake_timeout: ConfigSpan,
    /// Octets per second that a peer must reach on average while it sends a message, after the first
    /// half minute. Default 512.
    pub minimum_rate: u64,
    /// From the final dot to the reply: 451 if the queue cannot take the message in this time. Default 27s.
    pub enqueue_timeout: ConfigSpan,
    /// Wait for memory of the body budget before 452. Default 30s.
    pub budget_timeout: ConfigSpan,
}

impl Default for SessionLimits {
    fn default() -> Self {
        let seconds = |s| ConfigSpan(Duration::from_secs(s));
        Self {
            recipients: 1000,
            errors: 20,
            auth_failures: 3,
            command_line: 4096,
            command_timeout: seconds(300),
            early_timeout: seconds(60),
            data_timeout: seconds(180),
            handshake_timeout: seconds(30),
            minimum_rate: 512,
            enqueue_timeout: seconds(27),
            budget_timeout: seconds(30),
        }
    }
}

fn default_body_budget() -> ByteSize {
    ByteSize(256 << 20)
}
fn default_max_message_size() -> ByteSize {
    ByteSize(64 << 20)
}
fn default_connections() -> usize {
    1000
}
fn default_connections_per_address() -> usize {
    100
}
fn default_drain_timeout() -> ConfigSpan {
    ConfigSpan(Duration::from_secs(30))
}

fn check_name(field: &str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() {
        let reason = "must not be empty: give it in the file, with --name or in SEALANE_NAME";
        return Err(ConfigError::field(field, reason));
    }
    identity::check_instance(name).map_err(|e| ConfigError::field(field, e))
}

impl RelayNodeConfig {
    /// Takes the name that the command line gives, if it gives one.
    pub fn rename(&mut self, name: Option<String>) -> Result<(), ConfigError> {
        if let Some(name) = name {
            check_name("--name", &name)?;
            self.name = name;
        }
        Ok(())
    }
}

impl Validate for RelayNodeConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, field: &str, reason: &str| {
            if ok {
                Ok(())
            } else {
                Err(ConfigError::field(field, reason))
            }
        };
        check_name("name", &self.name)?;
        let host = sealane_types::DomainName::parse(&self.hostname)
            .map_err(|e| ConfigError::field("hostname", e))?;
        check(
            host.is_fully_qualified(),
            "hostname",
            "must be fully qualified",
        )?;
        let l = &self.listeners;
        check(
            l.mx.is_some() || l.submission.is_some() || l.submissions.is_some(),
            "listeners",
            "needs at least one of mx, submission, submissions",
        )?;
        check(
            !self.control_plane.is_empty(),
            "controlPlane",
            "needs the address of at least one control-plane node",
        )?;
        for address in &self.control_plane {
            let port = address.rsplit_once(':').and_then(|(host, port)| {
                port.parse::<u16>()
                    .ok()
                    .filter(|p| *p > 0 && !host.is_empty())
            });
            if port.is_none() {
                return Err(ConfigError::field(
                    "controlPlane",
                    format!("{address:?} is not host:port"),
                ));
            }
        }
        check(
            self.body_budget.0 >= 8 << 20,
            "bodyBudget",
            "must be at least 8MiB",
        )?;
        check(
            self.body_budget.0 <= 1 << 40,
            "bodyBudget",
            "must be at most 1024GiB",
        )?;
        check(
            self.max_message_size.0 >= 64 << 10,
            "maxMessageSize",
            "must be at least 64KiB",
        )?;
        check(
            (1..=1_000_000).contains(&self.connections),
            "connections",
            "must be 1 to 1000000",
        )?;
        check(
            self.connections_per_address > 0,
            "connectionsPerAddress",
            "must not be 0",
        )?;
        let mut addresses = Vec::new();
        for (field, address) in [
            ("listeners.mx", l.mx),
            ("listeners.submission", l.submission),
            ("listeners.submissions", l.submissions),
            ("metricsListen", self.metrics_listen),
        ] {
            let Some(address) = address else { continue };
            check(
                address.port() == 0 || !addresses.contains(&address),
                field,
                "another listener has this address",
            )?;
            addresses.push(address);
        }
        let s = &self.sessions;
        check(
            (100..=sealane_types::MAX_RECIPIENTS).contains(&s.recipients),
            "sessions.recipients",
            "must be 100 (RFC 5321 section 4.5.3.1.8) to 10000",
        )?;
        check(s.errors > 0, "sessions.errors", "must not be 0")?;
        check(
            s.auth_failures >= 3,
            "sessions.authFailures",
            "must be at least 3 (RFC 4954 section 9)",
        )?;
        check(
            (1024..=65_536).contains(&s.command_line),
            "sessions.commandLine",
            "must be 1024 to 65536 octets",
        )?;
        for (field, span) in [
            ("sessions.commandTimeout", s.command_timeout),
            ("sessions.earlyTimeout", s.early_timeout),
            ("sessions.dataTimeout", s.data_timeout),
            ("sessions.handshakeTimeout", s.handshake_timeout),
            ("sessions.budgetTimeout", s.budget_timeout),
        ] {
            check(!span.0.is_zero(), field, "must not be 0")?;
        }
        check(
            (Duration::from_secs(8)..=Duration::from_secs(300)).contains(&s.enqueue_timeout.0),
            "sessions.enqueueTimeout",
            "must be 8s (of which 6 are for finding out what became of the message) to 5m",
        )?;
        self.delivery.validate()?;
        identity::certificates(&self.certificate.certificate)
            .map_err(|e| ConfigError::field("certificate.certificate", format!("{e:#}")))?;
        identity::private_key(&self.certificate.key)
            .map_err(|e| ConfigError::field("certificate.key", format!("{e:#}")))?;
        crate::ingress::public_tls(&self.certificate, CertificateFigures::default())
            .map_err(|e| ConfigError::field("certificate.certificate", format!("{e:#}")))?;
        self.identity.validate()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// What is wrong with a file of these lines and no files of certificates.
    fn complaint(lines: &str, name: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.yaml");
        let rest = "hostname: relay.example\ncontrolPlane: ['127.0.0.1:7000']\n\
                    certificate: {certificate: /none.crt, key: /none.key}\n\
                    identity: {certificate: /none.crt, key: /none.key, ca: /none.crt}\n";
        std::fs::write(&file, format!("{lines}{rest}")).unwrap();
        let rename = |c: &mut RelayNodeConfig| c.rename(name.map(str::to_owned));
        let loaded = sealane_runtime::config::load(&file, rename);
        loaded.unwrap_err().to_string()
    }

    #[test]
    fn a_name_is_of_the_file_or_of_the_command_line_and_has_a_form() {
        let listeners = "listeners: {mx: '127.0.0.1:25'}\n";
        let e = complaint(listeners, None);
        assert!(
            e.contains(": name: must not be empty") && e.contains("SEALANE_NAME"),
            "{e}"
        );
        let e = complaint(&format!("name: a/b\n{listeners}"), None);
        assert!(e.contains("line 1: name: may only have"), "{e}");
        let e = complaint(&format!("name: fine\n{listeners}"), Some("a b"));
        assert!(e.contains(": --name: may only have"), "{e}");
        for name in [None, Some("mail-relay-7d4-x2x")] {
            let e = complaint(&format!("name: fine\n{listeners}"), name);
            assert!(e.contains("certificate.certificate: /none.crt"), "{e}");
        }
    }

    #[test]
    fn proxies_are_networks() {
        let with = |networks: &str| {
            let listeners =
                format!("listeners: {{mx: '127.0.0.1:25', proxyProtocolFrom: [{networks}]}}\n");
            complaint(&format!("name: fine\n{listeners}"), None)
        };
        let e = with("10.0.0.0/8, '2001:db8::/32'");
        assert!(e.contains("certificate.certificate"), "{e}");
        for bad in ["10.0.0.1", "10.0.0.1/8"] {
            let e = with(bad);
            assert!(e.contains("line 2") && e.contains(bad), "{e}");
        }
    }
}
