//! The order in which content is moved within a partition, so that nothing is overwritten that is still needed.
//!
//! Chunks that are moved are put together in batches. All sources of a batch are read before the batch is written, so
//! only what a *later* batch needs can be lost: such blocks are read into a buffer before the batch that overwrites
//! them. The buffer is bounded; where it would overflow, the chunks that need the block are fetched instead.
//!
//! Scan needs nothing of writing: a batch reads only blocks that no batch before it overwrites (those come from the
//! buffer), so the reader may run ahead of the writers as far as it likes.

use crate::release::index::ChunkNo;
use crate::release::weak_hashes::WeakHash;

/// A block of the partition, counted from its beginning in units of 4096 bytes.
pub type BlockNo = u32;

/// In place of a source: the block is all zeros.
pub const ZERO_SOURCE: BlockNo = u32::MAX;

/// Bytes of the partition that one batch writes: large transfers, and little memory for the few in flight.
pub const BATCH_BYTES: u64 = 2 * 1024 * 1024;

/// Blocks that may wait in the buffer: 24 MiB.
pub const MAX_BUFFERED_BLOCKS: usize = 6 * 1024;

/// Chunks that are put together and written together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// What is written, ascending.
    pub chunks: Vec<ChunkNo>,
    /// For each chunk the sources of its blocks.
    pub sources: Vec<BlockNo>,
    /// Blocks to read into the buffer before this batch reads its sources, ascending, and the last batch that needs
    /// them.
    pub saves: Vec<(BlockNo, u32)>,
}

/// All batches in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves {
    /// The batches.
    pub batches: Vec<Batch>,
    /// The most blocks that wait in the buffer at a time.
    pub peak_blocks: usize,
    /// By chunk: how many batches must have been read before it may be overwritten by something that is not a move.
    free_after: Vec<u32>,
}

impl Moves {
    /// How many batches must have been read before `chunk` may be overwritten with fetched content or zeros.
    #[must_use]
    pub fn free_after(&self, chunk: ChunkNo) -> u32 {
        self.free_after.get(chunk as usize).copied().unwrap_or_default()
    }
}

/// Chunks that can be put together from blocks of the partition.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Ascending.
    pub chunks: Vec<ChunkNo>,
    /// `blocks_per_chunk` for each chunk.
    pub sources: Vec<BlockNo>,
}

/// Orders the moves of `candidates` for an image of `chunk_count` chunks. Candidates that do not appear have to be
/// fetched.
pub(super) fn order(candidates: &Candidates, chunk_count: u32, blocks_per_chunk: u32, max_blocks: usize) -> Moves {
    let one = |descending| Ordering::new(candidates, blocks_per_chunk, descending, max_blocks);
    let (ascending, descending) = (one(false), one(true));
    // Content that moved towards the end wants the one, content that moved towards the beginning the other.
    let cost = |ordering: &Ordering<'_>| (ordering.dropped_count(), ordering.peak);
    let better = if cost(&descending) < cost(&ascending) { descending } else { ascending };
    better.finish(chunk_count)
}

/// One direction, simulated.
struct Ordering<'c> {
    candidates: &'c Candidates,
    per_chunk: u32,
    per_batch: u32,
    descending: bool,
    /// Source block and the position in the order that reads it, sorted. Blocks of the chunk itself are left out.
    users: Vec<(BlockNo, u32)>,
    /// By position.
    dropped: Vec<bool>,
    /// By batch.
    saves: Vec<Vec<(BlockNo, u32)>>,
    peak: usize,
}

impl<'c> Ordering<'c> {
    fn new(candidates: &'c Candidates, per_chunk: u32, descending: bool, max_blocks: usize) -> Self {
        let count = candidates.chunks.len();
        let per_batch = (BATCH_BYTES / (u64::from(per_chunk) * 4096)).max(1) as u32;
        let batches = count.div_ceil(per_batch as usize);
        let mut ordering = Self {
            candidates,
            per_chunk,
            per_batch,
            descending,
            users: Vec::new(),
            dropped: vec![false; count],
            saves: vec![Vec::new(); batches],
            peak: 0,
        };
        for position in 0..count as u32 {
            let (chunk, sources) = ordering.at(position);
            let own = chunk * per_chunk..(chunk + 1) * per_chunk;
            let foreign = sources.iter().filter(|source| **source != ZERO_SOURCE && !own.contains(source));
            ordering.users.extend(foreign.map(|source| (*source, position)));
        }
        ordering.users.sort_unstable();
        ordering.simulate(max_blocks);
        ordering
    }

