//! One file per received message, on the disk before the sink says 250.
//!
//! `messages/STEM.eml` holds the octets after removal of the transparency dots and nothing else;
//! `envelopes/STEM.json` holds what the session said about them. A message appears by rename, so
//! a reader never sees half a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a session said around one message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Without angle brackets; empty is the null reverse-path.
    pub reverse_path: String,
    /// Parameters of MAIL FROM, as given.
    pub mail_parameters: Vec<String>,
    pub recipients: Vec<String>,
    pub helo: String,
    pub peer: String,
    pub tls_version: String,
    pub tls_cipher: String,
    /// Milliseconds since the epoch.
    pub received_at_ms: u64,
    pub octets: u64,
    /// Whether a CR or LF stood outside CRLF.
    pub bare_line_ends: bool,
}

/// A message in the store.
#[derive(Debug, Clone)]
pub struct Received {
    pub file: PathBuf,
    pub envelope: Envelope,
}

impl Received {
    /// The raw octets.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn octets(&self) -> Result<Vec<u8>> {
        fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))
    }
}

/// The folder of a sink.
#[derive(Debug)]
pub struct Store {
    messages: PathBuf,
    envelopes: PathBuf,
    incoming: PathBuf,
    next: AtomicU64,
}

impl Store {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: PathBuf) -> Result<Self> {
        let store = Self {
            messages: folder.join("messages"),
            envelopes: folder.join("envelopes"),
            incoming: folder.join("incoming"),
            next: AtomicU64::new(1),
        };
        for folder in [&store.messages, &store.envelopes, &store.incoming] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(store)
    }

    /// Where the messages are: one file each.
    #[must_use]
    pub fn messages(&self) -> &Path {
        &self.messages
    }

    /// Keeps a message: written, synced, renamed, and the folder synced.
    ///
    /// # Errors
    /// When any of that fails; the message then was not received.
    pub fn keep(&self, envelope: &Envelope, octets: &[u8]) -> Result<PathBuf> {
        let stem = format!(
            "{}-{}-{:06}",
            envelope.received_at_ms,
            std::process::id(),
            self.next.fetch_add(1, Ordering::SeqCst)
        );
        fs::write(
            self.envelopes.join(format!("{stem}.json")),
            serde_json::to_vec(envelope)?,
        )?;
        let draft = self.incoming.join(&stem);
        let mut file = File::create(&draft)?;
        file.write_all(octets)?;
        file.sync_data()?;
        let kept = self.messages.join(format!("{stem}.eml"));
        fs::rename(&draft, &kept)?;
        File::open(&self.messages)?.sync_data()?;
        Ok(kept)
    }

    /// All messages, oldest name first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Received>> {
        let files = self.files()?.into_iter();
        files.map(|file| self.received(file)).collect()
    }

    /// The files of all messages, oldest name first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut names: Vec<PathBuf> = fs::read_dir(&self.messages)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// Deletes a message that nobody has to look at again.
    ///
    /// # Errors
    /// When a file cannot be deleted.
    pub fn forget(&self, file: &Path) -> Result<()> {
        fs::remove_file(self.envelope(file)?)?;
        Ok(fs::remove_file(file)?)
    }

    fn envelope(&self, file: &Path) -> Result<PathBuf> {
        let stem = file.file_stem().context("message file name")?;
        Ok(self.envelopes.join(stem).with_extension("json"))
    }

    /// Number of messages.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn count(&self) -> Result<usize> {
        Ok(fs::read_dir(&self.messages)?.count())
    }

    /// One message with its envelope.
    ///
    /// # Errors
    /// When it is not there.
    pub fn received(&self, file: PathBuf) -> Result<Received> {
        let path = self.envelope(&file)?;
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Received {
            envelope: serde_json::from_slice(&text)?,
            file,
        })
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
