use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::content::Content;
use crate::{Attributes, Cut, Ino, Kind, ROOT, Volume};

struct Disk {
    volume: Volume,
    _folder: TempDir,
}

fn disk() -> Disk {
    let folder = tempfile::tempdir().unwrap();
    Disk {
        volume: Volume::new(folder.path().to_owned()),
        _folder: folder,
    }
}

impl Disk {
    fn make(&mut self, folder: Ino, name: &str, kind: Kind) -> Ino {
        let attributes = Attributes::new(0o600, 0, 0);
        self.volume
            .make((folder, OsStr::new(name)), kind, attributes, None)
            .unwrap()
    }

    fn file(&mut self, folder: Ino, name: &str, octets: &[u8]) -> Ino {
        let ino = self.make(folder, name, Kind::Regular);
        self.write(ino, 0, octets);
        ino
    }

    fn write(&mut self, ino: Ino, offset: u64, octets: &[u8]) {
        let powered = self.volume.open(ino).unwrap();
        self.volume.write(ino, powered, offset, octets).unwrap();
        self.volume.close(ino, powered);
    }

    fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        let powered = self.volume.open(ino).unwrap();
        let synced = self.volume.sync(ino, powered);
        self.volume.close(ino, powered);
        synced
    }

    fn cut(&mut self, cut: Cut) {
        self.volume.cut(cut);
        self.volume.power_on();
    }

    fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        let ino = self.volume.at(Path::new(path)).ok()?;
        let powered = self.volume.open(ino).unwrap();
        let octets = self.volume.read(ino, powered, 0, 1 << 20).unwrap();
        self.volume.close(ino, powered);
        Some(octets)
    }

    fn rename(&mut self, from: (Ino, &str), to: (Ino, &str)) {
        let name = |place: &(Ino, &str)| (place.0, OsStr::new(place.1).to_owned());
        let (from, to) = (name(&from), name(&to));
        self.volume
            .rename((from.0, &from.1), (to.0, &to.1), true)
            .unwrap();
    }
}

#[test]
fn what_was_not_synced_is_gone_and_what_was_stays() {
    let mut disk = disk();
    let kept = disk.file(ROOT, "kept", b"first");
    disk.sync(kept).unwrap();
    disk.write(kept, 5, b" second");
    disk.file(ROOT, "never synced", b"x");
    assert_eq!(disk.read("kept").unwrap(), b"first second");
    disk.cut(Cut::Lose);
    assert_eq!(disk.read("kept").unwrap(), b"first");
    assert_eq!(disk.read("never synced"), None);
    let counted = disk.volume.statistics();
    assert_eq!(
        (
            counted.power_losses,
            counted.discarded,
            counted.discarded_names
        ),
        (1, 1024, 1)
    );
}

#[test]
fn a_synced_file_keeps_its_name_and_the_folders_above_it() {
    let mut disk = disk();
    let outer = disk.make(ROOT, "outer", Kind::Folder);
    let inner = disk.make(outer, "inner", Kind::Folder);
    let file = disk.file(inner, "file", b"x");
    disk.file(inner, "other", b"y");
    disk.sync(file).unwrap();
    disk.cut(Cut::Lose);
    assert_eq!(disk.read("outer/inner/file").unwrap(), b"x");
    assert_eq!(disk.read("outer/inner/other"), None);
}

#[test]
fn a_rename_is_durable_by_the_folder_or_by_the_file_and_never_by_half() {
    for by_folder in [true, false] {
        let mut disk = disk();
        let old = disk.file(ROOT, "CURRENT", b"old");
        disk.sync(old).unwrap();
        let new = disk.file(ROOT, "CURRENT.tmp", b"new");
        disk.sync(new).unwrap();
        disk.rename((ROOT, "CURRENT.tmp"), (ROOT, "CURRENT"));
        if by_folder {
            disk.sync(ROOT).unwrap();
        }
        disk.cut(Cut::Lose);
        let (now, temporary) = (disk.read("CURRENT").unwrap(), disk.read("CURRENT.tmp"));
        if by_folder {
            assert_eq!((now.as_slice(), temporary), (&b"new"[..], None));
        } else {
            assert_eq!(now, b"old");
            assert_eq!(temporary.unwrap(), b"new");
        }
    }
    let mut disk = disk();
    let file = disk.file(ROOT, "a", b"x");
    disk.sync(file).unwrap();
    disk.rename((ROOT, "a"), (ROOT, "b"));
    disk.sync(file).unwrap();
    disk.cut(Cut::Lose);
    assert_eq!(
        (disk.read("a"), disk.read("b").unwrap()),
        (None, b"x".to_vec())
    );
}

#[test]
fn an_unlinked_file_comes_back_unless_its_folder_was_synced() {
    for synced in [false, true] {
        let mut disk = disk();
        let file = disk.file(ROOT, "a", b"x");
        disk.sync(file).unwrap();
        disk.volume.unlink(ROOT, OsStr::new("a")).unwrap();
        assert_eq!(disk.read("a"), None);
        if synced {
            disk.sync(ROOT).unwrap();
        }
        disk.cut(Cut::Lose);
        assert_eq!(disk.read("a").is_some(), !synced);
    }
}

#[test]
fn a_lying_sync_persists_nothing_and_says_that_it_did() {
    let mut disk = disk();
    disk.volume.lie(true);
    let file = disk.file(ROOT, "a", b"x");
    disk.sync(file).unwrap();
    disk.cut(Cut::Lose);
    assert_eq!(disk.read("a"), None);
    assert_eq!(disk.volume.statistics().lies, 1);
}

