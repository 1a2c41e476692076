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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Chunks that the batch writes, ascending.
    pub chunks: Vec<ChunkNo>,
    /// Sources of the blocks of each chunk, in the order of the chunks.
    pub sources: Vec<BlockNo>,
    /// Blocks to read into the buffer before this batch reads its sources, ascending, each with the last batch that
    /// needs it.
    pub saves: Vec<(BlockNo, u32)>,
}

/// All batches of a plan, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves {
    /// Batches in the order in which they are read.
    pub batches: Vec<Batch>,
    /// The most blocks that wait in the buffer at the same time.
    pub peak_blocks: usize,
    /// For each chunk, how many batches must have been read before anything but a move may overwrite it.
    free_after: Vec<u32>,
}

impl Moves {
    /// Returns how many batches must have been read before `chunk` may be overwritten with fetched content or zeros.
    #[must_use]
    pub fn free_after(&self, chunk: ChunkNo) -> u32 {
        self.free_after.get(chunk as usize).copied().unwrap_or_default()
    }
}

/// Chunks that can be put together from blocks of the partition.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The chunks, ascending.
    pub chunks: Vec<ChunkNo>,
    /// Sources of the blocks of each chunk: `blocks_per_chunk` for every one.
    pub sources: Vec<BlockNo>,
}

/// Orders the moves of `candidates` for an image of `chunk_count` chunks. Candidates that the result leaves out have to
/// be fetched.
pub(super) fn order(candidates: &Candidates, chunk_count: u32, blocks_per_chunk: u32, max_blocks: usize) -> Moves {
    let simulate = |descending| Ordering::new(candidates, blocks_per_chunk, descending, max_blocks);
    let (ascending, descending) = (simulate(false), simulate(true));
    // Which direction is cheaper depends on whether the content moved towards the end or towards the beginning.
    let cost = |ordering: &Ordering<'_>| (ordering.dropped_count(), ordering.peak);
    let better = if cost(&descending) < cost(&ascending) { descending } else { ascending };
    better.into_moves(chunk_count)
}

/// The moves in one direction over the partition, simulated.
///
/// A position counts the candidates in this direction; a user of a block is a candidate that reads it.
struct Ordering<'c> {
    candidates: &'c Candidates,
    per_chunk: u32,
    per_batch: u32,
    descending: bool,
    /// Source blocks, each with the position that reads it, sorted. The blocks in a chunk's own place are left out.
    users: Vec<(BlockNo, u32)>,
    /// For each position, whether it was dropped because the buffer was full.
    dropped: Vec<bool>,
    /// For each batch, the blocks to save and the last batch that needs each.
    saves: Vec<Vec<(BlockNo, u32)>>,
    /// The most blocks in the buffer at the same time.
    peak: usize,
}

impl<'c> Ordering<'c> {
    fn new(candidates: &'c Candidates, per_chunk: u32, descending: bool, max_blocks: usize) -> Self {
        let count = candidates.count();
        let per_batch = (BATCH_BYTES / (per_chunk * BLOCK_SIZE_U32)).max(1);
        let batches = count.div_ceil(per_batch);
        let mut ordering = Self {
            candidates,
            per_chunk,
            per_batch,
            descending,
            users: Vec::new(),
            dropped: vec![false; count as usize],
            saves: vec![Vec::new(); batches as usize],
            peak: 0,
        };
        for position in 0..count {
            let (chunk, sources) = ordering.candidate(position);
            let own = ordering.blocks_of(chunk);
            let foreign = sources.iter().filter(|source| **source != ZERO_SOURCE && !own.contains(source));
            ordering.users.extend(foreign.map(|source| (*source, position)));
        }
        ordering.users.sort_unstable();
        ordering.simulate(max_blocks);
        ordering
    }

