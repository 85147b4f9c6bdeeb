//! The driver: requests of the kernel become calls of the [`Volume`], and nothing is decided here.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};

use crate::volume::{Attributes, Ino, Kind, Volume};

/// The kernel keeps nothing: it asks every time.
const TTL: Duration = Duration::ZERO;
const BLOCK: u32 = 4096;
/// `O_DSYNC`, which `O_SYNC` holds too.
const O_DSYNC: i32 = 0o10_000;
/// `FALLOC_FL_KEEP_SIZE`.
const KEEP_SIZE: i32 = 1;
const TYPE: u32 = 0o170_000;
const FIFO: u32 = 0o010_000;
const REGULAR: u32 = 0o100_000;
const SOCKET: u32 = 0o140_000;

/// A volume that several threads speak to.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Volume>>);

impl Shared {
    #[must_use]
    pub fn new(volume: Volume) -> Self {
        Self(Arc::new(Mutex::new(volume)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Volume> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mounted volume; unmounted when dropped, also while files are open.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mounted {
    /// Mounts `volume`; needs root and `/dev/fuse`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(volume: &Shared, at: &Path) -> io::Result<Self> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(2);
        config.mount_options = vec![
            MountOption::FSName("sealane-powerloss".to_owned()),
            MountOption::DefaultPermissions,
        ];
        let session = fuser::spawn_mount(Driver(volume.clone()), at, &config)?;
        Ok(Self {
            at: at.to_owned(),
            session: Some(session),
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: processes may still have files open.
        let _already = Command::new("umount").arg("-l").arg(&self.at).output();
        drop(self.session.take());
    }
}

#[derive(Debug)]
struct Driver(Shared);

fn code(error: nix::errno::Errno) -> Errno {
    Errno::from_i32(error as i32)
}

impl Driver {
    fn attributes(&self, ino: Ino) -> Result<FileAttr, Errno> {
        let (kind, attributes, size, links) = self.0.lock().stat(ino).map_err(code)?;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: attributes.atime,
            mtime: attributes.mtime,
            ctime: attributes.mtime,
            crtime: attributes.mtime,
            kind: file_type(kind),
            perm: attributes.mode,
            nlink: u32::try_from(links).unwrap_or(u32::MAX),
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    fn make(
        &self,
        request: &Request,
        place: (INodeNo, &OsStr),
        kind: Kind,
        mode: u32,
        target: Option<&Path>,
    ) -> Result<FileAttr, Errno> {
        let mode = u16::try_from(mode & 0o7777).unwrap_or(0);
        let attributes = Attributes::new(mode, request.uid(), request.gid());
        let made = self.0.lock().make(
            (place.0.0, place.1),
            kind,
            attributes,
            target.map(Path::to_owned),
        );
        self.attributes(made.map_err(code)?)
    }

    fn sync(&self, ino: Ino, powered: u64, reply: ReplyEmpty) {
        let time = self.0.lock().sync_time();
        let volume = self.0.clone();
        let sync = move || match volume.lock().sync(ino, powered) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(code(error)),
        };
        if time.is_zero() {
            return sync();
        }
        // A slow disk holds up who syncs, not the readers.
        std::thread::spawn(move || {
            std::thread::sleep(time);
            sync();
        });
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Regular => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn entry(made: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match made {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Result<(), nix::errno::Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(error)),
    }
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Driver {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.lock().lookup(parent.0, name).map_err(code);
        entry(found.and_then(|ino| self.attributes(ino)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = |attributes: &mut Attributes| {
            if let Some(mode) = mode {
                attributes.mode = u16::try_from(mode & 0o7777).unwrap_or(attributes.mode);
            }
            attributes.uid = uid.unwrap_or(attributes.uid);
            attributes.gid = gid.unwrap_or(attributes.gid);
            attributes.atime = atime.map_or(attributes.atime, moment);
            attributes.mtime = mtime.map_or(attributes.mtime, moment);
        };
        let set = self.0.lock().set(ino.0, change, size).map_err(code);
        match set.and_then(|()| self.attributes(ino.0)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.lock().target(ino.0) {
            Ok(target) => reply.data(target.as_os_str().as_encoded_bytes()),
            Err(error) => reply.error(code(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & TYPE {
            FIFO => Kind::Fifo,
            SOCKET => Kind::Socket,
            REGULAR | 0 => Kind::Regular,
            _ => return reply.error(Errno::EPERM),
        };
        entry(self.make(request, (parent, name), kind, mode, None), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, (parent, name), Kind::Folder, mode, None);
        entry(made, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let place = (parent, name);
        entry(
            self.make(request, place, Kind::Symlink, 0o777, Some(target)),
            reply,
        );
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.0.lock().link(ino.0, parent.0, name).map_err(code);
        entry(linked.and_then(|()| self.attributes(ino.0)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.lock().unlink(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.lock().rmdir(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let keep = flags == RenameFlags::RENAME_NOREPLACE;
        if !flags.is_empty() && !keep {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (to.0, new));
        empty(self.0.lock().rename(from, to, !keep), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().open(ino.0) {
            Ok(powered) => reply.opened(FileHandle(powered), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(code(error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(request, (parent, name), Kind::Regular, mode, None);
        let opened = made.and_then(|attributes| {
            let powered = self.0.lock().open(attributes.ino.0).map_err(code)?;
            Ok((attributes, powered))
        });
        match opened {
            Ok((attributes, powered)) => reply.created(
                &TTL,
                &attributes,
                Generation(0),
                FileHandle(powered),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.lock().read(ino.0, fh.0, offset, size as usize);
        match read {
            Ok(octets) => reply.data(&octets),
            Err(error) => reply.error(code(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut volume = self.0.lock();
        let mut written = volume.write(ino.0, fh.0, offset, data);
        if written.is_ok() && flags.0 & O_DSYNC != 0 {
            written = volume.sync(ino.0, fh.0);
        }
        match written {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(code(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().close(ino.0, fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino.0, fh.0, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().open(ino.0) {
            Ok(powered) => reply.opened(FileHandle(powered), FopenFlags::empty()),
            Err(error) => reply.error(code(error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let names = match self.0.lock().list(ino.0) {
            Ok(names) => names,
            Err(error) => return reply.error(code(error)),
        };
        let own = [".", ".."].map(|name| (name.into(), ino.0, Kind::Folder));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let all = own.into_iter().chain(names).enumerate().skip(from);
        for (at, (name, ino, kind)) in all {
            if reply.add(INodeNo(ino), at as u64 + 1, file_type(kind), &name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.lock().close(ino.0, fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino.0, fh.0, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        /// Where nobody set a limit: a disk that is large enough for every reserve.
        const LARGE: u64 = 64 << 30;
        let (used, capacity) = self.0.lock().space();
        let capacity = capacity.unwrap_or(used + LARGE);
        let block = u64::from(BLOCK);
        let free = capacity.saturating_sub(used) / block;
        reply.statfs(
            capacity / block,
            free,
            free,
            1 << 20,
            1 << 20,
            BLOCK,
            255,
            BLOCK,
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut volume = self.0.lock();
        let (old, end) = match volume.stat(ino.0) {
            Ok((_, _, size, _)) => (size, offset + length),
            Err(error) => return reply.error(code(error)),
        };
        let done = match mode {
            // Nothing is reserved, but a full disk says so.
            KEEP_SIZE => volume.room(end.saturating_sub(old)),
            0 if end > old => volume.set(ino.0, |_| {}, Some(end)),
            0 => Ok(()),
            _ => Err(nix::errno::Errno::EOPNOTSUPP),
        };
        empty(done, reply);
    }
}
