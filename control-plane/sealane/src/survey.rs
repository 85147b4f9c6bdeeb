//! What is in a backup file: every octet verified, then every message with its body.
use anyhow::{Context, bail};
use sealane_backup::{Archive, Catalog, Table};
use sealane_wire::v1::{self, recipient_record::State};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{BufReader, IsTerminal, Write},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two lines of progress.
const REFRESH: Duration = Duration::from_millis(200);

/// A line on a terminal that is written over; nothing in a pipe.
#[derive(Debug)]
pub(crate) struct Progress {
    on: bool,
    next: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            on: std::io::stderr().is_terminal(),
            next: Instant::now(),
        }
    }

    pub(crate) fn show(&mut self, line: impl FnOnce() -> String) {
        if self.on && Instant::now() >= self.next {
            self.next = Instant::now() + REFRESH;
            eprint!("\r\x1b[K{}", line());
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.on {
            eprint!("\r\x1b[K");
        }
    }
}

/// "1.2 GiB".
pub(crate) fn size(octets: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = octets as f64;
    let mut name = "octets";
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "octets" {
        format!("{octets} octets")
    } else {
        format!("{value:.1} {name}")
    }
}

/// One shard of a backup.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) position: v1::BackupGroup,
    pub(crate) messages: u64,
    pub(crate) held: u64,
    pub(crate) open_recipients: u64,
    pub(crate) leased_recipients: u64,
    /// Of the bodies of its messages.
    pub(crate) octets: u64,
    /// When its oldest message was made; 0: it has none.
    pub(crate) oldest_ms: u64,
}

/// All of a backup.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) policy: v1::PolicySet,
    /// "Kind/name".
    pub(crate) documents: Vec<String>,
    pub(crate) nodes: Vec<v1::NodeRecord>,
}

impl Survey {
    pub(crate) fn messages(&self) -> u64 {
        self.shards.iter().map(|s| s.messages).sum()
    }
    pub(crate) fn octets(&self) -> u64 {
        self.shards.iter().map(|s| s.octets).sum()
    }
}

pub(crate) fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| path.display().to_string())
}

/// Reads all of a backup twice: its octets, then what they mean.
pub(crate) fn read(path: &Path) -> anyhow::Result<Survey> {
    let whole = open(path)?.metadata()?.len();
    let mut progress = Progress::new();
    let mut input = BufReader::with_capacity(1 << 20, open(path)?);
    let catalog = Catalog::read(&mut input, |at| {
        progress.show(|| format!("verifying: {} of {}", size(at), size(whole)));
    });
    let refused = || {
        let path = path.display();
        format!("{path} is refused; take another backup, or another copy of this one")
    };
    let catalog = Arc::new(catalog.with_context(refused)?);
    let mut archive = Archive::new(open(path)?, catalog.clone());
    let mut shards = Vec::new();
    for n in 1..=catalog.header.shards {
        let found = shard(&mut archive, n, &mut progress).with_context(refused)?;
        shards.push(found);
    }
    let (policy, documents) = policy(&mut archive).with_context(refused)?;
    let nodes = nodes(&mut archive).with_context(refused)?;
    Ok(Survey {
        catalog,
        shards,
        policy,
        documents,
        nodes,
    })
}

fn shard(archive: &mut Archive<File>, n: u32, progress: &mut Progress) -> anyhow::Result<Shard> {
    let group = usize::try_from(n)
        .ok()
        .and_then(|n| archive.catalog().groups.get(n));
    let mut out = Shard {
        position: group.map(|g| g.position).unwrap_or_default(),
        ..Shard::default()
    };
    let mut messages = archive.messages(n)?;
    while let Some(m) = messages.next(archive)? {
        let mut digest = Sha256::new();
        for part in m.parts() {
            let piece = archive.piece(m.id, &part)?;
            digest.update(&piece);
            out.octets += piece.len() as u64;
        }
        if digest.finalize().as_slice() != m.record.sha256.as_ref() {
            bail!("message {}: its body is not what was accepted", m.id);
        }
        let count =
            |state: State| m.recipients.iter().filter(|r| r.state() == state).count() as u64;
        out.leased_recipients += count(State::Leased);
        out.open_recipients += count(State::Leased) + count(State::Waiting) + count(State::Held);
        out.held += u64::from(!m.record.hold.is_empty());
        if out.messages == 0 {
            out.oldest_ms = m.id.time_ms();
        }
        out.messages += 1;
        progress.show(|| format!("checking messages: shard {n}, {} so far", out.messages));
    }
    Ok(out)
}

fn policy(archive: &mut Archive<File>) -> anyhow::Result<(v1::PolicySet, Vec<String>)> {
    let mut set = v1::PolicySet::default();
    let mut names = Vec::new();
    let mut rows = archive.scan(0, Some(Table::Policy), b"")?;
    while let Some(row) = rows.next(archive)? {
        if row.key.is_empty() {
            let revision = row.value.as_ref().try_into().context("policy revision")?;
            set.revision = u64::from_be_bytes(revision);
        } else {
            names.push(String::from_utf8_lossy(&row.key).into_owned());
            set.documents.push(row.decode().context("policy document")?);
        }
    }
    Ok((set, names))
}

fn nodes(archive: &mut Archive<File>) -> anyhow::Result<Vec<v1::NodeRecord>> {
    let mut out = Vec::new();
    let mut rows = archive.scan(0, Some(Table::Node), b"")?;
    while let Some(row) = rows.next(archive)? {
        out.push(row.decode().context("node")?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_for_eyes() {
        for (octets, text) in [
            (0, "0 octets"),
            (1023, "1023 octets"),
            (1024, "1.0 KiB"),
            (5 << 29, "2.5 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(octets), text);
        }
    }
}
