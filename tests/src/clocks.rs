//! Clocks that are wrong: the time of day of a real process, set from outside. Monotonic time stays.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cluster::http_get;
use crate::tools;

/// The library that is put into processes.
const SOURCE: &str = include_str!("clocks/clock.c");
const LIBRARY: &str = "clock.so";

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
    Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
}

/// Seconds since the epoch, by our clock.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since the epoch, by the clock of a process: its HTTP listener dates what it says.
///
/// # Errors
/// When nobody answers.
pub async fn said_by(metrics: SocketAddr) -> Result<i64> {
    let answer = http_get(metrics, "/metrics").await?;
    let mut lines = answer.lines();
    let dated = lines.find_map(|line| line.strip_prefix("date: "));
    let date = dated.context("no date")?;
    seconds(date).with_context(|| format!("date {date}"))
}

/// Of a date like `Wed, 25 Nov 2026 02:14:20 GMT`.
fn seconds(date: &str) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let words: Vec<&str> = date.split([' ', ':']).collect();
    let number = |at: usize| words.get(at)?.parse::<i64>().ok();
    let month = i64::try_from(MONTHS.find(words.get(2)?)? / 3).ok()? + 1;
    // Years begin with March, so that the leap day is the last of one.
    let year = number(3)? - i64::from(month < 3);
    let days_of_year = (153 * ((month + 9) % 12) + 2) / 5 + number(1)? - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + days_of_year - 719_468;
    Some(((days * 24 + number(4)?) * 60 + number(5)?) * 60 + number(6)?)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn dates_of_http_are_read() {
        for (date, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 25 Nov 2026 02:14:20 GMT", Some(1_795_572_860)),
            ("Thu, 29 Feb 2024 12:00:00 GMT", Some(1_709_208_000)),
            ("yesterday", None),
        ] {
            assert_eq!(seconds(date), expected, "{date}");
        }
    }
}
