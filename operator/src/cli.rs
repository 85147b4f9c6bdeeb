//! The command line.
use clap::{Args, Parser, Subcommand, ValueEnum};
use sealane_runtime::telemetry::{LogFormat, TelemetryConfig};
use std::{net::SocketAddr, str::FromStr};

/// Keeps Sealane clusters in Kubernetes as RelayCluster and RelayPolicy resources say.
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Watch and act until SIGTERM.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML.
    ///
    /// Example: operator crds | kubectl apply --server-side -f -
    Crds,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RunArgs {
    /// Namespaces to watch, comma-separated; default: all.
    #[arg(long, env = "SEALANE_NAMESPACES", value_delimiter = ',')]
    pub(crate) namespace: Vec<String>,
    /// HTTP listener of /metrics, /livez and /readyz.
    #[arg(long, env = "SEALANE_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    pub(crate) metrics_listen: SocketAddr,
    /// Lease, as NAMESPACE/NAME, that only one operator holds at a time. Without it, run only one.
    #[arg(long, env = "SEALANE_LEADER_ELECTION")]
    pub(crate) leader_election: Option<LeaseName>,
    /// Seconds after which a Secret that changed is in all pods, and was read again there. A new CA is trusted everywhere for
    /// this long before it signs. At least kubelet's syncFrequency and the time that its cache lives.
    #[arg(long, env = "SEALANE_SECRET_PROPAGATION", default_value_t = sealane_plan::certs::MOUNT)]
    pub(crate) secret_propagation: u64,
    /// Follow the annotation sealane.io/control-endpoints on a RelayCluster to reach its control plane. For tests: whoever
    /// may annotate then decides whom the operator talks to.
    #[arg(long, env = "SEALANE_ALLOW_ENDPOINT_OVERRIDE")]
    pub(crate) allow_endpoint_override: bool,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct TelemetryArgs {
    /// OTLP/gRPC collector, http://host:4317; default: no spans are exported.
    #[arg(long, env = "SEALANE_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Form of the log.
    #[arg(long, env = "SEALANE_LOG_FORMAT", value_enum, default_value_t = Format::Json)]
    log_format: Format,
    /// As in RUST_LOG.
    ///
    /// The client's warnings are left out: they quote what could not be read, which may be a Secret.
    #[arg(
        long,
        env = "SEALANE_LOG_FILTER",
        default_value = "info,kube_client=error,kube_runtime=warn,opentelemetry=off"
    )]
    log_filter: String,
}

#[derive(ValueEnum, Debug, Clone, Copy)]
enum Format {
    /// For eyes.
    Text,
    /// One object per line.
    Json,
}

impl TelemetryArgs {
    pub(crate) fn config(&self) -> TelemetryConfig {
        TelemetryConfig {
            otlp_endpoint: self.otlp_endpoint.clone(),
            log_format: match self.log_format {
                Format::Text => LogFormat::Text,
                Format::Json => LogFormat::Json,
            },
            log_filter: Some(self.log_filter.clone()),
        }
    }
}

/// Where the Lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FromStr for LeaseName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err("write it as NAMESPACE/NAME".to_owned()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn teaches(command: &clap::Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} says nothing");
        for a in command.get_arguments() {
            assert!(
                a.get_help().is_some(),
                "{path}: {} says nothing",
                a.get_id()
            );
        }
        for c in command.get_subcommands() {
            teaches(c, &format!("{path} {}", c.get_name()));
        }
    }

    #[test]
    fn every_command_and_flag_says_what_it_does() {
        Cli::command().debug_assert();
        teaches(&Cli::command(), "operator");
    }

    #[test]
    fn a_lease_is_named_with_its_namespace() {
        let lease: LeaseName = "mail-system/operator".parse().unwrap();
        assert_eq!(
            (lease.namespace.as_str(), lease.name.as_str()),
            ("mail-system", "operator")
        );
        for wrong in ["operator", "/operator", "a/", "a/b/c"] {
            assert!(wrong.parse::<LeaseName>().is_err(), "{wrong}");
        }
    }
}
