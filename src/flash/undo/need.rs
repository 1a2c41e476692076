//! Which chunks of a release a plan takes from the partition, so that they have to be kept. Pure.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WantedChunk {
    /// The stored chunk of the release.
    pub(super) stored: StoredChunkNo,
    /// Whether the release cannot be put together without it once the change is done.
    pub(super) is_needed: bool,
    /// The part of [`Wanted::places`] that it has.
    places: (u32, u32),
}

/// The contents that have to be kept, ascending by their stored chunks. Up to all of an image may be among them, so
/// that the places of all are in one list.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    contents: Vec<WantedChunk>,
    places: Vec<ChunkNo>,
}

impl Wanted {
    /// Contents that are nowhere on the partition.
    pub(super) fn of_missing(missing: impl Iterator<Item = StoredChunkNo>) -> Self {
        let contents = missing.map(|stored| WantedChunk { stored, is_needed: true, places: (0, 0) }).collect();
        Self { contents, places: Vec::new() }
    }

    /// The contents.
    pub(super) fn contents(&self) -> &[WantedChunk] {
        &self.contents
    }

    /// Places that may hold a content, those that stay first.
    pub(super) fn places(&self, content: &WantedChunk) -> &[ChunkNo] {
        let (start, end) = content.places;
        &self.places[start as usize..end as usize]
    }

    /// The stored chunks of the contents.
    pub(super) fn stored(&self) -> impl Iterator<Item = StoredChunkNo> {
        self.contents.iter().map(|content| content.stored)
    }
}

/// Lists the distinct contents of the release `kept` that have no lasting place on the partition and are not kept yet.
///
/// A content in several places counts when one of them goes: an undo takes what it needs from what is kept alone.
#[expect(clippy::cast_possible_truncation, reason = "an index counts its chunks in u32")]
pub(super) fn wanted(kept: &Index, places: &[Place], change: &Change<'_>, has: impl Fn(&Digest) -> bool) -> Wanted {
    let ByContent { ends, chunks } = ByContent::of(kept, places);
    let mut wanted = Wanted::default();
    let mut start = 0;
    for (stored, end) in (0..).zip(ends) {
        let same = &chunks[start as usize..end as usize];
        start = end;
        let goes = |chunk: ChunkNo| matches!(places[chunk as usize], Place::Goes | Place::Lost);
        if !same.iter().any(|chunk| goes(*chunk)) || has(kept.digest(stored)) {
            continue;
        }
        let may_hold = |chunk: &&ChunkNo| matches!(places[**chunk as usize], Place::Stays | Place::Goes);
        let is_needed = same.iter().any(|chunk| goes(*chunk) && !change.becomes_right(kept, *chunk));
        let first = wanted.places.len() as u32;
        wanted.places.extend(same.iter().filter(may_hold));
        wanted.contents.push(WantedChunk { stored, is_needed, places: (first, wanted.places.len() as u32) });
    }
    wanted
}

/// The chunks of an image in the order of their stored chunks. Of those with the same one, those that stay come first.
struct ByContent {
    /// For each stored chunk, where its chunks end.
    ends: Vec<u32>,
    chunks: Vec<ChunkNo>,
}

impl ByContent {
    fn of(kept: &Index, places: &[Place]) -> Self {
        let chunks = || {
            (0..kept.chunk_count()).zip(places).filter_map(|(chunk, place)| match kept.chunk_content(chunk) {
                ChunkContent::Stored(stored) => Some((stored as usize, *place == Place::Stays, chunk)),
                ChunkContent::Zero => None,
            })
        };
        // Counted and then put in place: sorting takes longer, and thrice the memory.
        let mut ends = vec![0; kept.stored_count() as usize];
        chunks().for_each(|(stored, ..)| ends[stored] += 1);
        let mut total = 0;
        for end in &mut ends {
            // Where the chunks begin, until they are there.
            total += std::mem::replace(end, total);
        }
        let mut ordered = vec![0; total as usize];
        for staying in [true, false] {
            for (stored, _, chunk) in chunks().filter(|(_, stays, _)| *stays == staying) {
                ordered[ends[stored] as usize] = chunk;
                ends[stored] += 1;
            }
        }
        Self { ends, chunks: ordered }
    }
}

/// Returns the place in the image of each of these contents, which ascend: the first one where it has several.
pub(super) fn first_places(kept: &Index, stored: &[StoredChunkNo]) -> Vec<Range<u64>> {
    let mut is_left = vec![true; stored.len()];
    let is_first = |chunk: &ChunkNo| match kept.chunk_content(*chunk) {
        ChunkContent::Stored(content) => {
            stored.binary_search(&content).is_ok_and(|at| std::mem::replace(&mut is_left[at], false))
        }
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
    use crate::release::index::{ChunkNo, StoredChunkNo};

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

    fn listed(wanted: &Wanted) -> Vec<(StoredChunkNo, Vec<ChunkNo>, bool)> {
        let contents = wanted.contents().iter();
        contents.map(|content| (content.stored, wanted.places(content).to_vec(), content.is_needed)).collect()
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
        let known = [Goes, Goes, Stays, Lost, Stays];
        let all = wanted(&kept, &known, &change, |_| false);
        // The first chunk is in both images: it has to be kept for a cut, and is back after the change.
        assert_eq!(listed(&all), [(0, vec![0], false), (1, vec![1], true), (3, vec![], true)]);
        let rest = wanted(&kept, &known, &change, |digest| *digest == Digest([4; 32]));
        assert_eq!(listed(&rest).len(), 2);
    }

    #[test]
    fn a_content_in_two_places_is_read_from_the_one_that_stays() {
        let kept = image(&[1, 2, 2, 0], MIN_CHUNK_BYTES);
        let new = image(&[1, 7, 2, 5], MIN_CHUNK_BYTES);
        let comparison = right(&new, &[1, 0, 1, 0]);
        let change = Change { index: &new, comparison: &comparison };
        let all = wanted(&kept, &change.places(&kept), &change, |_| false);
        // Zeros are not kept.
        assert_eq!(listed(&all), [(0, vec![0], false), (1, vec![2, 1], true)]);
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
