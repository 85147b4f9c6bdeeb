//! Reading everything, so that damage is noticed before somebody needs what is damaged.
use crate::{
    engine::Range,
    error::StoreError,
    layout::{FAMILIES, unframe},
    store::Core,
};
use std::sync::Arc;

/// Octets that are read in one go, about.
const PIECE: u64 = 1 << 20;

/// One pass over all families, piece by piece: keys, values, bodies in blob files, each with the checksums of
/// RocksDB and our own. It keeps nothing open between two pieces, since an old look at the database keeps
/// what was deleted.
#[derive(Debug)]
pub struct Scrub {
    core: Arc<Core>,
    /// Where in [`FAMILIES`].
    family: usize,
    /// First key of the next piece.
    from: Vec<u8>,
}

impl Scrub {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            family: 0,
            from: Vec::new(),
        }
    }

    /// Reads on, and says how many octets it read; `None` at the end.
    ///
    /// # Errors
    /// The damage. As with any other read the volume is refused from then on.
    pub fn next_piece(&mut self) -> Result<Option<u64>, StoreError> {
        let Some(family) = FAMILIES.get(self.family).copied() else {
            return Ok(None);
        };
        let mut octets = 0u64;
        let mut next = None;
        let range = Range {
            family,
            from: &self.from,
            to: &[u8::MAX; 32],
            // What nobody asks for would drive out what is asked for.
            cache: false,
        };
        let read = self.core.engine.scan(range, &mut |key, value| {
            octets += (key.len() + value.len()) as u64;
            if !value.is_empty() {
                unframe(family, key, value.to_vec())?;
            }
            if octets >= PIECE {
                next = Some([key, &[0]].concat());
            }
            Ok(next.is_none())
        });
        self.core.noticed(read)?;
        match next {
            Some(from) => self.from = from,
            None => {
                self.family += 1;
                self.from.clear();
            }
        }
        Ok(Some(octets))
    }
}
