//! The octets of one file: durable ones in a backing file, the others in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rand::Rng;
use rand::rngs::StdRng;

use crate::faults::Cut;

const BLOCK: usize = 4096;
/// What a disk writes at once, or not at all.
pub(crate) const SECTOR: usize = 512;
const SECTORS: usize = BLOCK / SECTOR;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sector {
    /// As on the disk.
    Clean,
    /// The next sync writes it.
    Dirty,
    /// A sync of it failed: it is read from memory and never written.
    Lost,
}

/// A block that differs from the disk.
struct Block {
    octets: Box<[u8; BLOCK]>,
    sectors: [Sector; SECTORS],
}

/// See the module's documentation.
pub(crate) struct Content {
    path: PathBuf,
    /// Kept open while somebody has the file open.
    file: Option<File>,
    size: u64,
    durable_size: u64,
    /// Durable octets from here on were cut off and the disk does not know it yet.
    floor: u64,
    blocks: BTreeMap<u64, Block>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("path", &self.path)
            .field("size", &self.size)
            .field("durable_size", &self.durable_size)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// An empty file; `path` is where its durable octets will be.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            size: 0,
            durable_size: 0,
            floor: 0,
            blocks: BTreeMap::new(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Octets of sectors that a cut would take away.
    pub(crate) fn unsynced(&self) -> u64 {
        let sectors: usize = self
            .blocks
            .values()
            .map(|block| block.dirty().count())
            .sum();
        (sectors * SECTOR) as u64
    }

    /// Nobody has it open any more.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    /// Removes the durable octets.
    pub(crate) fn remove(&self) {
        let _never_synced = std::fs::remove_file(&self.path);
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.path)?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::Error::other("closed"))
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = self.size.min(offset.saturating_add(length as u64));
        let length = usize::try_from(end.saturating_sub(offset)).map_err(io::Error::other)?;
        let mut octets = vec![0; length];
        self.read_durable(offset, &mut octets)?;
        if length == 0 {
            return Ok(octets);
        }
        for (number, block) in self.blocks.range(blocks(offset, length)) {
            let (inside, outside) = overlap(*number, offset, length);
            octets[outside].copy_from_slice(&block.octets[inside]);
        }
        Ok(octets)
    }

    /// Fills `into` with what the disk has, zeros where it has nothing to say.
    fn read_durable(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let visible = self.floor.min(self.durable_size);
        let there = usize::try_from(visible.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(into.len());
        if there > 0 {
            let file = self.file()?;
            file.read_exact_at(&mut into[..there], offset)?;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: u64, octets: &[u8]) -> io::Result<()> {
        if octets.is_empty() {
            return Ok(());
        }
        for number in blocks(offset, octets.len()) {
            let (inside, outside) = overlap(number, offset, octets.len());
            if !self.blocks.contains_key(&number) {
                let mut old = Box::new([0; BLOCK]);
                if inside.len() < BLOCK {
                    self.read_durable(number * BLOCK as u64, &mut old[..])?;
                }
                let block = Block {
                    octets: old,
                    sectors: [Sector::Clean; SECTORS],
                };
                self.blocks.insert(number, block);
            }
            if let Some(block) = self.blocks.get_mut(&number) {
                block.sectors[inside.start / SECTOR..=(inside.end - 1) / SECTOR]
                    .fill(Sector::Dirty);
                block.octets[inside].copy_from_slice(&octets[outside]);
            }
        }
        self.size = self.size.max(offset + octets.len() as u64);
        Ok(())
    }

    pub(crate) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.floor = self.floor.min(size);
            let first = size.div_ceil(BLOCK as u64);
            self.blocks.split_off(&first);
            if let Some(block) = self.blocks.get_mut(&(size / BLOCK as u64)) {
                let from = (size % BLOCK as u64) as usize;
                block.octets[from..].fill(0);
                block.sectors[from.div_ceil(SECTOR)..].fill(Sector::Clean);
            }
        }
        self.size = size;
    }

    /// Makes everything durable; gives the octets written.
    pub(crate) fn sync(&mut self) -> io::Result<u64> {
        self.persist(|_| true)
    }

    /// Writes the dirty sectors that `reached` names by their offset, and the size that they make.
    fn persist(&mut self, mut reached: impl FnMut(u64) -> bool) -> io::Result<u64> {
        let mut written = 0;
        let (size, floor) = (self.size, self.floor.min(self.durable_size));
        let mut blocks = std::mem::take(&mut self.blocks);
        let mut durable = floor;
        let file = self.file()?;
        if floor < file.metadata()?.len() {
            file.set_len(floor)?;
        }
        for (number, block) in &mut blocks {
            for sector in 0..SECTORS {
                let at = number * BLOCK as u64 + (sector * SECTOR) as u64;
                let length = usize::try_from(size.saturating_sub(at))
                    .unwrap_or(SECTOR)
                    .min(SECTOR);
                if block.sectors[sector] != Sector::Dirty || length == 0 || !reached(at) {
                    continue;
                }
                let from = sector * SECTOR;
                file.write_all_at(&block.octets[from..from + length], at)?;
                block.sectors[sector] = Sector::Clean;
                durable = durable.max(at + length as u64);
                written += length as u64;
            }
        }
        let all = blocks.values().all(|block| block.dirty().count() == 0);
        self.durable_size = if all { size } else { durable };
        let durable = self.durable_size;
        self.file()?.set_len(durable)?;
        self.floor = durable;
        self.blocks = blocks;
        self.blocks
            .retain(|_, block| block.sectors.iter().any(|one| *one != Sector::Clean));
        Ok(written)
    }

    /// A sync failed: what it covered can be read, but will never be written.
    pub(crate) fn lose(&mut self) {
        for block in self.blocks.values_mut() {
            for sector in &mut block.sectors {
                if *sector == Sector::Dirty {
                    *sector = Sector::Lost;
                }
            }
        }
    }

    /// The power is gone. Gives the octets that are lost.
    pub(crate) fn cut(&mut self, cut: Cut, rng: &mut StdRng) -> io::Result<u64> {
        let before = self.unsynced();
        let changed = before > 0 || self.floor < self.durable_size;
        let kept = match cut {
            Cut::Lose => 0,
            Cut::Torn(_) if changed => {
                let dirty: Vec<u64> = self.dirty_sectors();
                let prefix = rng.random_range(0..=dirty.len());
                let end = dirty.get(prefix).copied().unwrap_or(u64::MAX);
                self.persist(|at| at < end)?
            }
            Cut::Reordered(_) if changed => self.persist(|_| rng.random_bool(0.5))?,
            Cut::Torn(_) | Cut::Reordered(_) => 0,
        };
        self.blocks.clear();
        self.size = self.durable_size;
        self.floor = self.durable_size;
        self.file = None;
        Ok(before.saturating_sub(kept.next_multiple_of(SECTOR as u64)))
    }

    fn dirty_sectors(&self) -> Vec<u64> {
        self.blocks
            .iter()
            .flat_map(|(number, block)| {
                let start = number * BLOCK as u64;
                block
                    .dirty()
                    .map(move |sector| start + (sector * SECTOR) as u64)
            })
            .collect()
    }

    /// Turns one bit round, on the disk and in what is read.
    pub(crate) fn flip(&mut self, offset: u64, bit: u8) -> io::Result<()> {
        let mask = 1u8.checked_shl(u32::from(bit)).unwrap_or(1);
        if offset >= self.size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("offset {offset} of {} octets", self.size),
            ));
        }
        if offset < self.floor.min(self.durable_size) {
            let mut octet = [0];
            let file = self.file()?;
            file.read_exact_at(&mut octet, offset)?;
            file.write_all_at(&[octet[0] ^ mask], offset)?;
        }
        if let Some(block) = self.blocks.get_mut(&(offset / BLOCK as u64)) {
            block.octets[(offset % BLOCK as u64) as usize] ^= mask;
        }
        Ok(())
    }
}

impl Block {
    /// Numbers of the sectors that the next sync writes.
    fn dirty(&self) -> impl Iterator<Item = usize> {
        let numbered = self.sectors.iter().enumerate();
        numbered
            .filter(|(_, sector)| **sector == Sector::Dirty)
            .map(|(number, _)| number)
    }
}

/// Numbers of the blocks that a range of octets touches.
fn blocks(offset: u64, length: usize) -> Range<u64> {
    offset / BLOCK as u64..(offset + length as u64).div_ceil(BLOCK as u64)
}

/// The part of a block that is in a range of octets, and the part of the range that is in the block.
fn overlap(number: u64, offset: u64, length: usize) -> (Range<usize>, Range<usize>) {
    let start = number * BLOCK as u64;
    let from = offset.max(start);
    let to = (offset + length as u64).min(start + BLOCK as u64);
    let at = |position: u64, base: u64| (position - base) as usize;
    (
        at(from, start)..at(to, start),
        at(from, offset)..at(to, offset),
    )
}
