//! Frames that a partition can get from elsewhere than the index says: from what is kept on the partition itself.

use super::comparison::Comparison;
use crate::release::index::{ChunkContent, Index, Location, Pack, StoredChunkNo};

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

/// Frames that are kept on the partition itself.
///
/// They are listed beside the index, and not written into a copy of it, which would need many times the memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFrames {
    /// Number of packs of the index: the one that stands for the partition follows.
    number: u32,
    pack: Pack,
    /// The frames, ascending by their stored chunks.
    frames: Vec<FramePlace>,
}

impl KeptFrames {
    /// Places of frames that are kept on the partition itself, as the pack `local`. They ascend by their stored chunks.
    #[must_use]
    pub fn new(index: &Index, local: Pack, frames: Vec<FramePlace>) -> Self {
        Self { number: pack_count(index), pack: local, frames }
    }

    /// Finds the frame of a stored chunk that is kept.
    fn place(&self, stored: StoredChunkNo) -> Option<FramePlace> {
        let at = self.frames.binary_search_by_key(&stored, |frame| frame.stored).ok()?;
        Some(self.frames[at])
    }

    /// Whether a stored chunk is kept.
    pub(super) fn has(&self, stored: StoredChunkNo) -> bool {
        self.place(stored).is_some()
    }

    /// Whether a number of a pack stands for the partition itself.
    #[must_use]
    pub fn is_local(&self, pack: u32) -> bool {
        self.number == pack
    }

    /// Whether every chunk that is not right is kept, so that no network is needed.
    #[must_use]
    pub fn is_all(&self, index: &Index, comparison: &Comparison) -> bool {
        let mut wrong = (0..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk));
        wrong.all(|chunk| match index.chunk_content(chunk) {
            ChunkContent::Zero => true,
            ChunkContent::Stored(stored) => self.has(stored),
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
    kept: Option<&'a KeptFrames>,
}

impl<'a> ChunkPlaces<'a> {
    /// The places that the index names.
    pub(crate) fn of(index: &'a Index) -> Self {
        Self { index, kept: None }
    }

    /// The places that the index names, unless the frame is kept.
    pub(crate) fn with(index: &'a Index, kept: Option<&'a KeptFrames>) -> Self {
        Self { index, kept }
    }

    /// Returns where a stored chunk is taken from. A number of a pack is for [`pack`](Self::pack).
    pub(crate) fn location(&self, stored: StoredChunkNo) -> Location {
        match self.kept.and_then(|kept| Some((kept.number, kept.place(stored)?))) {
            Some((pack, FramePlace { length, offset, .. })) => {
                Location { pack, range: offset..offset.saturating_add(u64::from(length)) }
            }
            None => self.index.location(stored),
        }
    }

    /// Returns a pack by its number in these places.
    pub(crate) fn pack(&self, number: u32) -> &'a Pack {
        match self.kept.filter(|kept| kept.is_local(number)) {
            Some(kept) => &kept.pack,
            None => &self.index.packs()[number as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ChunkPlaces, FramePlace, KeptFrames};
    use crate::flash::plan::Comparison;
    use crate::flash::plan::tests::index;
    use crate::release::digest::Digest;
    use crate::release::index::Pack;

    #[test]
    fn what_is_kept_is_taken_from_the_partition_and_the_rest_from_the_index() {
        let index = index(&[Some(0), Some(1), Some(2), None]);
        let pack = Pack { digest: Digest::of(b"keeping"), size_bytes: 300 };
        let frames = [0, 2].map(|stored| FramePlace { stored, length: 70, offset: 4096 * u64::from(stored) });
        let kept = KeptFrames::new(&index, pack, frames.to_vec());
        let places = ChunkPlaces::with(&index, Some(&kept));
        assert_eq!([0, 1, 2].map(|stored| places.location(stored).range), [0..70, 10_000..20_000, 8192..8262]);
        let found = [0, 1, 2].map(|stored| *places.pack(places.location(stored).pack));
        assert_eq!(found, [pack, index.packs()[0], pack]);
        assert!(kept.is_local(1) && !kept.is_local(0));
        assert!(kept.is_all(&index, &Comparison::new(&index, vec![false, true, false, false])));
        assert!(!kept.is_all(&index, &Comparison::nothing_right(&index)));
    }
}
