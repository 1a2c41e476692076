//! The order in which content is moved within a partition, so that nothing is overwritten that is still needed.
//!
//! Chunks that are moved are put together in batches. All sources of a batch are read before the batch is written, so
//! only what a *later* batch needs can be lost: such blocks are read into a buffer before the batch that overwrites
//! them. The buffer is bounded; where it would overflow, the chunks that need the block are fetched instead.
//!
//! Reading does not depend on writing: a batch reads only blocks that no batch before it overwrites (those come from
//! the buffer), so the reader may run ahead of the writers as far as it likes.

use std::ops::Range;

use crate::release::digest::BLOCK_SIZE_U32;
use crate::release::index::ChunkNo;
use crate::release::weak_hashes::WeakHash;

/// A block of the partition, counted from its beginning in units of 4096 bytes.
pub type BlockNo = u32;

/// Stands in place of a source when the block is all zeros.
pub const ZERO_SOURCE: BlockNo = u32::MAX;

/// Bytes of the partition that one batch writes: large transfers, and little memory for the few batches in flight.
pub const BATCH_BYTES: u32 = 2 * 1024 * 1024;

/// The most blocks that may wait in the buffer: 24 MiB.
pub const MAX_BUFFERED_BLOCKS: usize = 6 * 1024;

/// Chunks that are put together and written together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Chunks that the batch writes, ascending.
    pub chunks: &'a [ChunkNo],
    /// Sources of the blocks of each chunk, in the order of the chunks.
    pub sources: &'a [BlockNo],
    /// Blocks to read into the buffer before this batch reads its sources, ascending, each with the last batch that
    /// needs it.
    pub saves: &'a [(BlockNo, u32)],
}

/// All batches of a plan. An image may have two million blocks to move, so they lie in one list each, of which a batch
/// is a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves {
    /// The most blocks that wait in the buffer at the same time.
    pub peak_blocks: usize,
    /// The chunks, ascending, and the sources of their blocks.
    moved: Candidates,
    per_chunk: u32,
    saves: Vec<(BlockNo, u32)>,
    /// The parts of `moved` and of `saves` that each batch has, in the order in which they are read.
    batches: Vec<(Range<u32>, Range<u32>)>,
    /// For each chunk, how many batches must have been read before anything but a move may overwrite it.
    free_after: Vec<u32>,
}

impl Moves {
    /// Iterates over the batches in the order in which they are read.
    pub fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        let per_chunk = self.per_chunk as usize;
        self.batches.iter().map(move |(chunks, saves)| {
            let (start, end) = (chunks.start as usize, chunks.end as usize);
            Batch {
                chunks: &self.moved.chunks[start..end],
                sources: &self.moved.sources[start * per_chunk..end * per_chunk],
                saves: &self.saves[saves.start as usize..saves.end as usize],
            }
        })
    }

    /// Whether nothing is moved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moved.chunks.is_empty()
    }

    /// Returns the chunks that are moved, ascending.
    #[must_use]
    pub fn chunks(&self) -> &[ChunkNo] {
        &self.moved.chunks
    }

    /// Returns how many batches must have been read before `chunk` may be overwritten with fetched content or zeros.
    #[must_use]
    pub fn free_after(&self, chunk: ChunkNo) -> u32 {
        self.free_after.get(chunk as usize).copied().unwrap_or_default()
    }
}

/// Chunks that can be put together from blocks of the partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Candidates {
    /// The chunks, ascending.
    pub chunks: Vec<ChunkNo>,
    /// Sources of the blocks of each chunk: `blocks_per_chunk` for every one.
    pub sources: Vec<BlockNo>,
}

