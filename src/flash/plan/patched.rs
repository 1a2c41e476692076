//! Chunks that a partition can get from elsewhere than the index says: as patches, or from what is kept on it.

use super::comparison::{Blocks, Comparison};
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkContent, ChunkNo, Index, Location, Pack, StoredChunkNo};
use crate::release::patches::{Patch, Patches, fingerprint};

/// The place of one stored chunk's frame, elsewhere than the index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// The stored chunk.
    pub stored: StoredChunkNo,
    /// Length of the frame, bytes.
    pub length: u32,
    /// Offset of the frame in its pack, bytes.
    pub offset: u64,
}

/// The frames of a pack that the index does not name, ascending by their stored chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    pack: Pack,
    frames: Vec<FramePlace>,
}

/// Places of chunks elsewhere than in the packs of an index: of patches, because the partition holds their
/// dictionaries, and of frames that are kept on the partition itself.
///
/// They are listed beside the index, and not written into a copy of it, which would need many times the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patched {
    /// Number of packs of the index: those of the layers follow.
    pack_count: u32,
    /// What was added last counts first.
    layers: Vec<Layer>,
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
        let fits = |patch: &Patch| {
            let count = index.chunk_len(patch.chunk).div_ceil(BLOCK_SIZE_BYTES);
            let there = blocks.range(patch.chunk as usize * per_chunk, count);
            !comparison.is_right(patch.chunk) && there.is_some_and(|there| fingerprint(there) == patch.base)
        };
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        for (patch, offset) in patches.places().filter(|(patch, _)| fits(patch)) {
            frames.push(FramePlace { stored: patch.stored, length: patch.length, offset });
            bases.push((patch.stored, patch.chunk));
        }
        let layers = vec![Layer { pack: patches.pack(), frames }];
        Self { pack_count: pack_count(index), layers, bases, local: None }
    }

    /// Places of frames that are kept on the partition itself, as the pack `local`. They ascend by their stored chunks.
    #[must_use]
    pub fn kept(index: &Index, local: Pack, frames: Vec<FramePlace>) -> Self {
        let pack_count = pack_count(index);
        Self { pack_count, layers: vec![Layer { pack: local, frames }], bases: Vec::new(), local: Some(pack_count) }
    }

    /// Adds patches for the chunks that are not kept.
    #[must_use]
    pub fn and(self, mut patched: Self) -> Self {
        patched.bases.retain(|(stored, _)| self.place(*stored).is_none());
        patched.local = self.local.map(|_| patched.pack_count + 1);
        patched.layers.extend(self.layers);
        patched
    }

    /// Finds the frame of a stored chunk that lies elsewhere, and the number of its pack.
    fn place(&self, stored: StoredChunkNo) -> Option<(u32, FramePlace)> {
        let numbered = (self.pack_count..).zip(&self.layers);
        let find = |(number, layer): (u32, &Layer)| {
            let at = layer.frames.binary_search_by_key(&stored, |frame| frame.stored).ok()?;
            Some((number, layer.frames[at]))
        };
        // There are at most two.
        numbered.filter_map(find).last()
    }

    /// Whether a stored chunk is read from the partition itself.
    fn is_kept(&self, stored: StoredChunkNo) -> bool {
        self.place(stored).is_some_and(|(pack, _)| self.is_local(pack))
    }

    /// Whether a pack stands for frames on the partition itself.
    #[must_use]
    pub fn is_local(&self, pack: u32) -> bool {
        self.local == Some(pack)
    }

    /// Whether every chunk that is not right is read from the partition itself, so that no network is needed.
    #[must_use]
    pub fn is_all_local(&self, index: &Index, comparison: &Comparison) -> bool {
        let mut wrong = (0..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk));
        wrong.all(|chunk| match index.chunk_content(chunk) {
            ChunkContent::Zero => true,
            ChunkContent::Stored(stored) => self.is_kept(stored),
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
    pub fn is_enough(&self, index: &Index, comparison: &Comparison) -> bool {
        let mut wrong = (0..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk));
        wrong.all(|chunk| match index.chunk_content(chunk) {
            ChunkContent::Zero => true,
            // The first chunk is never patched, and fetching it is always little work.
            ChunkContent::Stored(stored) => chunk == 0 || self.base(stored).is_some() || self.is_kept(stored),
        })
    }
}

