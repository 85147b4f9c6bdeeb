//! What can go wrong with storage.

/// A variant is a decision for the caller: all but `Busy` are final for the process.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// RocksDB or the file system refused. Never retried.
    #[error("storage failed: {0}")]
    Io(String),
    /// A record is not what was written.
    #[error(
        "{family} record {key} is damaged: {reason}. The volume lies: remove this node and join a fresh one"
    )]
    Corrupt {
        /// Column family or file.
        family: &'static str,
        /// Hex.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// An earlier write or sync failed.
    #[error("storage failed earlier and takes no more writes: {0}")]
    Poisoned(String),
    /// The volume is behind what this node had promised.
    #[error(
        "group {group}: the volume forgot {what}. It was restored from an old copy or lost synced data. \
         This node must not vote: empty the volume and let it join as a new node"
    )]
    Lost {
        /// The group.
        group: u32,
        /// Recovered and promised positions.
        what: String,
    },
    /// The volume is of another format.
    #[error("store format {found} is not known to this version, which reads {known}")]
    Format {
        /// On the volume.
        found: u8,
        /// Ours.
        known: u8,
    },
}

impl From<std::io::Error> for StoreError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e.to_string())
    }
}
