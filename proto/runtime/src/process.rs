//! From the command line to a running node and its exit code.
use crate::{
    config::{self, ConfigError, Validate},
    exit_code,
};
use serde::de::DeserializeOwned;
use std::{path::Path, process::ExitCode};

/// For every process, RocksDB included: glibc's malloc took a tenth of the CPU time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Half of the cores: the others are for what blocks (sync, flush, compaction, passwords) and for the
/// kernel's network, and waking another worker costs more than most of what it would take over.
/// `TOKIO_WORKER_THREADS` says otherwise.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

/// Loads the configuration, with what the command line says otherwise, and runs `node` with it to its end. What
/// fails is said on standard error; a wrong configuration ends with [`exit_code::CONFIG`] before anything else happens.
pub fn run<C, F>(
    name: &'static str,
    file: &Path,
    adjust: impl FnOnce(&mut C) -> Result<(), ConfigError>,
    node: impl FnOnce(C) -> F,
) -> ExitCode
where
    C: DeserializeOwned + Validate,
    F: Future<Output = anyhow::Result<()>>,
{
    let config = match config::load(file, adjust) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{name}: {e}");
            return ExitCode::from(exit_code::CONFIG);
        }
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name(name);
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(workers());
    }
    let runtime = match builder.build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("{name}: no threads: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Box::pin(node(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}: {e:#}");
            ExitCode::FAILURE
        }
    }
}
