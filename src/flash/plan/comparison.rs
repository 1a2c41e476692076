//! What a partition holds, as far as it was read: which chunks are right, and the weak hashes of its blocks.

use std::ops::Range;

use crate::release::index::{ChunkContent, ChunkNo, Index};
use crate::release::weak_hashes::{WeakHash, WeakHashes};

/// One flag for each chunk of an index: whether the partition already holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison(Vec<bool>);

impl Comparison {
    /// Describes a partition of which nothing is known: every chunk is written.
    #[must_use]
    pub fn nothing_right(index: &Index) -> Self {
        Self(vec![false; index.chunk_count() as usize])
    }

    /// Takes one flag per chunk.
    ///
    /// # Panics
    /// When the number of flags is not the number of chunks, which means that they were made for another index.
    #[must_use]
    pub fn new(index: &Index, right: Vec<bool>) -> Self {
        assert_eq!(right.len(), index.chunk_count() as usize, "a comparison belongs to one index");
        Self(right)
    }

    /// Whether a chunk is right.
    #[must_use]
    pub fn is_right(&self, chunk: ChunkNo) -> bool {
        self.0[chunk as usize]
    }

    /// Whether all chunks are right.
    #[must_use]
    pub fn all_right(&self) -> bool {
        self.0.iter().all(|right| *right)
    }

    /// Returns the byte ranges of the partition that are not right, with neighbours joined.
    #[must_use]
    pub fn damaged_ranges(&self, index: &Index) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for chunk in (0..index.chunk_count()).filter(|chunk| !self.is_right(*chunk)) {
            let range = index.chunk_range(chunk);
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

/// Weak hashes of the blocks of a partition, from its beginning on.
///
/// A block of the partition is known by its position. With chunks of 4 blocks:
///
/// ```text
/// block   0    1    2    3  | 4    5    6    7  | 8    9   10   11  | 12 ...
/// hash    -    -    -    -  | a    b    -    c  | d    e    f    g  | h ...
///         chunk 0, right    | chunk 1, wrong    | chunk 2, wrong    | after the image
/// ```
///
/// A dash is [`WeakHash::NONE`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks(Vec<WeakHash>);

impl Blocks {
    /// Takes one weak hash per block of 4096 bytes. It is [`WeakHash::NONE`] for a block of zeros, for an unreadable
    /// block, and for a block of a chunk that is right.
    #[must_use]
    pub fn new(weak_hashes: Vec<WeakHash>) -> Self {
        Self(weak_hashes)
    }

    /// Whether no block has a weak hash: a blank partition holds nothing that could be moved.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.iter().all(|weak_hash| *weak_hash == WeakHash::NONE)
    }

    /// Adds the weak hashes of the chunks that are right. Those chunks were not hashed, because the release has their
    /// weak hashes.
    #[must_use]
    pub fn completed(mut self, index: &Index, weak_hashes: &WeakHashes, comparison: &Comparison) -> Self {
        let per_chunk = index.blocks_per_chunk() as usize;
        for chunk in (0..index.chunk_count()).filter(|chunk| comparison.is_right(*chunk)) {
            if let ChunkContent::Stored(stored) = index.chunk_content(chunk)
                && let Some(known) = weak_hashes.of(stored)
            {
                let start = chunk as usize * per_chunk;
                self.0.iter_mut().skip(start).zip(known).for_each(|(weak_hash, known)| *weak_hash = known);
            }
        }
        self
    }

    /// Returns the weak hashes of `count` blocks from block `from` on, if the partition has so many.
    pub(crate) fn range(&self, from: usize, count: usize) -> Option<impl Iterator<Item = WeakHash>> {
        Some(self.0.get(from..from.checked_add(count)?)?.iter().copied())
    }

    pub(super) fn as_slice(&self) -> &[WeakHash] {
        &self.0
    }
}
