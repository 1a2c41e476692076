//! The order in which content is moved within a partition, so that nothing is overwritten that is still needed.
//!
//! A piece of work makes one chunk of blocks that lie elsewhere, or a few chunks by a delta. Pieces are put together in
//! batches. All sources of a batch are read before the batch is written, so
//! only what a *later* batch needs can be lost: such blocks are read into a buffer before the batch that overwrites
//! them. The buffer is bounded; where it would overflow, the chunks that need the block are fetched instead.
//!
//! Reading does not depend on writing: a batch reads only blocks that no batch before it overwrites (those come from
//! the buffer), so the reader may run ahead of the writers as far as it likes.

use std::ops::Range;

use super::candidates::{Candidates, MovePiece, ZERO_SOURCE};
use crate::release::deltas::BlockNo;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::ChunkNo;

/// The most blocks that may wait in the buffer: 24 MiB.
pub const MAX_BUFFERED_BLOCKS: usize = 6 * 1024;

/// Pieces that are read together and written together.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    moved: &'a Candidates,
    pieces: Range<u32>,
    /// Chunks that the batch writes, ascending.
    pub chunks: &'a [ChunkNo],
    /// Blocks that it reads, those of one piece after those of the other.
    pub sources: &'a [BlockNo],
    /// Blocks to read into the buffer before this batch reads its sources, ascending, each with the last batch that
    /// needs it.
    pub saves: &'a [(BlockNo, u32)],
}

impl<'a> Batch<'a> {
    /// Iterates over the pieces.
    pub fn pieces(&self) -> impl Iterator<Item = MovePiece<'a>> {
        let moved = self.moved;
        self.pieces.clone().map(|number| moved.get(number))
    }
}

/// All batches of a plan. An image may have two million blocks to move, so they lie in one list each, of which a batch
/// is a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves {
    /// The most blocks that wait in the buffer at the same time.
    pub peak_blocks: usize,
    moved: Candidates,
    saves: Vec<(BlockNo, u32)>,
    /// The pieces and the parts of `saves` that each batch has, in the order in which they are read.
    batches: Vec<(Range<u32>, Range<u32>)>,
    /// For each chunk, how many batches must have been read before anything but a move may overwrite it.
    free_after: Vec<u32>,
}

impl Moves {
    /// Iterates over the batches in the order in which they are read.
    pub fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        self.batches.iter().map(|(pieces, saves)| {
            let (start, end) = (self.moved.ends_before(pieces.start), self.moved.ends_before(pieces.end));
            Batch {
                moved: &self.moved,
                pieces: pieces.clone(),
                chunks: &self.moved.chunks[start.0 as usize..end.0 as usize],
                sources: &self.moved.sources[start.1 as usize..end.1 as usize],
                saves: &self.saves[saves.start as usize..saves.end as usize],
            }
        })
    }

    /// Iterates over the pieces, ascending by their chunks.
    pub fn pieces(&self) -> impl Iterator<Item = MovePiece<'_>> {
        (0..self.moved.count()).map(|number| self.moved.get(number))
    }

    /// Returns the most bytes that a batch reads.
    #[must_use]
    pub fn largest_read_bytes(&self) -> usize {
        self.batches().map(|batch| batch.sources.len()).max().unwrap_or_default() * BLOCK_SIZE_BYTES
    }

    /// Whether nothing is moved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moved.chunks.is_empty()
    }

    /// Returns how many batches must have been read before `chunk` may be overwritten with fetched content or zeros.
    #[must_use]
    pub fn free_after(&self, chunk: ChunkNo) -> u32 {
        self.free_after.get(chunk as usize).copied().unwrap_or_default()
    }
}

/// Orders the moves of `candidates` for an image of `chunk_count` chunks. Candidates that the result leaves out have to
/// be fetched.
pub(super) fn order(candidates: Candidates, chunk_count: u32, blocks_per_chunk: u32, max_blocks: usize) -> Moves {
    let users = Users::of(&candidates, blocks_per_chunk);
    let ordering = {
        let simulate = |descending| Ordering::new(&candidates, &users, blocks_per_chunk, descending, max_blocks);
        let (ascending, descending) = (simulate(false), simulate(true));
        // Which direction is cheaper depends on whether the content moved towards the end or towards the beginning.
        let cost = |ordering: &Ordering<'_>| (ordering.dropped_chunks(), ordering.ordered.peak);
        if cost(&descending) < cost(&ascending) { descending.ordered } else { ascending.ordered }
    };
    let free_after = ordering.free_after(&users, chunk_count);
    drop(users);
    ordering.into_moves(candidates, free_after)
}

/// The candidates that read each block, in one list for both directions: it is the largest of a plan.
struct Users(Vec<(BlockNo, u32)>);

impl Users {
    /// Collects source blocks, each with the number of a candidate that reads it, sorted. The blocks in the places of
    /// its own chunks are left out.
    fn of(candidates: &Candidates, per_chunk: u32) -> Self {
        // What is not used of it takes no memory.
        let mut users = Vec::with_capacity(candidates.sources.len());
        for number in 0..candidates.count() {
            let MovePiece { chunks, sources, .. } = candidates.get(number);
            let is_own = |block: BlockNo| chunks.binary_search(&(block / per_chunk)).is_ok();
            let foreign = sources.iter().filter(|source| **source != ZERO_SOURCE && !is_own(**source));
            users.extend(foreign.map(|source| (*source, number)));
        }
        users.sort_unstable();
        Self(users)
    }

    /// Returns the users of a block.
    fn of_block(&self, block: BlockNo) -> &[(BlockNo, u32)] {
        let users = &self.0[self.0.partition_point(|(other, _)| *other < block)..];
        &users[..users.iter().take_while(|(other, _)| *other == block).count()]
    }
}

