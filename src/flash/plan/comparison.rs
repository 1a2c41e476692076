//! What is on the partition, as far as it was read.

use std::ops::Range;

use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkContent, ChunkNo, Index};
use crate::release::weak_hashes::{WeakHash, WeakHashes};

/// For each chunk, whether the partition already holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison(Vec<bool>);

impl Comparison {
    /// A partition of which nothing is known: every chunk is written.
    #[must_use]
    pub fn nothing_right(index: &Index) -> Self {
        Self(vec![false; index.chunk_count() as usize])
    }

    /// Takes one flag per chunk.
    ///
    /// # Panics
    /// When the number of flags is not the number of chunks: they were made for another index.
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

    /// Whether all are.
    #[must_use]
    pub fn all_right(&self) -> bool {
        self.0.iter().all(|right| *right)
    }

    /// Byte ranges of the partition that are not right, neighbours joined.
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

/// WeakHashes of the partition's blocks, from its beginning on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks(Vec<WeakHash>);

impl Blocks {
    /// One weak hash per block of 4096 bytes; [`WeakHash::NONE`] for those of zeros, unreadable ones and those of chunks that
    /// are right.
    #[must_use]
    pub fn new(weak_hashes: Vec<WeakHash>) -> Self {
        Self(weak_hashes)
    }

    /// Whether there is anything that could be of use: a blank partition needs no search.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.iter().all(|weak_hash| *weak_hash == WeakHash::NONE)
    }

    /// Adds the blocks of chunks that are right: they were not hashed, as their weak hashes are known.
    #[must_use]
    pub fn completed(mut self, index: &Index, weak_hashes: &WeakHashes, comparison: &Comparison) -> Self {
        let per_chunk = index.chunk_bytes() as usize / BLOCK_SIZE_BYTES;
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

    /// The weak hashes of `count` blocks from block `from` on, if there are so many.
    pub(crate) fn range(&self, from: usize, count: usize) -> Option<impl Iterator<Item = WeakHash>> {
        Some(self.0.get(from..from + count)?.iter().copied())
    }

    pub(super) fn as_slice(&self) -> &[WeakHash] {
        &self.0
    }
}
