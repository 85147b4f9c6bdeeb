//! `sealane-dev`: the local cluster behind `make run`, `make kill`, `make start` and `make stop`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use sealane_tests::dev::{self, Cli};

fn main() -> ExitCode {
    match dev::main(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sealane-dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}