/// Returns the blocks in the place of a chunk.
fn blocks_of(chunk: ChunkNo, per_chunk: u32) -> Range<BlockNo> {
    chunk * per_chunk..(chunk + 1) * per_chunk
}

/// The moves in one direction over the partition, simulated.
///
/// A user of a block is a candidate that reads it.
struct Ordering<'c> {
    candidates: &'c Candidates,
    users: &'c Users,
    ordered: Ordered,
}

/// The result of a simulation.
struct Ordered {
    per_chunk: u32,
    descending: bool,
    /// For each candidate, the batch that it is in.
    batch_of: Vec<u32>,
    /// The most blocks in the buffer at the same time.
    peak: usize,
    /// For each candidate, whether it was dropped because the buffer was full.
    dropped: Vec<bool>,
    /// Blocks to save, each with the last batch that needs it: those of one batch after those of the other.
    saves: Vec<(BlockNo, u32)>,
    /// For each batch, where its blocks to save end.
    ends: Vec<u32>,
}

impl<'c> Ordering<'c> {
    fn new(candidates: &'c Candidates, users: &'c Users, per_chunk: u32, descending: bool, max_blocks: usize) -> Self {
        let batch_of = candidates.batches(per_chunk, descending);
        let dropped = vec![false; candidates.count() as usize];
        let (saves, ends) = (Vec::new(), Vec::new());
        let ordered = Ordered { per_chunk, descending, batch_of, peak: 0, dropped, saves, ends };
        let mut ordering = Self { candidates, users, ordered };
        ordering.simulate(max_blocks);
        ordering
    }

    fn dropped_chunks(&self) -> usize {
        let dropped = (0..).zip(&self.ordered.dropped).filter(|(_, dropped)| **dropped);
        dropped.map(|(number, _)| self.candidates.get(number).chunks.len()).sum()
    }

    /// Returns the last batch that reads a block.
    fn last_reader(&self, block: BlockNo) -> Option<u32> {
        let mut readers = self.users.of_block(block).iter().filter(|(_, user)| !self.ordered.dropped[*user as usize]);
        let (_, last) = if self.ordered.descending { readers.next() } else { readers.next_back() }?;
        Some(self.ordered.batch_of[*last as usize])
    }

    /// Goes through the candidates in this direction, saves each block that one overwrites and a later batch reads, and
    /// drops the later readers where the buffer is full.
    fn simulate(&mut self, max_blocks: usize) {
        let (count, per_chunk) = (self.candidates.count(), self.ordered.per_chunk);
        let batches = self.ordered.batch_of.iter().max().map_or(0, |last| last + 1);
        let mut held = 0;
        // For each batch, the number of blocks that are no longer needed once it has begun.
        let mut released = vec![0; batches as usize + 1];
        let mut position = 0;
        for batch in 0..batches {
            held -= released[batch as usize];
            while position < count {
                let number = if self.ordered.descending { count - 1 - position } else { position };
                if self.ordered.batch_of[number as usize] != batch {
                    break;
                }
                position += 1;
                if self.ordered.dropped[number as usize] {
                    continue;
                }
                let chunks = self.candidates.get(number).chunks;
                for block in chunks.iter().flat_map(|chunk| blocks_of(*chunk, per_chunk)) {
                    let Some(until) = self.last_reader(block).filter(|until| *until > batch) else { continue };
                    if held == max_blocks {
                        self.drop_later_users(block, batch);
                        continue;
                    }
                    held += 1;
                    released[until as usize + 1] += 1;
                    self.ordered.saves.push((block, until));
                    self.ordered.peak = self.ordered.peak.max(held);
                }
            }
            self.ordered.end_batch();
        }
    }

    fn drop_later_users(&mut self, block: BlockNo, batch: u32) {
        for (_, user) in self.users.of_block(block) {
            if self.ordered.batch_of[*user as usize] > batch {
                self.ordered.dropped[*user as usize] = true;
            }
        }
    }
}

impl Ordered {
    #[expect(clippy::cast_possible_truncation, reason = "blocks are counted in u32")]
    fn end_batch(&mut self) {
        let start = self.ends.last().copied().unwrap_or_default() as usize;
        self.saves[start..].sort_unstable();
        self.ends.push(self.saves.len() as u32);
    }

    fn free_after(&self, users: &Users, chunk_count: u32) -> Vec<u32> {
        let mut free_after = vec![0; chunk_count as usize];
        for (block, user) in users.0.iter().filter(|(_, user)| !self.dropped[*user as usize]) {
            // Blocks beyond the image are never overwritten.
            if let Some(free_after) = free_after.get_mut((block / self.per_chunk) as usize) {
                *free_after = (*free_after).max(self.batch_of[*user as usize] + 1);
            }
        }
        free_after
    }

    /// Cuts the candidates that are left into batches. Chunks ascend within a batch in either direction, so that
    /// neighbours become one transfer.
    fn into_moves(self, mut moved: Candidates, free_after: Vec<u32>) -> Moves {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let saves = starts.zip(self.ends.iter().copied()).map(|(start, end)| start..end);
        let mut batches: Vec<(Range<u32>, Range<u32>)> = saves.map(|saves| (0..0, saves)).collect();
        let mut left = 0;
        for (dropped, batch) in self.dropped.iter().zip(&self.batch_of) {
            let pieces = &mut batches[*batch as usize].0;
            if pieces.start == pieces.end {
                *pieces = left..left;
            }
            if !dropped {
                left += 1;
                pieces.end = left;
            }
        }
        moved.drop_pieces(&self.dropped);
        let Self { saves, peak, .. } = self;
        Moves { peak_blocks: peak, moved, saves, batches, free_after }
    }
}
