//! `sealane-probe`: a message through a relay and out again; what `helm test` runs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use sealane_tests::probe::{self, Cli};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match probe::main(&Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealane-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}
