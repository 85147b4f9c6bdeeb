//! `control-plane --config FILE`
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: ControlPlaneConfig = match sealane_runtime::config::load(&arguments.config) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(sealane_runtime::exit_code::CONFIG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control-plane")
        .build()
    {
        Ok(r) => r,
        Err(e) => {
            eprintln!("control-plane: no threads: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Box::pin(node::run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("control-plane: {e:#}");
            ExitCode::FAILURE
        }
    }
}
