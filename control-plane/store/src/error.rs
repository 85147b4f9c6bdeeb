//! What can go wrong with storage.

/// A variant is a decision for the caller: all but `Busy` are final for the process.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// RocksDB or the file system refused. Never retried.
    #[error("storage failed: {0}")]
    Io(String),
    /// A record is not what was written.
    #[error(
        "{family} record {key} is damaged: {reason}. Nothing on this volume can be trusted, and this node \
         must not vote: give its places to another node (sealane node replace), or empty the volume and let \
         it join as a new node"
    )]
    Corrupt {
        /// Column family or file.
        family: &'static str,
        /// Hex.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// RocksDB found damage, now or before an earlier end of this process.
    #[error(
        "the volume is damaged: {0}. Nothing on it can be trusted, and this node must not vote: give its \
         places to another node (sealane node replace), or empty the volume and let it join as a new node"
    )]
    Damaged(String),
    /// An earlier write or sync failed.
    #[error("storage failed earlier and takes no more writes: {0}")]
    Poisoned(String),
    /// The volume is behind what this node had promised.
    #[error(
        "group {group}: the volume forgot {what}. It was restored from an old copy or lost synced data. \
         This node must not vote: give its places to another node (sealane node replace), or empty the \
         volume and let it join as a new node"
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

impl StoreError {
    /// Whether the volume holds something else than what was written to it.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Damaged(_))
    }
}

impl StoreError {
    /// Whether the volume must not be opened again.
    pub(crate) fn is_suspicious(&self) -> bool {
        match self {
            Self::Io(text) => !text.contains("No space left on device"),
            other => other.is_damage(),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e.to_string())
    }
}
