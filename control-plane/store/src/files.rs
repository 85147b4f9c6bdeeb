//! The small files beside the database: format, high-water mark, staged snapshots.
//!
//! A seam like [`crate::engine`]: the folder of the volume in the product, a simulated disk in
//! `tests/sim`.
use std::{
    fmt::Debug,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It exists, and is read.
    Read,
    /// Read and written, made if it does not exist.
    Keep,
    /// It does not exist yet.
    New,
}

/// The files of one volume. Nothing is durable before [`VolumeFile::sync`], no name before [`Files::sync_names`].
pub trait Files: Send + Sync + Debug {
    /// Opens one.
    fn open(&self, name: &str, how: How) -> io::Result<Box<dyn VolumeFile>>;
    /// All names.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Removes one.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// Octets free.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub trait VolumeFile: Send + Debug {
    /// Reads at most `buf`; 0 at the end.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all.
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) file: Box<dyn VolumeFile>,
    at: u64,
}

impl Cursor {
    pub(crate) fn new(file: Box<dyn VolumeFile>) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Cursor {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write_at(buf, self.at)?;
        self.at += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Files for Folder {
    fn open(&self, name: &str, how: How) -> io::Result<Box<dyn VolumeFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(how != How::Read)
            .create(how == How::Keep)
            .create_new(how == How::New)
            .truncate(false)
            .open(self.0.join(name))?;
        Ok(Box::new(file))
    }
    fn names(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.0)?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect()
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }
    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        let s = nix::sys::statvfs::statvfs(&self.0)?;
        Ok(s.blocks_available().saturating_mul(s.fragment_size()))
    }
}

impl VolumeFile for File {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, at)
    }
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}
