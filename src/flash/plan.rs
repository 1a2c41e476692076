//! What has to happen to a partition so that it equals an image: index x what is there -> plan. Pure.

mod comparison;
mod moves;
mod patched;
mod requests;

use crate::record::totals::Totals;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};
use crate::release::weak_hashes::{WeakHash, WeakHashes};

pub use comparison::{Blocks, Comparison};
pub use moves::{BATCH_BYTES, Batch, BlockNo, MAX_BUFFERED_BLOCKS, Moves, ZERO_SOURCE};
use moves::{Candidates, Places};
pub use patched::Patched;
pub(crate) use requests::coalesce;
pub use requests::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, Request};

/// What to do. Chunks that are right do not appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Chunks to fill with zeros, ascending.
    pub zero: Vec<ChunkNo>,
    /// Chunks to put together from what is on the partition.
    pub moves: Moves,
    /// What to fetch, in pack order.
    pub requests: Vec<Request>,
    /// Which of it is fetched as patches, if any is.
    pub patched: Option<Patched>,
    /// Chunks that each fetched stored chunk goes to: sorted by stored chunk, then by chunk.
    destinations: Vec<(StoredChunkNo, ChunkNo)>,
    /// Quantities, for people and for progress.
    pub totals: Totals,
}

/// What is known of the partition beyond the chunks that are right.
#[derive(Debug, Clone, Copy)]
pub struct FoundBlocks<'a> {
    /// What is looked for.
    pub weak_hashes: &'a WeakHashes,
    /// What is there.
    pub blocks: &'a Blocks,
}

impl Plan {
    /// Compares what should be with what is. Without `found` nothing is moved, without `patched` nothing patched; what
    /// can be moved costs least.
    #[must_use]
    pub fn new(
        index: &Index,
        comparison: &Comparison,
        found: Option<FoundBlocks<'_>>,
        patched: Option<Patched>,
    ) -> Self {
        Self::with_buffer(index, comparison, found, patched, MAX_BUFFERED_BLOCKS)
    }

    fn with_buffer(
        index: &Index,
        comparison: &Comparison,
        found: Option<FoundBlocks<'_>>,
        patched: Option<Patched>,
        max_blocks: usize,
    ) -> Self {
        let per_chunk = index.chunk_bytes() / BLOCK_SIZE_BYTES as u32;
        let candidates = found.map(|found| candidates(index, comparison, found)).unwrap_or_default();
        let moves = moves::order(&candidates, index.chunk_count(), per_chunk, max_blocks);
        drop(candidates);
        let mut moved = vec![false; index.chunk_count() as usize];
        moves.batches.iter().flat_map(|batch| &batch.chunks).for_each(|chunk| moved[*chunk as usize] = true);

        let mut totals = Totals { image_bytes: index.image_bytes(), ..Totals::default() };
        let mut zero = Vec::new();
        let mut destinations = Vec::new();
        for chunk in 0..index.chunk_count() {
            let range = index.chunk_range(chunk);
            let size = range.end - range.start;
            match index.chunk_content(chunk) {
                _ if comparison.is_right(chunk) => totals.right_bytes += size,
                _ if moved[chunk as usize] => totals.move_bytes += size,
                ChunkContent::Zero => {
                    totals.zero_bytes += size;
                    zero.push(chunk);
                }
                ChunkContent::Stored(stored) => {
                    totals.write_bytes += size;
                    destinations.push((stored, chunk));
                }
            }
        }
        destinations.sort_unstable();
        let mut needed: Vec<StoredChunkNo> = destinations.iter().map(|(stored, _)| *stored).collect();
        needed.dedup();
        let requests = coalesce(patched.as_ref().map_or(index, |patched| &patched.index), &needed);
        totals.download_bytes = requests.iter().map(|request| request.range.end - request.range.start).sum();
        Self { zero, moves, requests, patched, destinations, totals }
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.totals.changed_bytes() == 0
    }

    /// Chunks of the image that a fetched stored chunk has to be written to.
    pub fn destinations(&self, stored: StoredChunkNo) -> impl Iterator<Item = ChunkNo> {
        let start = self.destinations.partition_point(|(other, _)| *other < stored);
        self.destinations[start..].iter().take_while(move |(other, _)| *other == stored).map(|(_, chunk)| *chunk)
    }
}

/// Chunks whose every block is somewhere on the partition. Chunk 0 is not among them: its first block is blanked first
/// and written last.
fn candidates(index: &Index, comparison: &Comparison, found: FoundBlocks<'_>) -> Candidates {
    let per_chunk = index.chunk_bytes() / BLOCK_SIZE_BYTES as u32;
    let places = Places::new(found.blocks.as_slice());
    let mut candidates = Candidates::default();
    let mut next = ZERO_SOURCE;
    for chunk in (1..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)) {
        let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { continue };
        let Some(weak_hashes) = found.weak_hashes.of(stored) else { continue };
        let start = candidates.sources.len();
        for (weak_hash, own) in weak_hashes.zip(chunk * per_chunk..) {
            // In place costs least; after that what goes on where the block before came from, for long transfers.
            let source =
                if weak_hash == WeakHash::NONE { Some(ZERO_SOURCE) } else { places.find(weak_hash, &[own, next]) };
            let Some(source) = source else { break };
            next = if source == ZERO_SOURCE { ZERO_SOURCE } else { source + 1 };
            candidates.sources.push(source);
        }
        if candidates.sources.len() == start + per_chunk as usize {
            candidates.chunks.push(chunk);
        } else {
            candidates.sources.truncate(start);
        }
    }
    candidates
}

#[cfg(test)]
pub(crate) mod tests;
