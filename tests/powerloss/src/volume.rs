//! The file system without the kernel: inodes, names, faults.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::content::Content;
use crate::faults::{Cut, Faults, Statistics};
use crate::names::Names;

/// Number of a file; never used again.
pub type Ino = u64;

/// The folder that is mounted.
pub const ROOT: Ino = 1;

/// Files without names are looked for after so many removals.
const SWEEP_EVERY: usize = 64;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Folder,
    Symlink,
    Fifo,
    Socket,
}

/// What `stat` shows, but size and links.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub atime: SystemTime,
    pub mtime: SystemTime,
}

impl Attributes {
    /// Of a file made now.
    #[must_use]
    pub fn new(mode: u16, uid: u32, gid: u32) -> Self {
        let now = SystemTime::now();
        Self {
            mode,
            uid,
            gid,
            atime: now,
            mtime: now,
        }
    }
}

#[derive(Debug)]
struct Inode {
    kind: Kind,
    attributes: Attributes,
    durable: Attributes,
    content: Content,
    target: Option<PathBuf>,
    handles: usize,
}

/// See the module's documentation. Every operation fails with EIO while the power is off.
#[derive(Debug)]
pub struct Volume {
    backing: PathBuf,
    inodes: BTreeMap<Ino, Inode>,
    names: Names,
    next: Ino,
    /// Handles of an earlier one are dead.
    powered: u64,
    faults: Faults,
    statistics: Statistics,
    removals: usize,
}

fn broken(error: &std::io::Error) -> Errno {
    eprintln!("backing folder: {error}");
    Errno::EIO
}

impl Volume {
    /// An empty file system; durable octets go to `backing`.
    #[must_use]
    pub fn new(backing: PathBuf) -> Self {
        let mut volume = Self {
            backing,
            inodes: BTreeMap::new(),
            names: Names::default(),
            next: ROOT,
            powered: 0,
            faults: Faults::default(),
            statistics: Statistics::default(),
            removals: 0,
        };
        volume.inode_of(Kind::Folder, Attributes::new(0o755, 0, 0), None);
        volume
    }

    fn inode_of(&mut self, kind: Kind, attributes: Attributes, target: Option<PathBuf>) -> Ino {
        let ino = self.next;
        self.next += 1;
        let inode = Inode {
            kind,
            attributes,
            durable: attributes,
            content: Content::new(self.backing.join(ino.to_string())),
            target,
            handles: 0,
        };
        self.inodes.insert(ino, inode);
        ino
    }

    fn live(&mut self) -> Result<(), Errno> {
        if self.faults.off {
            self.statistics.without_power += 1;
            return Err(Errno::EIO);
        }
        Ok(())
    }

