//! Clocks that are wrong: the time of day of a real process, set from outside. Monotonic time stays.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::tools;

/// The library that is put into processes.
const SOURCE: &str = include_str!("clocks/clock.c");
const LIBRARY: &str = "clock.so";
/// Octets of a clock's file: how wrong it is, and how often it was read so.
const SIZE: u64 = 16;

/// Makes the folder of a cluster's clocks.
///
/// # Errors
/// When there is no C compiler.
pub fn prepare(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let source = folder.join("clock.c");
    fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]);
    tools::run(compiler.arg(folder.join(LIBRARY)).arg(source)).map(|_| ())
}

/// What a process needs in its environment so that this file of the folder sets its clock.
#[must_use]
pub fn environment(file: &Path) -> Vec<(String, String)> {
    let library = file.with_file_name(LIBRARY);
    let pair = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
    vec![pair("LD_PRELOAD", &library), pair("TEST_CLOCK", file)]
}

/// From now on the clock is so many seconds wrong.
///
/// # Errors
/// When the file cannot be written.
pub fn set(file: &Path, seconds: i64) -> Result<()> {
    // In place: processes have it mapped.
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(file)?;
    if file.metadata()?.len() < SIZE {
        file.set_len(SIZE)?;
    }
    Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
}

/// How often processes were told a wrong time by this file.
///
/// # Errors
/// When it cannot be read.
pub fn told(file: &Path) -> Result<u64> {
    let mut count = [0; 8];
    File::open(file)?.read_exact_at(&mut count, SIZE / 2)?;
    Ok(u64::from_ne_bytes(count))
}
