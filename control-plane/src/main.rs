//! `control-plane --config FILE [--name NAME]`
#![forbid(unsafe_code)]

use clap::Parser;
use control_plane::{config::ControlPlaneConfig, node};
use std::{path::PathBuf, process::ExitCode};

/// Sealane's control plane: keeps the replicated mail queue, policy and membership.
///
/// Exits with 64 when the configuration is wrong, naming the field, before anything binds.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// YAML configuration; docs/configuration.md describes every field.
    #[arg(long, env = "SEALANE_CONFIG")]
    config: PathBuf,
    /// The node's name, in place of `name` in the configuration.
    #[arg(long, env = "SEALANE_NAME")]
    name: Option<String>,
}

fn main() -> ExitCode {
    let Arguments { config, name } = Arguments::parse();
    let rename = |c: &mut ControlPlaneConfig| c.rename(name);
    sealane_runtime::process::run("control-plane", &config, rename, node::run)
}
