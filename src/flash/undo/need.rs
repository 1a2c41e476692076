//! Which chunks of a release a plan takes from the partition, so that they have to be kept. Pure.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::flash::plan::Comparison;
use crate::flash::undo::header::ENTRY_BYTES;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest};
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};

/// Bytes that are kept beside chunks: the headers, the signed manifest and the rest of their blocks.
const FIXED_BYTES: u64 = 64 * 1024;

/// What becomes of one place of the release that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The place holds what the release has there, and nothing is written to it.
    Stays,
    /// Nothing is written to the place, and it holds something else.
    Lost,
    /// Nothing is written to the place, and it has to be read to know what it holds.
    Unknown,
    /// The place is written to. What it holds shows when it is read.
    Goes,
}

/// The writing of an image that is about to begin.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    /// Index of the image.
    pub(crate) index: &'a Index,
    /// The chunks of the image that are right already. The others, and chunk 0, are written.
    pub(crate) comparison: &'a Comparison,
}

impl Change<'_> {
    /// Says what becomes of each place of the release with the index `kept`.
    pub(super) fn places(&self, kept: &Index) -> Vec<Place> {
        (0..kept.chunk_count()).map(|chunk| self.place(kept, chunk)).collect()
    }

    fn place(&self, kept: &Index, chunk: ChunkNo) -> Place {
        let Self { index, comparison } = self;
        let range = kept.chunk_range(chunk);
        let size = u64::from(index.chunk_bytes());
        let number = |offset: u64| ChunkNo::try_from(offset / size).unwrap_or(ChunkNo::MAX);
        // A place behind the image gives an empty range.
        let written = number(range.start)..number(range.end - 1).saturating_add(1).min(index.chunk_count());
        if written.clone().any(|new| new == 0 || !comparison.is_right(new)) {
            return Place::Goes;
        }
        if written.is_empty() || index.chunk_range(written.start) != range {
            return Place::Unknown;
        }
        if same_content(kept, index, chunk) { Place::Stays } else { Place::Lost }
    }

    /// Whether a place of the release `kept` has its content once the writing is done.
    fn becomes_right(&self, kept: &Index, chunk: ChunkNo) -> bool {
        chunk < self.index.chunk_count()
            && self.index.chunk_range(chunk) == kept.chunk_range(chunk)
            && same_content(kept, self.index, chunk)
    }
}

/// Whether two indexes have the same content in a place that both cut out alike.
fn same_content(one: &Index, other: &Index, chunk: ChunkNo) -> bool {
    match (one.chunk_content(chunk), other.chunk_content(chunk)) {
        (ChunkContent::Zero, ChunkContent::Zero) => true,
        (ChunkContent::Stored(one_stored), ChunkContent::Stored(other_stored)) => {
            one.digest(one_stored) == other.digest(other_stored)
        }
        _ => false,
    }
}

/// A content that has to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The stored chunk of the release.
    pub(super) stored: StoredChunkNo,
    /// Places that may hold it, those that stay first.
    pub(super) places: Vec<ChunkNo>,
    /// Whether the release cannot be put together without it once the change is done.
    pub(super) is_needed: bool,
}

/// Lists the distinct contents of the release `kept` that have no lasting place on the partition and are not kept yet.
///
/// A content in several places counts when one of them goes: an undo takes what it needs from what is kept alone.
pub(super) fn wanted(
    kept: &Index,
    places: &[Place],
    change: &Change<'_>,
    has: impl Fn(&Digest) -> bool,
) -> Vec<Wanted> {
    let mut by_content: Vec<(StoredChunkNo, Place, ChunkNo)> = (0..kept.chunk_count())
        .zip(places)
        .filter_map(|(chunk, place)| match kept.chunk_content(chunk) {
            ChunkContent::Stored(stored) => Some((stored, *place, chunk)),
            ChunkContent::Zero => None,
        })
        .collect();
    by_content.sort_unstable_by_key(|(stored, place, chunk)| (*stored, *place != Place::Stays, *chunk));
    let mut wanted = Vec::new();
    for same in by_content.chunk_by(|one, next| one.0 == next.0) {
        let stored = same[0].0;
        let goes = |place: Place| matches!(place, Place::Goes | Place::Lost);
        if !same.iter().any(|(_, place, _)| goes(*place)) || has(kept.digest(stored)) {
            continue;
        }
        let may_hold = |(_, place, chunk): &(StoredChunkNo, Place, ChunkNo)| {
            matches!(place, Place::Stays | Place::Goes).then_some(*chunk)
        };
        let is_needed = same.iter().any(|(_, place, chunk)| goes(*place) && !change.becomes_right(kept, *chunk));
        wanted.push(Wanted { stored, places: same.iter().filter_map(may_hold).collect(), is_needed });
    }
    wanted
}

/// Returns the place in the image of each of these contents, the first one where it has several.
pub(super) fn first_places(kept: &Index, stored: &[StoredChunkNo]) -> Vec<Range<u64>> {
    let mut left: BTreeSet<StoredChunkNo> = stored.iter().copied().collect();
    let is_first = |chunk: &ChunkNo| match kept.chunk_content(*chunk) {
        ChunkContent::Stored(stored) => left.remove(&stored),
        ChunkContent::Zero => false,
    };
    (0..kept.chunk_count()).filter(is_first).map(|chunk| kept.chunk_range(chunk)).collect()
}

