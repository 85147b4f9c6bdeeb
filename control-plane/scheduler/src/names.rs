//! Names as small numbers, counted: a million items name their destination and sender in four octets each.
use std::collections::HashMap;

/// A name in a [`Names`] table.
pub(crate) type Name = u32;

/// Interned names. A name is forgotten with its last use.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_text: HashMap<Box<str>, Name>,
    entries: Vec<(Box<str>, u32)>,
    free: Vec<Name>,
}

impl Names {
    /// The number of a name, used once more.
    pub(crate) fn take(&mut self, text: &str) -> Name {
        if let Some(n) = self.by_text.get(text).copied() {
            self.entries[n as usize].1 += 1;
            return n;
        }
        let n = match self.free.pop() {
            Some(n) => {
                self.entries[n as usize] = (text.into(), 1);
                n
            }
            None => {
                self.entries.push((text.into(), 1));
                u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_text.insert(text.into(), n);
        n
    }

    /// One more use of a known name.
    pub(crate) fn again(&mut self, n: Name) {
        self.entries[n as usize].1 += 1;
    }

    /// One use less; true if it was the last.
    pub(crate) fn drop_one(&mut self, n: Name) -> bool {
        let entry = &mut self.entries[n as usize];
        entry.1 = entry.1.saturating_sub(1);
        if entry.1 > 0 {
            return false;
        }
        let text = std::mem::take(&mut entry.0);
        self.by_text.remove(&text);
        self.free.push(n);
        true
    }

    pub(crate) fn find(&self, text: &str) -> Option<Name> {
        self.by_text.get(text).copied()
    }

    pub(crate) fn text(&self, n: Name) -> &str {
        &self.entries[n as usize].0
    }

    /// Names in use.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_text.len()
    }
}
