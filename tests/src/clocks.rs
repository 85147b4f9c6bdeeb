//! Clocks that are wrong: the time of day of a real process, set from outside by libfaketime. Monotonic time stays.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::cluster::http_get;

/// Debian's package faketime puts it here, by architecture.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library| library.is_file())
}

/// What a process needs in its environment so that this file sets its clock.
///
/// # Errors
/// When libfaketime is missing.
pub fn environment(file: &Path) -> Result<Vec<(String, String)>> {
    let library = library().context("libfaketime is missing (make chaos installs faketime)")?;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Ok(vec![
        pair("LD_PRELOAD", &library.display().to_string()),
        pair("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
        pair("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        pair("DONT_FAKE_MONOTONIC", "1"),
        pair("FAKETIME_CACHE_DURATION", "1"),
        pair("NO_FAKE_STAT", "1"),
    ])
}

/// From now on (a second later at most) the clock is so many seconds wrong.
///
/// # Errors
/// When the file cannot be written.
pub fn set(file: &Path, seconds: i64) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Whole or not at all: half a number is another time.
    let draft = file.with_extension("new");
    fs::write(&draft, format!("{seconds:+}\n"))?;
    Ok(fs::rename(&draft, file)?)
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
