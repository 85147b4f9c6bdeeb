//! `relay-node --config FILE`
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: RelayNodeConfig = match sealane_runtime::config::load(&arguments.config) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(sealane_runtime::exit_code::CONFIG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("relay-node")
        .build()
    {
        Ok(r) => r,
        Err(e) => {
            eprintln!("relay-node: no threads: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Box::pin(node::run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("relay-node: {e:#}");
            ExitCode::FAILURE
        }
    }
}