    fn get(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.live()?;
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn handle(&mut self, ino: Ino, powered: u64) -> Result<&mut Inode, Errno> {
        if powered != self.powered {
            self.statistics.without_power += 1;
            return Err(Errno::EIO);
        }
        self.get(ino)
    }

    fn folder(&mut self, ino: Ino) -> Result<(), Errno> {
        match self.get(ino)?.kind {
            Kind::Folder => Ok(()),
            _ => Err(Errno::ENOTDIR),
        }
    }

    // ---- names

    pub fn lookup(&mut self, folder: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.live()?;
        self.names.get(folder, name).ok_or(Errno::ENOENT)
    }

    /// Makes a file with a name.
    pub fn make(
        &mut self,
        (folder, name): (Ino, &OsStr),
        kind: Kind,
        attributes: Attributes,
        target: Option<PathBuf>,
    ) -> Result<Ino, Errno> {
        self.folder(folder)?;
        if self.names.get(folder, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.room(1)?;
        let ino = self.inode_of(kind, attributes, target);
        self.names.add(folder, name, ino);
        Ok(ino)
    }

    pub fn link(&mut self, ino: Ino, folder: Ino, name: &OsStr) -> Result<(), Errno> {
        self.folder(folder)?;
        if self.names.get(folder, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.names.add(folder, name, ino);
        Ok(())
    }

    pub fn unlink(&mut self, folder: Ino, name: &OsStr) -> Result<(), Errno> {
        let ino = self.lookup(folder, name)?;
        if self.get(ino)?.kind == Kind::Folder {
            return Err(Errno::EISDIR);
        }
        self.names.remove(folder, name, ino);
        self.removed();
        Ok(())
    }

    pub fn rmdir(&mut self, folder: Ino, name: &OsStr) -> Result<(), Errno> {
        let ino = self.lookup(folder, name)?;
        self.folder(ino)?;
        if !self.names.is_empty(ino) {
            return Err(Errno::ENOTEMPTY);
        }
        self.names.remove(folder, name, ino);
        self.removed();
        Ok(())
    }

    pub fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        replace: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        self.folder(to.0)?;
        if let Some(there) = self.names.get(to.0, to.1) {
            if !replace {
                return Err(Errno::EEXIST);
            }
            if there == ino {
                return Ok(());
            }
            let (old, new) = (self.get(there)?.kind, self.get(ino)?.kind);
            match (old, new) {
                (Kind::Folder, Kind::Folder) if !self.names.is_empty(there) => {
                    return Err(Errno::ENOTEMPTY);
                }
                (Kind::Folder, Kind::Folder) => {}
                (Kind::Folder, _) => return Err(Errno::EISDIR),
                (_, Kind::Folder) => return Err(Errno::ENOTDIR),
                _ => {}
            }
        }
        self.names.rename(from, to, ino);
        self.removed();
        Ok(())
    }

    /// Names in a folder.
    pub fn list(&mut self, folder: Ino) -> Result<Vec<(OsString, Ino, Kind)>, Errno> {
        self.folder(folder)?;
        let names = self.names.list(folder);
        Ok(names
            .filter_map(|(name, ino)| Some((name.clone(), ino, self.inodes.get(&ino)?.kind)))
            .collect())
    }

    /// The file at a path below the root.
    pub fn at(&mut self, path: &Path) -> Result<Ino, Errno> {
        let mut ino = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => ino = self.lookup(ino, name)?,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL),
            }
        }
        Ok(ino)
    }

    // ---- attributes and content

    /// Kind, attributes, size, links.
    pub fn stat(&mut self, ino: Ino) -> Result<(Kind, Attributes, u64, usize), Errno> {
        let links = self.names.count(ino);
        let inode = self.get(ino)?;
        let size = match &inode.target {
            Some(target) => target.as_os_str().len() as u64,
            None => inode.content.size(),
        };
        let own = usize::from(inode.kind == Kind::Folder);
        Ok((inode.kind, inode.attributes, size, links + own))
    }

    pub fn set(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut Attributes),
        size: Option<u64>,
    ) -> Result<(), Errno> {
        let old = self.get(ino)?.content.size();
        let new = size.unwrap_or(old);
        self.room(new.saturating_sub(old))?;
        let inode = self.get(ino)?;
        change(&mut inode.attributes);
        if new != old {
            inode.content.truncate(new);
            inode.attributes.mtime = SystemTime::now();
            self.statistics.used = self.statistics.used.saturating_add(new).saturating_sub(old);
        }
        Ok(())
    }

    pub fn target(&mut self, ino: Ino) -> Result<PathBuf, Errno> {
        self.get(ino)?.target.clone().ok_or(Errno::EINVAL)
    }

    /// Gives what a handle has to show from now on.
    pub fn open(&mut self, ino: Ino) -> Result<u64, Errno> {
        self.get(ino)?.handles += 1;
        Ok(self.powered)
    }

    pub fn close(&mut self, ino: Ino, powered: u64) {
        if powered != self.powered {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.handles = inode.handles.saturating_sub(1);
            if inode.handles == 0 {
                inode.content.close();
            }
        }
    }

    pub fn read(
        &mut self,
        ino: Ino,
        powered: u64,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Errno> {
        let inode = self.handle(ino, powered)?;
        inode
            .content
            .read(offset, length)
            .map_err(|error| broken(&error))
    }

    pub fn write(
        &mut self,
        ino: Ino,
        powered: u64,
        offset: u64,
        octets: &[u8],
    ) -> Result<(), Errno> {
        let old = self.handle(ino, powered)?.content.size();
        if self.faults.failing_writes > 0 {
            self.faults.failing_writes -= 1;
            self.statistics.failed_writes += 1;
            return Err(Errno::EIO);
        }
        let end = offset + octets.len() as u64;
        let growth = end.saturating_sub(old);
        self.room(growth)?;
        let inode = self.get(ino)?;
        inode
            .content
            .write(offset, octets)
            .map_err(|error| broken(&error))?;
        inode.attributes.mtime = SystemTime::now();
        self.statistics.written += octets.len() as u64;
        self.statistics.used += growth;
        Ok(())
    }

    /// Whether a file may grow by so much.
    pub fn room(&mut self, growth: u64) -> Result<(), Errno> {
        let Some(capacity) = self.faults.capacity else {
            return Ok(());
        };
        let fits = |used: u64| growth == 0 || used.saturating_add(growth) <= capacity;
        if !fits(self.statistics.used) {
            self.sweep();
        }
        if !fits(self.statistics.used) {
            self.statistics.no_space += 1;
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// How long a sync that begins now takes.
    #[must_use]
    pub fn sync_time(&self) -> Duration {
        self.faults.sync_time
    }

    /// fsync of a file or a folder.
    pub fn sync(&mut self, ino: Ino, powered: u64) -> Result<(), Errno> {
        self.handle(ino, powered)?;
        if self.faults.failing_syncs > 0 {
            self.faults.failing_syncs -= 1;
            self.statistics.failed_syncs += 1;
            self.get(ino)?.content.lose();
            return Err(Errno::EIO);
        }
        self.statistics.syncs += 1;
        if self.faults.lying {
            self.statistics.lies += 1;
            return Ok(());
        }
        self.persist(ino)
    }

    fn persist(&mut self, ino: Ino) -> Result<(), Errno> {
        let inode = self.get(ino)?;
        inode.durable = inode.attributes;
        if inode.kind == Kind::Regular {
            let written = inode.content.sync().map_err(|error| broken(&error))?;
            if inode.handles == 0 {
                inode.content.close();
            }
            self.statistics.persisted += written;
        }
        let named = self.names.sync(ino);
        self.named(&named);
        Ok(())
    }

    /// Files whose names became durable: so did their modes and owners.
    fn named(&mut self, inos: &[Ino]) {
        for ino in inos {
            if let Some(inode) = self.inodes.get_mut(ino) {
                inode.durable = inode.attributes;
            }
        }
    }

    /// Everything becomes durable, as by `sync`.
    pub fn sync_all(&mut self) -> Result<(), Errno> {
        let all: Vec<Ino> = self.inodes.keys().copied().collect();
        for ino in all {
            self.persist(ino)?;
        }
        Ok(())
    }

    // ---- space

    fn removed(&mut self) {
        self.removals += 1;
        if self.removals >= SWEEP_EVERY {
            self.sweep();
        }
    }

    /// Forgets files that have no name, now or on the disk, and that nobody has open.
    fn sweep(&mut self) {
        self.removals = 0;
        let named = self.names.all();
        self.inodes.retain(|ino, inode| {
            let stays = named.contains(ino) || inode.handles > 0;
            if !stays {
                inode.content.remove();
            }
            stays
        });
        let visible = self.names.now();
        self.statistics.used = self
            .inodes
            .iter()
            .filter(|(ino, inode)| inode.handles > 0 || visible.contains(ino))
            .map(|(_, inode)| inode.content.size())
            .sum();
    }

    /// Octets in use, and how many there may be at most.
    pub fn space(&mut self) -> (u64, Option<u64>) {
        self.sweep();
        (self.statistics.used, self.faults.capacity)
    }

    // ---- faults

    /// The power goes: what is not durable is gone, handles are dead, and nothing works until [`Self::power_on`].
    pub fn cut(&mut self, cut: Cut) {
        let (Cut::Torn(seed) | Cut::Reordered(seed)) = cut else {
            return self.cut_with(cut, 0, &mut StdRng::seed_from_u64(0));
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let kept = rng.random_range(0..=self.names.unsynced());
        self.cut_with(cut, kept, &mut rng);
    }

    fn cut_with(&mut self, cut: Cut, names: usize, rng: &mut StdRng) {
        self.statistics.power_losses += 1;
        self.statistics.discarded_names += (self.names.unsynced() - names) as u64;
        let named = self.names.cut(names);
        self.named(&named);
        for inode in self.inodes.values_mut() {
            match inode.content.cut(cut, rng) {
                Ok(octets) => self.statistics.discarded += octets,
                Err(error) => drop(broken(&error)),
            }
            inode.attributes = inode.durable;
            inode.handles = 0;
        }
        self.powered += 1;
        self.faults.off = true;
        self.sweep();
    }

    pub fn power_on(&mut self) {
        self.faults.off = false;
    }

    /// Syncs succeed and do nothing.
    pub fn lie(&mut self, lying: bool) {
        self.faults.lying = lying;
    }

    /// So many syncs fail from now on.
    pub fn fail_syncs(&mut self, count: u64) {
        self.faults.failing_syncs = count;
    }

    /// So many writes fail from now on.
    pub fn fail_writes(&mut self, count: u64) {
        self.faults.failing_writes = count;
    }

    /// So many octets are free from now on; `None`: no limit.
    pub fn limit(&mut self, free: Option<u64>) {
        self.sweep();
        self.faults.capacity = free.map(|free| self.statistics.used.saturating_add(free));
    }

    /// Every sync takes so long.
    pub fn slow(&mut self, time: Duration) {
        self.faults.sync_time = time;
    }

    /// Turns a bit of a file round, on the disk.
    pub fn flip(&mut self, path: &Path, offset: u64, bit: u8) -> Result<(), Errno> {
        let ino = self.at(path)?;
        let inode = self.get(ino)?;
        inode.content.flip(offset, bit).map_err(|error| {
            eprintln!("flip {}: {error}", path.display());
            Errno::EINVAL
        })
    }

    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let unsynced = self.inodes.values().map(|inode| inode.content.unsynced());
        Statistics {
            unsynced: unsynced.sum(),
            unsynced_names: self.names.unsynced() as u64,
            ..self.statistics
        }
    }
}