    fn at(&self, position: u32) -> (ChunkNo, &'c [BlockNo]) {
        let last = self.candidates.chunks.len() - 1;
        let which = if self.descending { last - position as usize } else { position as usize };
        let per_chunk = self.per_chunk as usize;
        (self.candidates.chunks[which], &self.candidates.sources[which * per_chunk..][..per_chunk])
    }

    fn batch_of(&self, position: u32) -> u32 {
        position / self.per_batch
    }

    fn dropped_count(&self) -> usize {
        self.dropped.iter().filter(|dropped| **dropped).count()
    }

    /// Where in `users` a block's users are.
    fn users_of(&self, block: BlockNo) -> std::ops::Range<usize> {
        let start = self.users.partition_point(|(other, _)| *other < block);
        start..start + self.users[start..].iter().take_while(|(other, _)| *other == block).count()
    }

    /// The last batch that reads a block.
    fn last_reader(&self, block: BlockNo) -> Option<u32> {
        let users = &self.users[self.users_of(block)];
        let (_, position) = users.iter().rev().find(|(_, position)| !self.dropped[*position as usize])?;
        Some(self.batch_of(*position))
    }

    fn simulate(&mut self, max_blocks: usize) {
        let mut held = 0;
        // By batch: blocks that are no longer needed once it is begun.
        let mut released = vec![0; self.saves.len() + 1];
        for position in 0..self.candidates.chunks.len() as u32 {
            let batch = self.batch_of(position);
            if position.is_multiple_of(self.per_batch) {
                held -= released[batch as usize];
            }
            let (chunk, _) = self.at(position);
            if self.dropped[position as usize] {
                continue;
            }
            for block in chunk * self.per_chunk..(chunk + 1) * self.per_chunk {
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

    fn finish(mut self, chunk_count: u32) -> Moves {
        let mut batches: Vec<Batch> = self
            .saves
            .iter_mut()
            .map(|saves| {
                saves.sort_unstable();
                Batch { saves: std::mem::take(saves), ..Batch::default() }
            })
            .collect();
        // Ascending within a batch in either direction: then neighbours are one transfer.
        let count = self.candidates.chunks.len() as u32;
        for which in 0..count {
            let position = if self.descending { count - 1 - which } else { which };
            if !self.dropped[position as usize] {
                let (chunk, sources) = self.at(position);
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

/// Where on the partition a weak hash is found: open addressing over the blocks' numbers, a quarter of what a `HashMap` of
/// weak hashes takes.
pub(super) struct Places<'a> {
    blocks: &'a [WeakHash],
    slots: Vec<BlockNo>,
}

impl<'a> Places<'a> {
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

    /// The slot that holds a block with this weak hash, or the free one where it would be.
    fn slot(&self, weak_hash: WeakHash) -> usize {
        // XXH3's low bits are as good as random.
        let mask = self.slots.len() - 1;
        let mut slot = weak_hash.bits() as usize & mask;
        while self.slots[slot] != u32::MAX && self.blocks[self.slots[slot] as usize] != weak_hash {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// A block with this content, if there is one: the one at `preferred`, if that is one.
    pub fn find(&self, weak_hash: WeakHash, preferred: &[BlockNo]) -> Option<BlockNo> {
        let is_there = |block: &&BlockNo| **block != 0 && self.blocks.get(**block as usize) == Some(&weak_hash);
        if let Some(block) = preferred.iter().find(is_there) {
            return Some(*block);
        }
        Some(self.slots[self.slot(weak_hash)]).filter(|block| *block != u32::MAX)
    }
}
