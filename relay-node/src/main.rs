//! `relay-node --config FILE [--name NAME]`
#![forbid(unsafe_code)]

use clap::Parser;
use relay_node::{config::RelayNodeConfig, node};
use std::{path::PathBuf, process::ExitCode};

/// Sealane's relay node: accepts mail over TLS, hands it to the replicated queue, delivers it over TLS.
///
/// Keeps nothing on disk. Exits with 64 when the configuration is wrong, naming the field, before
/// anything binds.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// YAML configuration; docs/configuration.md describes every field.
    #[arg(long, env = "SEALANE_CONFIG")]
    config: PathBuf,
    /// The node's name, in place of `name` in the configuration. Relays with the same certificate need different ones.
    #[arg(long, env = "SEALANE_NAME")]
    name: Option<String>,
}

fn main() -> ExitCode {
    let Arguments { config, name } = Arguments::parse();
    let rename = |c: &mut RelayNodeConfig| c.rename(name);
    sealane_runtime::process::run("relay-node", &config, rename, node::run)
}
