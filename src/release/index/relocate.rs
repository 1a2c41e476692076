//! An index whose chunks are fetched from other places than it says.

use super::{Index, Pack, StoredChunkNo, count};

impl Index {
    /// Returns an index of the same image that fetches some stored chunks from other places, which lie in `pack`.
    ///
    /// Each place comes as the stored chunk, an offset in the pack and a compressed length. The result is not for
    /// encoding: places do not change the extents.
    #[must_use]
    pub(crate) fn relocated(&self, pack: Pack, places: impl Iterator<Item = (StoredChunkNo, u64, u32)>) -> Self {
        let mut other = self.clone();
        let number = count(&other.packs);
        other.packs.push(pack);
        for (stored, offset, length) in places {
            let at = stored as usize;
            other.pack_of[at] = number;
            other.offsets[at] = offset;
            other.lengths[at] = length;
        }
        other
    }
}
