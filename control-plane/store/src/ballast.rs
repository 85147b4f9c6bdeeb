//! Space that is kept back for a start on a full volume.
//!
//! Opening a database takes space before anything can be deleted: what only the WAL holds is written to tables.
//! A node that ended because its volume was full could never start again. So a file holds that space, and is
//! deleted before such a start; it comes back when there is room for it and for the reserve.
use crate::error::StoreError;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

const NAME: &str = "BALLAST";

/// The file of one volume.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    /// Octets; 0: none is wanted.
    size: u64,
    there: AtomicBool,
}

/// What becomes of it at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Missing,
    Stays,
    /// It is of an older configuration, or was not finished.
    Stale,
    /// The start may need its space.
    Needed,
}

impl Fate {
    fn of(found: u64, size: u64, free: u64) -> Self {
        match found {
            0 => Self::Missing,
            _ if free < found.max(size) => Self::Needed,
            _ if found == size => Self::Stays,
            _ => Self::Stale,
        }
    }
}

impl Ballast {
    /// Looks at the volume before anything on it is opened, and gives the space back if a start may need it.
    pub(crate) fn before_start(dir: &Path, size: u64) -> Result<Self, StoreError> {
        let path = dir.join(NAME);
        let found = match std::fs::metadata(&path) {
            Ok(file) => file.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e.into()),
        };
        let free = free(dir)?;
        let fate = Fate::of(found, size, free);
        if matches!(fate, Fate::Stale | Fate::Needed) {
            std::fs::remove_file(&path)?;
            File::open(dir)?.sync_all()?;
        }
        if fate == Fate::Needed {
            tracing::warn!(
                free,
                ballast = found,
                "the volume is full: the ballast is deleted so that the node can start; give the volume more space"
            );
        }
        Ok(Self {
            path,
            size,
            there: AtomicBool::new(fate == Fate::Stays),
        })
    }

    /// Makes the file if it is missing and `wanted` octets stay free beside it.
    pub(crate) fn keep(&self, wanted: u64) -> Result<(), StoreError> {
        if self.size == 0 || self.there.load(Ordering::Relaxed) {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if free(dir)? < wanted.saturating_add(self.size) {
            return Ok(());
        }
        let made = self.make(dir);
        if made.is_err() {
            // Half of one would be taken for the reserve of a start.
            let _gone = std::fs::remove_file(&self.path);
        }
        made?;
        self.there.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn make(&self, dir: &Path) -> Result<(), StoreError> {
        let file = File::create(&self.path)?;
        let size = i64::try_from(self.size)
            .map_err(|_| StoreError::Io("diskBallast: too large for a file".into()))?;
        // Reserves blocks, or writes to each of them where the file system cannot.
        nix::fcntl::posix_fallocate(&file, 0, size).map_err(io::Error::from)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }
}

fn free(dir: &Path) -> Result<u64, StoreError> {
    let s = nix::sys::statvfs::statvfs(dir).map_err(io::Error::from)?;
    Ok(s.blocks_available().saturating_mul(s.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn volume() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join(NAME);
        (dir, file)
    }

    #[test]
    fn a_ballast_is_made_only_where_the_reserve_stays_free() {
        let (dir, file) = volume();
        let ballast = Ballast::before_start(dir.path(), SIZE).expect("opened");
        ballast.keep(u64::MAX).expect("looked");
        assert!(!file.exists());
        ballast.keep(0).expect("made");
        assert_eq!(std::fs::metadata(&file).expect("there").len(), SIZE);
    }

    #[test]
    fn a_start_deletes_it_only_when_less_than_it_is_free() {
        assert_eq!(Fate::of(0, SIZE, 0), Fate::Missing);
        assert_eq!(Fate::of(SIZE, SIZE, SIZE), Fate::Stays);
        assert_eq!(Fate::of(SIZE, SIZE, SIZE - 1), Fate::Needed);
        assert_eq!(Fate::of(SIZE, 0, 0), Fate::Needed);
        assert_eq!(Fate::of(SIZE, 2 * SIZE, 3 * SIZE), Fate::Stale);
    }

    #[test]
    fn it_outlives_a_start_with_space() {
        let (dir, file) = volume();
        let ballast = Ballast::before_start(dir.path(), SIZE).expect("opened");
        ballast.keep(0).expect("made");
        let again = Ballast::before_start(dir.path(), SIZE).expect("opened");
        assert!(file.exists() && again.there.load(Ordering::Relaxed));
    }

    #[test]
    fn half_a_ballast_and_one_of_another_size_are_deleted() {
        let (dir, file) = volume();
        std::fs::write(&file, b"half").expect("written");
        let ballast = Ballast::before_start(dir.path(), SIZE).expect("opened");
        assert!(!file.exists());
        ballast.keep(0).expect("made");
        let none = Ballast::before_start(dir.path(), 0).expect("opened");
        assert!(!file.exists());
        none.keep(0).expect("nothing to do");
        assert!(!file.exists());
    }
}
