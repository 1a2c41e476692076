//! An index whose chunks lie elsewhere than it says.

use std::ops::Range;

use super::{Index, Pack, StoredChunkNo};

impl Index {
    /// The same image, where some stored chunks are fetched from other places of `pack`. Not to be encoded.
    #[must_use]
    pub(crate) fn relocated(&self, pack: Pack, places: impl Iterator<Item = (StoredChunkNo, Range<u64>)>) -> Self {
        let mut other = self.clone();
        let number = other.packs.len() as u32;
        other.packs.push(pack);
        for (stored, range) in places {
            let at = stored as usize;
            other.pack_of[at] = number;
            other.offsets[at] = range.start;
            other.lengths[at] = (range.end - range.start) as u32;
        }
        other
    }
}
