//! The control socket: a line in, a line of JSON out.
//!
//! | line | does |
//! |---|---|
//! | `stats` | nothing |
//! | `cut`, `cut torn SEED`, `cut reordered SEED` | power loss; the power stays off |
//! | `on` | power again |
//! | `lie on`, `lie off` | syncs succeed and do nothing |
//! | `eio sync N`, `eio write N` | the next N of them fail |
//! | `space N`, `space unlimited` | so many octets are free from now on |
//! | `slow MS` | every sync takes so long |
//! | `flip PATH OFFSET BIT` | turns a bit round |
//! | `sync` | makes everything durable |
//!
//! The answer is `{"error": "…"}` or the [`Statistics`](crate::Statistics) after it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::faults::{Cut, Statistics};
use crate::fuse::Shared;

/// Serves until the process ends.
pub fn serve(listener: &UnixListener, volume: &Shared) {
    for stream in listener.incoming() {
        let volume = volume.clone();
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || {
                    if let Err(error) = converse(&stream, &volume) {
                        eprintln!("control: {error}");
                    }
                });
            }
            Err(error) => eprintln!("control: {error}"),
        }
    }
}

fn converse(mut stream: &UnixStream, volume: &Shared) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let answer = match obey(&line?, volume) {
            Ok(statistics) => serde_json::to_string(&statistics)?,
            Err(error) => serde_json::json!({ "error": format!("{error:#}") }).to_string(),
        };
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

/// Obeys one line.
///
/// # Errors
/// When it is not one of the lines above, or names a file that is not there.
pub fn obey(line: &str, volume: &Shared) -> Result<Statistics> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut volume = volume.lock();
    match words.as_slice() {
        ["stats"] => {}
        ["cut"] => volume.cut(Cut::Lose),
        ["cut", "torn", seed] => volume.cut(Cut::Torn(seed.parse().context("seed")?)),
        ["cut", "reordered", seed] => volume.cut(Cut::Reordered(seed.parse().context("seed")?)),
        ["on"] => volume.power_on(),
        ["lie", "on"] => volume.lie(true),
        ["lie", "off"] => volume.lie(false),
        ["eio", "sync", count] => volume.fail_syncs(count.parse().context("count")?),
        ["eio", "write", count] => volume.fail_writes(count.parse().context("count")?),
        ["space", "unlimited"] => volume.limit(None),
        ["space", free] => volume.limit(Some(free.parse().context("octets")?)),
        ["slow", time] => volume.slow(Duration::from_millis(time.parse().context("time")?)),
        ["flip", path, offset, bit] => {
            let (offset, bit) = (
                offset.parse().context("offset")?,
                bit.parse().context("bit")?,
            );
            volume
                .flip(Path::new(path), offset, bit)
                .with_context(|| format!("{path} at {offset}"))?;
        }
        ["sync"] => volume.sync_all().context("sync")?,
        _ => bail!("{line:?} is not known"),
    }
    Ok(volume.statistics())
}
