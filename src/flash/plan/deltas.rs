//! Which deltas of a release a partition can use.

use super::candidates::Candidates;
use super::comparison::{Blocks, Comparison};
use super::elsewhere::KeptFrames;
use crate::release::deltas::{Delta, Deltas, fingerprint};
use crate::release::index::{ChunkContent, ChunkNo, Index};

/// Bytes of deltas that are held in memory while they are applied. Chunks beyond it are fetched whole.
pub const MAX_HELD_BYTES: u64 = 30 * 1024 * 1024;

/// Deltas that make something which is wrong, and whose sources are all on the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittingDeltas {
    table: Deltas,
    /// Numbers of those that fit, ascending.
    fitting: Vec<u32>,
    /// Number of deltas that make something which is wrong, whether or not they fit.
    of_use: usize,
}

impl FittingDeltas {
    /// Chooses the deltas that fit a partition with these blocks.
    #[must_use]
    pub fn new(table: Deltas, comparison: &Comparison, blocks: &Blocks) -> Self {
        let is_of_use = |delta: &Delta<'_>| delta.chunks.iter().any(|chunk| !comparison.is_right(*chunk));
        let are_there = |delta: &Delta<'_>| {
            let ranges = delta.sources.iter();
            let found: Option<Vec<_>> = ranges.map(|range| blocks.range(range.start as usize, range.len())).collect();
            found.is_some_and(|found| fingerprint(found.into_iter().flatten()) == delta.base)
        };
        let (mut held_bytes, mut of_use) = (0, 0);
        let fitting = (0..table.len()).filter(|number| {
            let delta = table.get(*number);
            let is_of_use = is_of_use(&delta);
            of_use += usize::from(is_of_use);
            let fits = is_of_use && are_there(&delta);
            let is_held = fits && held_bytes + u64::from(delta.length) <= MAX_HELD_BYTES;
            held_bytes += if is_held { u64::from(delta.length) } else { 0 };
            is_held
        });
        let fitting = fitting.collect();
        Self { fitting, table, of_use }
    }

    /// Whether nearly all that the deltas could make can be made on this partition: they are made for what is on it.
    /// Most of them fit another release too, of which the rest changed meanwhile.
    #[must_use]
    pub fn are_for_this_partition(&self) -> bool {
        self.fitting.len() * 10 >= self.of_use * 9
    }

    /// Number of deltas that fit.
    #[must_use]
    pub fn count(&self) -> usize {
        self.fitting.len()
    }

    /// The table that they are from.
    pub(crate) fn table(&self) -> &Deltas {
        &self.table
    }

    /// Leaves out the deltas of which everything that they would make is kept.
    pub(super) fn without_kept(&mut self, index: &Index, comparison: &Comparison, kept: &KeptFrames) {
        let Self { table, fitting, .. } = self;
        let is_kept = |chunk: &ChunkNo| match index.chunk_content(*chunk) {
            ChunkContent::Zero => true,
            ChunkContent::Stored(stored) => comparison.is_right(*chunk) || kept.has(stored),
        };
        fitting.retain(|number| !table.get(*number).chunks.iter().all(is_kept));
    }

    /// Iterates over those that fit, each with its number and the chunks that it has to make.
    pub(super) fn wrong_chunks(&self, comparison: &Comparison) -> impl Iterator<Item = (u32, Vec<ChunkNo>)> {
        self.fitting.iter().map(|number| {
            let chunks = self.table.get(*number).chunks.iter();
            (*number, chunks.filter(|chunk| !comparison.is_right(**chunk)).copied().collect())
        })
    }

    /// Adds a delta to the pieces of work.
    pub(super) fn push_to(&self, candidates: &mut Candidates, number: u32, chunks: &[ChunkNo]) {
        let sources = self.table.get(number).sources.iter().flat_map(Clone::clone);
        candidates.push(chunks, sources, Some(number));
    }

    /// Number of blocks that they need together.
    pub(super) fn source_count(&self) -> usize {
        let of = |number: &u32| self.table.get(*number).sources.iter().map(ExactSizeIterator::len).sum::<usize>();
        self.fitting.iter().map(of).sum()
    }
}
