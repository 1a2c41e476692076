//! What a partition holds, as far as it was read: which chunks are right, and the weak hashes of its blocks.

use std::ops::Range;

use crate::release::index::{ChunkNo, Index};
use crate::release::weak_hashes::WeakHash;

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

/// Weak hashes of the blocks of a partition, from its beginning on. A block of the partition is known by its position.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks(Vec<WeakHash>);

impl Blocks {
    /// Takes one weak hash per block of 4096 bytes. It is [`WeakHash::NONE`] for a block of zeros and for an unreadable
    /// one.
    #[must_use]
    pub fn new(weak_hashes: Vec<WeakHash>) -> Self {
        Self(weak_hashes)
    }

    /// Whether no block has a weak hash: a blank partition holds nothing that could be moved.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.iter().all(|weak_hash| *weak_hash == WeakHash::NONE)
    }

    /// Returns the weak hashes of `count` blocks from block `from` on, if the partition has so many.
    pub(crate) fn range(&self, from: usize, count: usize) -> Option<impl Iterator<Item = WeakHash>> {
        Some(self.0.get(from..from.checked_add(count)?)?.iter().copied())
    }

    pub(super) fn as_slice(&self) -> &[WeakHash] {
        &self.0
    }
}