    /// Returns the chunk at a position and the sources of its blocks.
    fn candidate(&self, position: u32) -> (ChunkNo, &'c [BlockNo]) {
        let number = if self.descending { self.candidates.count() - 1 - position } else { position } as usize;
        let per_chunk = self.per_chunk as usize;
        (self.candidates.chunks[number], &self.candidates.sources[number * per_chunk..][..per_chunk])
    }

    /// Returns the blocks in the place of a chunk.
    fn blocks_of(&self, chunk: ChunkNo) -> Range<BlockNo> {
        chunk * self.per_chunk..(chunk + 1) * self.per_chunk
    }

    fn batch_of(&self, position: u32) -> u32 {
        position / self.per_batch
    }

    fn dropped_count(&self) -> usize {
        self.dropped.iter().filter(|dropped| **dropped).count()
    }

    /// Returns the place of a block's users in `users`.
    fn users_of(&self, block: BlockNo) -> Range<usize> {
        let start = self.users.partition_point(|(other, _)| *other < block);
        start..start + self.users[start..].iter().take_while(|(other, _)| *other == block).count()
    }

    /// Returns the last batch that reads a block.
    fn last_reader(&self, block: BlockNo) -> Option<u32> {
        let users = &self.users[self.users_of(block)];
        let (_, position) = users.iter().rev().find(|(_, position)| !self.dropped[*position as usize])?;
        Some(self.batch_of(*position))
    }

    /// Goes through the positions, saves each block that a chunk overwrites and a later batch reads, and drops the
    /// later readers where the buffer is full.
    fn simulate(&mut self, max_blocks: usize) {
        let mut held = 0;
        // For each batch, the number of blocks that are no longer needed once it has begun.
        let mut released = vec![0; self.saves.len() + 1];
        for position in 0..self.candidates.count() {
            let batch = self.batch_of(position);
            if position.is_multiple_of(self.per_batch) {
                held -= released[batch as usize];
            }
            let (chunk, _) = self.candidate(position);
            if self.dropped[position as usize] {
                continue;
            }
            for block in self.blocks_of(chunk) {
                let Some(until) = self.last_reader(block).filter(|until| *until > batch) else { continue };
                if held == max_blocks {
                    self.drop_later_users(block, batch);
                    continue;
                }
                held += 1;
                released[until as usize + 1] += 1;
                self.saves[batch as usize].push((block, until));
                self.peak = self.peak.max(held);
            }
        }
    }

    fn drop_later_users(&mut self, block: BlockNo, batch: u32) {
        for user in self.users_of(block) {
            let position = self.users[user].1;
            if self.batch_of(position) > batch {
                self.dropped[position as usize] = true;
            }
        }
    }

    fn into_moves(mut self, chunk_count: u32) -> Moves {
        let mut batches: Vec<Batch> = self
            .saves
            .iter_mut()
            .map(|saves| {
                saves.sort_unstable();
                Batch { saves: std::mem::take(saves), ..Batch::default() }
            })
            .collect();
        // Chunks ascend within a batch in either direction, so that neighbours become one transfer.
        let count = self.candidates.count();
        for number in 0..count {
            let position = if self.descending { count - 1 - number } else { number };
            if !self.dropped[position as usize] {
                let (chunk, sources) = self.candidate(position);
                let batch = &mut batches[self.batch_of(position) as usize];
                batch.chunks.push(chunk);
                batch.sources.extend_from_slice(sources);
            }
        }
        let mut free_after = vec![0; chunk_count as usize];
        for (block, position) in self.users.iter().filter(|(_, position)| !self.dropped[*position as usize]) {
            // Blocks beyond the image are never overwritten.
            if let Some(free_after) = free_after.get_mut((block / self.per_chunk) as usize) {
                *free_after = (*free_after).max(position / self.per_batch + 1);
            }
        }
        Moves { batches, peak_blocks: self.peak, free_after }
    }
}

impl Candidates {
    #[expect(clippy::cast_possible_truncation, reason = "an index counts its chunks in u32")]
    fn count(&self) -> u32 {
        self.chunks.len() as u32
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