/// Orders the moves of `candidates` for an image of `chunk_count` chunks. Candidates that the result leaves out have to
/// be fetched.
pub(super) fn order(candidates: Candidates, chunk_count: u32, blocks_per_chunk: u32, max_blocks: usize) -> Moves {
    let users = Users::of(&candidates, blocks_per_chunk);
    let ordering = {
        let simulate = |descending| Ordering::new(&candidates, &users, blocks_per_chunk, descending, max_blocks);
        let (ascending, descending) = (simulate(false), simulate(true));
        // Which direction is cheaper depends on whether the content moved towards the end or towards the beginning.
        let cost = |ordering: &Ordering<'_>| (ordering.dropped_count(), ordering.ordered.peak);
        if cost(&descending) < cost(&ascending) { descending.ordered } else { ascending.ordered }
    };
    let free_after = ordering.free_after(&users, chunk_count);
    drop(users);
    ordering.into_moves(candidates, free_after)
}

/// The candidates that read each block, in one list for both directions: it is the largest of a plan.
struct Users(Vec<(BlockNo, u32)>);

impl Users {
    /// Collects source blocks, each with the number of a candidate that reads it, sorted. The blocks in a chunk's own
    /// place are left out.
    fn of(candidates: &Candidates, per_chunk: u32) -> Self {
        // What is not used of it takes no memory.
        let mut users = Vec::with_capacity(candidates.sources.len());
        for number in 0..candidates.count() {
            let (chunk, sources) = candidates.get(number, per_chunk);
            let own = blocks_of(chunk, per_chunk);
            let foreign = sources.iter().filter(|source| **source != ZERO_SOURCE && !own.contains(source));
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
/// A position counts the candidates in this direction; a user of a block is a candidate that reads it.
struct Ordering<'c> {
    candidates: &'c Candidates,
    users: &'c Users,
    ordered: Ordered,
}

/// The result of a simulation.
struct Ordered {
    count: u32,
    per_chunk: u32,
    per_batch: u32,
    descending: bool,
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
        let count = candidates.count();
        let per_batch = (BATCH_BYTES / (per_chunk * BLOCK_SIZE_U32)).max(1);
        let dropped = vec![false; count as usize];
        let (saves, ends) = (Vec::new(), Vec::new());
        let ordered = Ordered { count, per_chunk, per_batch, descending, peak: 0, dropped, saves, ends };
        let mut ordering = Self { candidates, users, ordered };
        ordering.simulate(max_blocks);
        ordering
    }

    fn dropped_count(&self) -> usize {
        self.ordered.dropped.iter().filter(|dropped| **dropped).count()
    }

    /// Returns the last batch that reads a block.
    fn last_reader(&self, block: BlockNo) -> Option<u32> {
        let mut readers = self.users.of_block(block).iter().filter(|(_, user)| !self.ordered.dropped[*user as usize]);
        let (_, last) = if self.ordered.descending { readers.next() } else { readers.next_back() }?;
        Some(self.ordered.batch_of(*last))
    }

    /// Goes through the positions, saves each block that a chunk overwrites and a later batch reads, and drops the
    /// later readers where the buffer is full.
    fn simulate(&mut self, max_blocks: usize) {
        let Ordered { count, per_batch, per_chunk, .. } = self.ordered;
        let batches = count.div_ceil(per_batch);
        let mut held = 0;
        // For each batch, the number of blocks that are no longer needed once it has begun.
        let mut released = vec![0; batches as usize + 1];
        for batch in 0..batches {
            held -= released[batch as usize];
            for position in batch * per_batch..((batch + 1) * per_batch).min(count) {
                let number = self.ordered.number(position);
                if self.ordered.dropped[number as usize] {
                    continue;
                }
                for block in blocks_of(self.candidates.chunks[number as usize], per_chunk) {
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
            if self.ordered.batch_of(*user) > batch {
                self.ordered.dropped[*user as usize] = true;
            }
        }
    }
}

impl Ordered {
    /// Returns the number of the candidate at a position, or the position of a candidate.
    fn number(&self, position: u32) -> u32 {
        if self.descending { self.count - 1 - position } else { position }
    }

    /// Returns the batch of a candidate.
    fn batch_of(&self, number: u32) -> u32 {
        self.number(number) / self.per_batch
    }

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
                *free_after = (*free_after).max(self.batch_of(*user) + 1);
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
        for number in 0..self.count {
            let chunks = &mut batches[self.batch_of(number) as usize].0;
            if chunks.start == chunks.end {
                *chunks = left..left;
            }
            if !self.dropped[number as usize] {
                moved.put(left, number, self.per_chunk);
                left += 1;
                chunks.end = left;
            }
        }
        moved.truncate(left, self.per_chunk);
        let Self { per_chunk, saves, peak, .. } = self;
        Moves { peak_blocks: peak, moved, per_chunk, saves, batches, free_after }
    }
}

impl Candidates {
    #[expect(clippy::cast_possible_truncation, reason = "an index counts its chunks in u32")]
    fn count(&self) -> u32 {
        self.chunks.len() as u32
    }

    /// Returns the chunk of a candidate and the sources of its blocks.
    fn get(&self, number: u32, per_chunk: u32) -> (ChunkNo, &[BlockNo]) {
        let (number, per_chunk) = (number as usize, per_chunk as usize);
        (self.chunks[number], &self.sources[number * per_chunk..][..per_chunk])
    }

    /// Puts a candidate in the place of one at or before its own.
    fn put(&mut self, to: u32, from: u32, per_chunk: u32) {
        let (to, from, per_chunk) = (to as usize, from as usize, per_chunk as usize);
        if to != from {
            self.chunks[to] = self.chunks[from];
            self.sources.copy_within(from * per_chunk..(from + 1) * per_chunk, to * per_chunk);
        }
    }

    fn truncate(&mut self, count: u32, per_chunk: u32) {
        self.chunks.truncate(count as usize);
        self.sources.truncate(count as usize * per_chunk as usize);
    }
}

/// A table of where on the partition each weak hash is found. It is an open-addressing table of block numbers, and
/// takes a quarter of the memory of a `HashMap` of weak hashes.
pub(super) struct Places<'a> {
    blocks: &'a [WeakHash],
    /// Block numbers, and `u32::MAX` in free slots.
    slots: Vec<BlockNo>,
}

impl<'a> Places<'a> {
    /// Builds the table. Of equal blocks the first is kept.
    pub fn new(blocks: &'a [WeakHash]) -> Self {
        let slots = vec![u32::MAX; (blocks.len() * 2).next_power_of_two()];
        let mut places = Self { blocks, slots };
        // Block 0 is the superblock, which is blanked before anything is moved.
        for (block, weak_hash) in (0..).zip(blocks).skip(1).filter(|(_, weak_hash)| **weak_hash != WeakHash::NONE) {
            let slot = places.slot(*weak_hash);
            if places.slots[slot] == u32::MAX {
                places.slots[slot] = block;
            }
        }
        places
    }

    /// Returns the slot that holds a block with this weak hash, or the free slot where it would be.
    fn slot(&self, weak_hash: WeakHash) -> usize {
        // XXH3's low bits are as good as random.
        let mask = self.slots.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "the mask keeps only bits that a usize has")]
        let mut slot = weak_hash.bits() as usize & mask;
        while self.slots[slot] != u32::MAX && self.blocks[self.slots[slot] as usize] != weak_hash {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Returns a block with this weak hash, if there is one, and one of `preferred` if such a block is among them.
    pub fn find(&self, weak_hash: WeakHash, preferred: &[BlockNo]) -> Option<BlockNo> {
        let is_there = |block: &&BlockNo| **block != 0 && self.blocks.get(**block as usize) == Some(&weak_hash);
        if let Some(block) = preferred.iter().find(is_there) {
            return Some(*block);
        }
        Some(self.slots[self.slot(weak_hash)]).filter(|block| *block != u32::MAX)
    }
}
