//! The names of files: those that processes see, those that are durable, and the changes between.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};

use crate::volume::{Ino, ROOT};

type Tree = BTreeMap<Ino, BTreeMap<OsString, Ino>>;

/// One change, atomic: names and what they name afterwards.
#[derive(Debug)]
struct Change {
    /// The file whose name this is.
    about: Ino,
    sets: Vec<(Ino, OsString, Option<Ino>)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Names {
    now: Tree,
    durable: Tree,
    /// What makes `now` of `durable`, in the order in which it happened.
    pending: Vec<Change>,
}

impl Names {
    pub(crate) fn get(&self, folder: Ino, name: &OsStr) -> Option<Ino> {
        self.now.get(&folder)?.get(name).copied()
    }

    pub(crate) fn list(&self, folder: Ino) -> impl Iterator<Item = (&OsString, Ino)> {
        let names = self.now.get(&folder);
        names.into_iter().flatten().map(|(name, ino)| (name, *ino))
    }

    pub(crate) fn is_empty(&self, folder: Ino) -> bool {
        self.now.get(&folder).is_none_or(BTreeMap::is_empty)
    }

    /// How many names a file has.
    pub(crate) fn count(&self, ino: Ino) -> usize {
        let all = self.now.values().flat_map(BTreeMap::values);
        all.filter(|one| **one == ino).count()
    }

    pub(crate) fn add(&mut self, folder: Ino, name: &OsStr, ino: Ino) {
        self.change(ino, vec![(folder, name.to_owned(), Some(ino))]);
    }

    pub(crate) fn remove(&mut self, folder: Ino, name: &OsStr, ino: Ino) {
        self.change(ino, vec![(folder, name.to_owned(), None)]);
    }

    /// Whatever had the new name loses it.
    pub(crate) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), ino: Ino) {
        self.change(
            ino,
            vec![
                (from.0, from.1.to_owned(), None),
                (to.0, to.1.to_owned(), Some(ino)),
            ],
        );
    }

    fn change(&mut self, about: Ino, sets: Vec<(Ino, OsString, Option<Ino>)>) {
        let change = Change { about, sets };
        apply(&mut self.now, &change);
        self.pending.push(change);
    }

    pub(crate) fn unsynced(&self) -> usize {
        self.pending.len()
    }

    /// Makes the names of a file, or the names in a folder, durable. Gives the files whose names became so.
    pub(crate) fn sync(&mut self, ino: Ino) -> Vec<Ino> {
        let mut chosen: HashSet<usize> = HashSet::new();
        let mut keys: HashSet<(Ino, OsString)> = HashSet::new();
        // Folders on the way: without their own names nothing in them is durable.
        let mut folders: HashSet<Ino> = HashSet::new();
        loop {
            let before = chosen.len();
            for (at, change) in self.pending.iter().enumerate().rev() {
                if chosen.contains(&at) {
                    continue;
                }
                let asked = change.about == ino
                    || change.sets.iter().any(|(folder, _, _)| *folder == ino)
                    || folders.contains(&change.about);
                // Of two changes of one name the earlier one never comes later.
                let earlier = change
                    .sets
                    .iter()
                    .any(|(folder, name, _)| keys.contains(&(*folder, name.clone())));
                if asked || earlier {
                    chosen.insert(at);
                    for (folder, name, _) in &change.sets {
                        keys.insert((*folder, name.clone()));
                        folders.insert(*folder);
                    }
                }
            }
            if chosen.len() == before {
                break;
            }
        }
        let mut named = Vec::new();
        let mut rest = Vec::new();
        for (at, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if chosen.contains(&at) {
                apply(&mut self.durable, &change);
                named.push(change.about);
            } else {
                rest.push(change);
            }
        }
        self.pending = rest;
        named
    }

    /// The power is gone; the first `kept` changes had reached the disk. Gives the files of those.
    pub(crate) fn cut(&mut self, kept: usize) -> Vec<Ino> {
        let pending = std::mem::take(&mut self.pending);
        let mut named = Vec::new();
        for change in pending.iter().take(kept) {
            apply(&mut self.durable, change);
            named.push(change.about);
        }
        self.now = self.durable.clone();
        named
    }

    /// Every file that processes see.
    pub(crate) fn now(&self) -> HashSet<Ino> {
        self.now
            .values()
            .flat_map(BTreeMap::values)
            .copied()
            .collect()
    }

    /// Every file that has a name, had one that may come back, or is about to get one.
    pub(crate) fn all(&self) -> HashSet<Ino> {
        let trees = self.now.values().chain(self.durable.values());
        trees
            .flat_map(BTreeMap::values)
            .copied()
            .chain(self.pending.iter().map(|change| change.about))
            .chain([ROOT])
            .collect()
    }
}

fn apply(tree: &mut Tree, change: &Change) {
    for (folder, name, ino) in &change.sets {
        let names = tree.entry(*folder).or_default();
        match ino {
            Some(ino) => names.insert(name.clone(), *ino),
            None => names.remove(name),
        };
    }
}
