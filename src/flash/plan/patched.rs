//! Chooses the chunks that a partition can get as patches.

use super::comparison::{Blocks, Comparison};
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkContent, ChunkNo, Index, Pack, StoredChunkNo};
use crate::release::patches::{Patch, Patches, fingerprint};

/// An index of which some chunks are fetched as patches, because the partition holds their dictionaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patched {
    /// Index of the image, with the places of the patches.
    pub index: Index,
    /// Patched stored chunks, ascending, and the chunk whose place holds the dictionary.
    bases: Vec<(StoredChunkNo, ChunkNo)>,
    /// The pack that stands for frames on the partition itself.
    local: Option<u32>,
}

impl Patched {
    /// Chooses the patches that make wrong chunks right on a partition with these blocks.
    #[must_use]
    pub fn new(patches: &Patches, index: &Index, comparison: &Comparison, blocks: &Blocks) -> Self {
        let per_chunk = index.blocks_per_chunk() as usize;
        let fits = |(patch, _): &(&Patch, u64)| {
            let count = index.chunk_len(patch.chunk).div_ceil(BLOCK_SIZE_BYTES);
            let there = blocks.range(patch.chunk as usize * per_chunk, count);
            !comparison.is_right(patch.chunk) && there.is_some_and(|there| fingerprint(there) == patch.base)
        };
        let fitting: Vec<(&Patch, u64)> = patches.places().filter(fits).collect();
        let bases = fitting.iter().map(|(patch, _)| (patch.stored, patch.chunk)).collect();
        let places = fitting.into_iter().map(|(patch, offset)| (patch.stored, offset, patch.length));
        Self { index: index.relocated(patches.pack(), places), bases, local: None }
    }

    /// An index of which some chunks are read from frames that are kept on the partition itself, as the pack `local`.
    /// Each place comes as the stored chunk, an offset in that pack and a length.
    #[must_use]
    pub fn kept(index: &Index, local: Pack, places: impl Iterator<Item = (StoredChunkNo, u64, u32)>) -> Self {
        let number = u32::try_from(index.packs().len()).ok();
        Self { index: index.relocated(local, places), bases: Vec::new(), local: number }
    }

    /// Adds patches for the chunks that are not kept.
    #[must_use]
    pub fn and(self, patched: Self) -> Self {
        let is_kept = |stored: StoredChunkNo| Some(self.index.location(stored).pack) == self.local;
        let (Some(local), Some(pack)) = (self.local, self.index.packs().last()) else { return patched };
        let kept = (0..self.index.stored_count()).filter(|stored| is_kept(*stored)).map(|stored| {
            let place = self.index.location(stored).range;
            (stored, place.start, u32::try_from(place.end - place.start).unwrap_or(u32::MAX))
        });
        debug_assert_eq!(local as usize + 1, self.index.packs().len());
        let bases = patched.bases.iter().filter(|(stored, _)| !is_kept(*stored)).copied().collect();
        let both = Self::kept(&patched.index, *pack, kept);
        Self { bases, ..both }
    }

    /// Whether a pack stands for frames on the partition itself.
    #[must_use]
    pub fn is_local(&self, pack: u32) -> bool {
        self.local == Some(pack)
    }

    /// Whether every chunk that is not right is read from the partition itself, so that no network is needed.
    #[must_use]
    pub fn is_all_local(&self, comparison: &Comparison) -> bool {
        (0..self.index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)).all(|chunk| {
            match self.index.chunk_content(chunk) {
                ChunkContent::Zero => true,
                ChunkContent::Stored(stored) => self.is_local(self.index.location(stored).pack),
            }
        })
    }

    /// Returns the chunk whose place holds the dictionary of a stored chunk, if that stored chunk is patched.
    #[must_use]
    pub fn base(&self, stored: StoredChunkNo) -> Option<ChunkNo> {
        let at = self.bases.binary_search_by_key(&stored, |(stored, _)| *stored).ok()?;
        Some(self.bases[at].1)
    }

    /// Whether the patches are all that a partition needs: then its blocks are not searched for moved content.
    #[must_use]
    pub fn is_enough(&self, comparison: &Comparison) -> bool {
        (0..self.index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)).all(|chunk| {
            match self.index.chunk_content(chunk) {
                ChunkContent::Zero => true,
                // The first chunk is never patched, and fetching it is always little work.
                ChunkContent::Stored(stored) => {
                    chunk == 0 || self.base(stored).is_some() || self.is_local(self.index.location(stored).pack)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Patched;
    use crate::flash::plan::tests::index;
    use crate::flash::plan::{Blocks, Comparison, Plan, Reuse};
    use crate::release::digest::Digest;
    use crate::release::index::{MIN_CHUNK_BYTES, Pack};
    use crate::release::patches::{Patch, Patches, fingerprint};
    use crate::release::weak_hashes::WeakHash;

    /// Blocks of a chunk.
    const PER: u64 = MIN_CHUNK_BYTES as u64 / 4096;

    /// Blocks whose weak hashes begin with this number.
    fn there(first: u64) -> impl Iterator<Item = WeakHash> {
        (first..first + PER).map(WeakHash::from_bits)
    }

    fn patch(number: u32) -> Patch {
        Patch { stored: number, chunk: number, length: 100, base: fingerprint(there(u64::from(number) * 10)) }
    }

    #[test]
    fn only_what_is_wrong_and_was_what_it_should_have_been_is_patched() {
        let index = index(&[Some(0), Some(1), Some(2), Some(3), Some(4)]);
        // Chunk 1 is right; in the place of chunk 2 is what the release before had, in that of chunk 3 something else.
        let pack = Pack { digest: Digest::of(b"patches"), size_bytes: 400 };
        let patches = Patches::new(pack, (1..5).map(patch).collect());
        let comparison = Comparison::new(&index, vec![true, true, false, false, true]);
        let blocks = Blocks::new([0, 0, 20, 90, 0].into_iter().flat_map(there).collect());
        let patched = Patched::new(&patches, &index, &comparison, &blocks);
        assert_eq!((1..5).map(|stored| patched.base(stored)).collect::<Vec<_>>(), [None, Some(2), None, None]);
        assert!(!patched.is_enough(&comparison));
        let plan = Plan::new(&index, &comparison, Reuse { patched: Some(patched.clone()), ..Reuse::default() });
        let asked: Vec<_> = plan.requests.iter().map(|request| (request.pack, request.range.clone())).collect();
        assert_eq!(asked, [(0, 30_000..40_000), (1, 100..200)], "one whole, one as a patch from its own pack");
        assert_eq!(plan.totals.download_bytes, 10_100);
        assert_eq!(patched.index.packs()[1], pack);
        // Without chunk 3 patches are enough, also where the first chunk is wrong; on a short partition nothing fits.
        let comparison = Comparison::new(&index, vec![false, true, false, true, true]);
        assert!(Patched::new(&patches, &index, &comparison, &blocks).is_enough(&comparison));
        let short = Blocks::new(there(20).take(3).collect());
        assert!(!Patched::new(&patches, &index, &comparison, &short).is_enough(&comparison));
    }
}
