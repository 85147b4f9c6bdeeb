//! What can be asked of the file system, and what it counts.

use std::time::Duration;

use serde::Serialize;

/// What a power loss leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Lose,
    /// Of each file the sectors up to a random one, and of the names those changed up to a random moment.
    /// The number is the seed.
    Torn(u64),
    /// Of each file every sector with probability one half: the disk had its own order. Names as above.
    Reordered(u64),
}

/// Counted from the start; power losses reset nothing.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Statistics {
    /// Octets that a cut now would take, in whole sectors.
    pub unsynced: u64,
    /// Changes of names that a cut now would take.
    pub unsynced_names: u64,
    pub power_losses: u64,
    /// Octets taken by power losses, in whole sectors.
    pub discarded: u64,
    /// Changes of names taken by power losses.
    pub discarded_names: u64,
    /// fsync, fdatasync and synchronous writes that were answered with success.
    pub syncs: u64,
    /// Those of them that did nothing.
    pub lies: u64,
    /// Syncs that failed because they were told to.
    pub failed_syncs: u64,
    /// Writes that failed because they were told to.
    pub failed_writes: u64,
    /// Writes, or new files, that found no space.
    pub no_space: u64,
    /// Operations refused because the power was off.
    pub without_power: u64,
    /// Octets that processes wrote.
    pub written: u64,
    /// Octets that syncs made durable.
    pub persisted: u64,
    /// Octets of all files.
    pub used: u64,
}

/// What is set now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lying: bool,
    /// So many syncs fail from now on.
    pub(crate) failing_syncs: u64,
    /// So many writes fail from now on.
    pub(crate) failing_writes: u64,
    /// Most octets of all files; `None`: as many as the disk below has.
    pub(crate) capacity: Option<u64>,
    /// How long a sync takes.
    pub(crate) sync_time: Duration,
    pub(crate) off: bool,
}