/// Estimates the room for chunks of so many compressed bytes in the release. The machine compresses faster than the
/// releasing side, and therefore less.
pub(super) fn with_margin(compressed_bytes: u64) -> u64 {
    compressed_bytes.saturating_add(compressed_bytes / 4)
}

/// Bytes of a list of contents as they are compressed in the release.
pub(super) fn compressed_bytes(kept: &Index, stored: impl Iterator<Item = StoredChunkNo>) -> u64 {
    stored.map(|stored| kept.location(stored).range).map(|range| range.end - range.start).sum()
}

/// Bytes of the parts that are kept with `chunks` chunks, other than the chunks themselves: two copies of each.
pub(super) fn parts_bytes(index_object_bytes: u64, chunks: u64) -> u64 {
    FIXED_BYTES + 2 * (index_object_bytes + chunks * ENTRY_BYTES as u64)
}

/// Returns the room behind the image that is enough to go back to a release from any other: that of an update which
/// changes every byte.
#[must_use]
pub fn worst_case_bytes(index: &Index, index_object_bytes: u64) -> u64 {
    let chunks = u64::from(index.stored_count());
    let bytes = with_margin(compressed_bytes(index, 0..index.stored_count())) + parts_bytes(index_object_bytes, chunks);
    bytes.next_multiple_of(BLOCK_SIZE_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::{Change, Place, Wanted, wanted};
    use crate::flash::plan::Comparison;
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};

    /// An image of these contents in chunks of `chunk_bytes`; 0 is a chunk of zeros.
    fn image(contents: &[u8], chunk_bytes: u32) -> Index {
        let mut builder = Builder::new(contents.len() as u64 * u64::from(chunk_bytes), chunk_bytes).unwrap();
        let mut distinct: Vec<u8> = contents.iter().copied().filter(|content| *content != 0).collect();
        distinct.sort_unstable();
        distinct.dedup();
        for content in &distinct {
            builder.store(Digest([*content; 32]), 100);
        }
        for content in contents {
            let number = (0..).zip(&distinct).find(|(_, other)| *other == content).map(|(number, _)| number);
            builder.push_chunk(number.map_or(ChunkContent::Zero, ChunkContent::Stored));
        }
        let pack = Pack { digest: Digest::of(b"pack"), size_bytes: 100 * distinct.len() as u64 };
        builder.push_extent(0, pack, 0);
        builder.finish().unwrap()
    }

    fn right(index: &Index, right: &[u8]) -> Comparison {
        Comparison::new(index, right.iter().map(|right| *right != 0).collect())
    }

    #[test]
    fn what_is_written_goes_and_the_first_chunk_always() {
        let kept = image(&[1, 2, 3, 4, 5], MIN_CHUNK_BYTES);
        let new = image(&[1, 9, 3, 8], MIN_CHUNK_BYTES);
        // Chunk 3 of the new image is there already: an earlier run was cut.
        let comparison = right(&new, &[1, 0, 1, 1]);
        let change = Change { index: &new, comparison: &comparison };
        use Place::{Goes, Lost, Stays, Unknown};
        let places = change.places(&kept);
        assert_eq!(places, [Goes, Goes, Stays, Lost, Unknown]);
        let want = |stored, places: &[u32], is_needed| Wanted { stored, places: places.to_vec(), is_needed };
        let known = [Goes, Goes, Stays, Lost, Stays];
        let all = wanted(&kept, &known, &change, |_| false);
        // The first chunk is in both images: it has to be kept for a cut, and is back after the change.
        assert_eq!(all, [want(0, &[0], false), want(1, &[1], true), want(3, &[], true)]);
        let rest = wanted(&kept, &known, &change, |digest| *digest == Digest([4; 32]));
        assert_eq!(rest.len(), 2);
    }

    #[test]
    fn a_content_in_two_places_is_read_from_the_one_that_stays() {
        let kept = image(&[1, 2, 2, 0], MIN_CHUNK_BYTES);
        let new = image(&[1, 7, 2, 5], MIN_CHUNK_BYTES);
        let comparison = right(&new, &[1, 0, 1, 0]);
        let change = Change { index: &new, comparison: &comparison };
        let all = wanted(&kept, &change.places(&kept), &change, |_| false);
        assert_eq!(all[1], Wanted { stored: 1, places: vec![2, 1], is_needed: true });
        assert_eq!(all.len(), 2, "zeros are not kept");
    }

    #[test]
    fn chunks_of_another_size_go_by_their_bytes() {
        let kept = image(&[1, 2, 3, 4], MIN_CHUNK_BYTES);
        let new = image(&[11, 12, 13], 2 * MIN_CHUNK_BYTES);
        let comparison = right(&new, &[1, 1, 0]);
        let places = Change { index: &new, comparison: &comparison }.places(&kept);
        assert_eq!(places, [Place::Goes, Place::Goes, Place::Unknown, Place::Unknown]);
        let comparison = right(&kept, &[1, 1, 1, 0]);
        let places = Change { index: &kept, comparison: &comparison }.places(&new);
        assert_eq!(places, [Place::Goes, Place::Goes, Place::Unknown]);
    }
}
