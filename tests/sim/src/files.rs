//! The small files of a simulated volume.
use crate::disk::Disk;
use rand::{Rng, rngs::StdRng};
use sealane_store::files::{Files, How, VolumeFile};
use std::{collections::BTreeMap, io};

/// What a file is, and what of it is durable.
#[derive(Debug, Clone, Default)]
struct FileState {
    /// `None`: removed.
    live: Option<Vec<u8>>,
    /// Content at the last sync.
    synced: Vec<u8>,
    /// Since then.
    writes: Vec<(u64, Vec<u8>)>,
    /// The name survives a loss of power.
    named: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct FileTable(BTreeMap<String, FileState>);

fn put(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if content.len() < at.saturating_add(data.len()) {
        content.resize(at + data.len(), 0);
    }
    if let Some(place) = content.get_mut(at..at + data.len()) {
        place.copy_from_slice(data);
    }
}

impl FileTable {
    /// Of what was not synced any part may be there: any of the writes, in part or whole, and names.
    pub(crate) fn lose_power(&mut self, chance: &mut StdRng) {
        for file in self.0.values_mut() {
            let exists = if file.live.is_some() == file.named {
                file.named
            } else {
                chance.random_bool(0.5)
            };
            let mut content = std::mem::take(&mut file.synced);
            for (at, data) in std::mem::take(&mut file.writes) {
                match chance.random_range(0..3) {
                    0 => {}
                    1 => put(&mut content, at, &data),
                    _ => {
                        let part = chance.random_range(0..=data.len());
                        put(&mut content, at, data.get(..part).unwrap_or_default());
                    }
                }
            }
            *file = FileState {
                live: exists.then(|| content.clone()),
                synced: content,
                writes: Vec::new(),
                named: exists,
            };
        }
        self.0.retain(|_, f| f.named);
    }
}

/// A process's handle.
#[derive(Debug)]
pub(crate) struct SimFiles {
    pub(crate) disk: Disk,
    pub(crate) generation: u64,
}

#[derive(Debug)]
struct SimFile {
    disk: Disk,
    generation: u64,
    name: String,
}

fn dead() -> io::Error {
    io::Error::other("this process is dead")
}

/// Octets that a node is told to have; and those that make it refuse mail.
const PLENTY: u64 = 100 << 30;
const SCARCE: u64 = 1 << 20;

impl Files for SimFiles {
    fn open(&self, name: &str, how: How) -> io::Result<Box<dyn VolumeFile>> {
        let mut v = self.disk.lock();
        v.alive(self.generation).map_err(|_| dead())?;
        let file = v.files.0.entry(name.to_owned()).or_default();
        match (how, file.live.is_some()) {
            (How::Read, false) => return Err(io::ErrorKind::NotFound.into()),
            (How::New, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (_, true) => {}
            (_, false) => {
                file.live = Some(Vec::new());
                file.synced.clear();
                file.writes.clear();
            }
        }
        Ok(Box::new(SimFile {
            disk: self.disk.clone(),
            generation: self.generation,
            name: name.to_owned(),
        }))
    }
    fn names(&self) -> io::Result<Vec<String>> {
        let v = self.disk.lock();
        let live = v.files.0.iter().filter(|(_, f)| f.live.is_some());
        let mut names: Vec<String> = live.map(|(n, _)| n.clone()).collect();
        if !v.durable.is_empty() {
            names.push("db".into());
        }
        Ok(names)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut v = self.disk.lock();
        v.alive(self.generation).map_err(|_| dead())?;
        let file = v.files.0.get_mut(name).filter(|f| f.live.is_some());
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        file.live = None;
        Ok(())
    }
    fn sync_names(&self) -> io::Result<()> {
        let mut v = self.disk.lock();
        v.alive(self.generation).map_err(|_| dead())?;
        for file in v.files.0.values_mut() {
            file.named = file.live.is_some();
        }
        v.files.0.retain(|_, f| f.named);
        Ok(())
    }
    fn free_bytes(&self) -> io::Result<u64> {
        let faults = self.disk.lock().faults;
        Ok(if faults.full || faults.scarce {
            SCARCE
        } else {
            PLENTY
        })
    }
}

impl VolumeFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let v = self.disk.lock();
        let content = v.files.0.get(&self.name).and_then(|f| f.live.as_deref());
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = content.and_then(|c| c.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        let mut v = self.disk.lock();
        v.alive(self.generation).map_err(|_| dead())?;
        if v.faults.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = v.files.0.get_mut(&self.name).ok_or_else(dead)?;
        put(file.live.get_or_insert_default(), at, data);
        file.writes.push((at, data.to_vec()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut v = self.disk.lock();
        v.alive(self.generation).map_err(|_| dead())?;
        let file = v.files.0.get_mut(&self.name).ok_or_else(dead)?;
        file.synced = file.live.clone().unwrap_or_default();
        file.writes.clear();
        Ok(())
    }
}
