//! `sealane-mutants`: behind `make mutants`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use sealane_tests::mutants::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match mutants::main(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sealane-mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}
