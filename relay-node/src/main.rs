//! `relay-node --config FILE`
#![forbid(unsafe_code)]

use clap::Parser;
use relay_node::node;
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
}

fn main() -> ExitCode {
    sealane_runtime::process::run("relay-node", &Arguments::parse().config, node::run)
}