fn pack_count(index: &Index) -> u32 {
    u32::try_from(index.packs().len()).unwrap_or(u32::MAX)
}

/// Where the stored chunks of an index are taken from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkPlaces<'a> {
    index: &'a Index,
    patched: Option<&'a Patched>,
}

impl<'a> ChunkPlaces<'a> {
    /// The places that the index names.
    pub(crate) fn of(index: &'a Index) -> Self {
        Self { index, patched: None }
    }

    /// The places that the index names, unless `patched` has others.
    pub(crate) fn with(index: &'a Index, patched: Option<&'a Patched>) -> Self {
        Self { index, patched }
    }

    /// Returns where a stored chunk is taken from. A number of a pack is for [`pack`](Self::pack).
    pub(crate) fn location(&self, stored: StoredChunkNo) -> Location {
        match self.patched.and_then(|patched| patched.place(stored)) {
            Some((pack, FramePlace { length, offset, .. })) => {
                Location { pack, range: offset..offset.saturating_add(u64::from(length)) }
            }
            None => self.index.location(stored),
        }
    }

    /// Returns a pack by its number in these places.
    pub(crate) fn pack(&self, number: u32) -> &'a Pack {
        let of_layer = self.patched.and_then(|patched| {
            let layer = number.checked_sub(patched.pack_count)?;
            patched.layers.get(layer as usize)
        });
        of_layer.map_or_else(|| &self.index.packs()[number as usize], |layer| &layer.pack)
    }
}

#[cfg(test)]
mod tests {
    use super::{ChunkPlaces, FramePlace, Patched};
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
        assert!(!patched.is_enough(&index, &comparison));
        let plan = Plan::new(&index, &comparison, Reuse { patched: Some(patched.clone()), ..Reuse::default() });
        let asked: Vec<_> = plan.requests.iter().map(|request| (request.pack, request.range.clone())).collect();
        assert_eq!(asked, [(0, 30_000..40_000), (1, 100..200)], "one whole, one as a patch from its own pack");
        assert_eq!(plan.totals.download_bytes, 10_100);
        assert_eq!(*ChunkPlaces::with(&index, Some(&patched)).pack(1), pack);
        // Without chunk 3 patches are enough, also where the first chunk is wrong; on a short partition nothing fits.
        let comparison = Comparison::new(&index, vec![false, true, false, true, true]);
        assert!(Patched::new(&patches, &index, &comparison, &blocks).is_enough(&index, &comparison));
        let short = Blocks::new(there(20).take(3).collect());
        assert!(!Patched::new(&patches, &index, &comparison, &short).is_enough(&index, &comparison));
    }

    #[test]
    fn what_is_kept_is_taken_before_a_patch() {
        let index = index(&[Some(0), Some(1), Some(2), Some(3)]);
        let packs = [b"patches", b"keeping"].map(|name| Pack { digest: Digest::of(name), size_bytes: 300 });
        let patches = Patches::new(packs[0], (1..4).map(patch).collect());
        let comparison = Comparison::new(&index, vec![true, false, false, false]);
        let blocks = Blocks::new([0, 10, 20, 90].into_iter().flat_map(there).collect());
        let frames = [2, 3].map(|stored| FramePlace { stored, length: 70, offset: 4096 * u64::from(stored) });
        let kept = Patched::kept(&index, packs[1], frames.to_vec());
        assert!(!kept.is_all_local(&index, &comparison));
        let both = kept.and(Patched::new(&patches, &index, &comparison, &blocks));
        assert_eq!((0..4).map(|stored| both.base(stored)).collect::<Vec<_>>(), [None, Some(1), None, None]);
        assert!(both.is_enough(&index, &comparison));
        let places = ChunkPlaces::with(&index, Some(&both));
        let found = [0, 1, 2, 3].map(|stored| places.location(stored));
        assert_eq!(found.map(|place| place.range), [0..10_000, 0..100, 8192..8262, 12_288..12_358]);
        let found = [0, 1, 2, 3].map(|stored| *places.pack(places.location(stored).pack));
        assert_eq!(found, [index.packs()[0], packs[0], packs[1], packs[1]]);
        assert!(both.is_local(2) && !both.is_local(1));
    }
}
