//! `operator run` keeps Sealane clusters in Kubernetes as their resources say; `operator crds` prints the CRDs.
//!
//! A pass over one `RelayCluster` is a pipeline, a file for each stage: dereference ([`observe`], [`control_client`]) →
//! validate, plan, build (the pure crate sealane-plan) → [`certificates`], [`apply`] → [`act`] → [`policies`] → [`status`].
//! [`reconcile`] is the pipeline, [`controller`] says when it runs, [`leader`] who may run it, [`run`] makes all tasks.
#![forbid(unsafe_code)]

mod act;
mod apply;
mod backoff;
mod certificates;
mod cleanup;
mod cli;
mod context;
mod control_client;
mod controller;
mod events;
mod failure;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod fake_api;
mod leader;
mod metrics;
mod observe;
mod policies;
mod reconcile;
mod run;
mod status;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Crds => crds(),
        Command::Run(args) => start(*args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("operator: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: cli::RunArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("operator")
        .worker_threads(2)
        .build()?;
    let result = runtime.block_on(Box::pin(run::run(args)));
    // Who lost the lease waits for nothing.
    runtime.shutdown_background();
    result
}

/// As they are installed, one document each.
fn crds() -> anyhow::Result<()> {
    for crd in sealane_crd::crds() {
        print!("---\n{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(())
}