#[test]
fn what_a_failed_sync_covered_is_lost_although_the_next_one_succeeds() {
    let mut disk = disk();
    let file = disk.file(ROOT, "a", b"");
    disk.sync(file).unwrap();
    disk.write(file, 0, b"lost");
    disk.volume.fail_syncs(1);
    assert_eq!(disk.sync(file), Err(Errno::EIO));
    assert_eq!(disk.read("a").unwrap(), b"lost");
    disk.write(file, 600, b"kept");
    disk.sync(file).unwrap();
    assert_eq!(&disk.read("a").unwrap()[..4], b"lost");
    disk.cut(Cut::Lose);
    let after = disk.read("a").unwrap();
    assert_eq!((&after[..4], &after[600..]), (&[0; 4][..], &b"kept"[..]));
}

#[test]
fn nothing_works_without_power_and_old_handles_never_again() {
    let mut disk = disk();
    let file = disk.file(ROOT, "a", b"x");
    let powered = disk.volume.open(file).unwrap();
    disk.volume.sync(file, powered).unwrap();
    disk.volume.cut(Cut::Lose);
    assert_eq!(disk.volume.open(file), Err(Errno::EIO));
    disk.volume.power_on();
    assert_eq!(disk.volume.write(file, powered, 0, b"y"), Err(Errno::EIO));
    assert_eq!(disk.volume.sync(file, powered), Err(Errno::EIO));
    assert_eq!(disk.read("a").unwrap(), b"x");
}

#[test]
fn a_full_disk_refuses_growth_and_takes_what_is_deleted_back() {
    let mut disk = disk();
    let file = disk.file(ROOT, "a", &[1; 1000]);
    disk.volume.limit(Some(100));
    let powered = disk.volume.open(file).unwrap();
    assert_eq!(
        disk.volume.write(file, powered, 1000, &[2; 101]),
        Err(Errno::ENOSPC)
    );
    disk.volume.write(file, powered, 0, &[3; 1000]).unwrap();
    disk.volume.write(file, powered, 1000, &[2; 100]).unwrap();
    disk.volume.close(file, powered);
    disk.volume.unlink(ROOT, OsStr::new("a")).unwrap();
    disk.file(ROOT, "b", &[1; 1100]);
    assert_eq!(disk.volume.statistics().no_space, 1);
}

#[test]
fn a_torn_cut_leaves_a_beginning_and_a_reordered_one_any_sectors() {
    let (mut beginnings, mut holes) = (0, 0);
    for seed in 0..40 {
        for cut in [Cut::Torn(seed), Cut::Reordered(seed)] {
            let mut disk = disk();
            let file = disk.file(ROOT, "a", &[1; 700]);
            disk.sync(file).unwrap();
            disk.write(file, 700, &[2; 9000]);
            disk.cut(cut);
            let after = disk.read("a").unwrap();
            assert_eq!(after[..512], [1; 512], "what was synced is never harmed");
            assert!(after[512..700].iter().all(|octet| *octet == 1));
            let first_zero = after.iter().position(|octet| *octet == 0);
            match cut {
                Cut::Torn(_) => {
                    assert_eq!(first_zero, None, "a hole in a beginning");
                    beginnings += usize::from(after.len() > 700 && after.len() < 9700);
                }
                _ => holes += usize::from(first_zero.is_some()),
            }
        }
    }
    assert!(beginnings > 10 && holes > 10, "{beginnings} {holes}");
}

#[test]
fn a_flipped_bit_is_there_before_and_after_a_cut() {
    let mut disk = disk();
    let file = disk.file(ROOT, "a", &[0; 10]);
    disk.sync(file).unwrap();
    disk.volume.flip(Path::new("/a"), 7, 3).unwrap();
    assert_eq!(disk.read("a").unwrap()[7], 8);
    disk.cut(Cut::Lose);
    assert_eq!(disk.read("a").unwrap()[7], 8);
    assert!(disk.volume.flip(Path::new("/a"), 10, 3).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Sync,
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    let octets = prop::collection::vec(1u8.., 0..3000);
    prop_oneof![
        4 => (0usize..12_000, octets).prop_map(|(at, octets)| Step::Write(at, octets)),
        2 => (0usize..14_000).prop_map(Step::Truncate),
        1 => Just(Step::Sync),
        1 => Just(Step::Cut),
    ]
}

proptest! {
    /// Whatever happens, a file is what a plain array would be, and after a cut what it was at the last sync.
    #[test]
    fn content_is_an_array_that_falls_back_to_its_last_sync(steps in prop::collection::vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let mut content = Content::new(folder.path().join("1"));
        let (mut now, mut durable) = (Vec::new(), Vec::new());
        let mut rng = rand::SeedableRng::seed_from_u64(1);
        for step in steps {
            match step {
                Step::Write(at, octets) => {
                    content.write(at as u64, &octets).unwrap();
                    if !octets.is_empty() {
                        let end = at + octets.len();
                        now.resize(now.len().max(end), 0);
                        now[at..end].copy_from_slice(&octets);
                    }
                }
                Step::Truncate(size) => {
                    content.truncate(size as u64);
                    now.resize(size, 0);
                }
                Step::Sync => {
                    content.sync().unwrap();
                    durable.clone_from(&now);
                }
                Step::Cut => {
                    content.cut(Cut::Lose, &mut rng).unwrap();
                    now.clone_from(&durable);
                }
            }
            prop_assert_eq!(content.size() as usize, now.len());
            prop_assert!(content.read(0, 1 << 20).unwrap() == now);
        }
    }
}
