//! `control-plane --config FILE`
#![forbid(unsafe_code)]

use clap::Parser;
use control_plane::node;
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
}

fn main() -> ExitCode {
    sealane_runtime::process::run("control-plane", &Arguments::parse().config, node::run)
}
