//! Plans what has to happen to a partition so that it equals an image. Pure.
//!
//! The index says what each chunk must hold, and a [`Comparison`] which chunks the partition holds already. For the
//! others the plan chooses the cheapest way: zero them, put them together from blocks of the partition, or fetch them,
//! as a patch where one fits.

mod comparison;
mod moves;
mod patched;
mod requests;

use crate::record::totals::Totals;
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};
use crate::release::weak_hashes::{MAX_BLOCKS, WeakHash, WeakHashes};

pub use comparison::{Blocks, Comparison};
pub use moves::{BATCH_BYTES, Batch, BlockNo, MAX_BUFFERED_BLOCKS, Moves, ZERO_SOURCE};
use moves::{Candidates, Places};
pub(crate) use patched::ChunkPlaces;
pub use patched::{FramePlace, Patched};
pub(crate) use requests::coalesce;
pub use requests::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, Request};

/// A plan: what to do with each chunk. Chunks that are right do not appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Chunks to fill with zeros, ascending.
    pub zero: Vec<ChunkNo>,
    /// Whether zeros are written, and not left to the device's command to zero: what it zeroed has read back wrong.
    pub zero_by_writing: bool,
    /// Chunks to put together from blocks of the partition.
    pub moves: Moves,
    /// Requests for what has to be fetched, in pack order.
    pub requests: Vec<Request>,
    /// Chunks that are fetched as patches, if there are any.
    pub patched: Option<Patched>,
    /// Fetched stored chunks, each with a chunk to write it to: sorted by stored chunk, then by chunk.
    destinations: Vec<(StoredChunkNo, ChunkNo)>,
    /// Quantities of the plan, for people and for progress.
    pub totals: Totals,
}

/// Blocks that were found on the partition beside the chunks that are right. A plan needs them only until it knows
/// which chunks can be moved, and they are large.
#[derive(Debug, Clone)]
pub struct FoundBlocks {
    /// Weak hashes of the release: what is looked for.
    pub weak_hashes: WeakHashes,
    /// Weak hashes of the partition: where it may be.
    pub blocks: Blocks,
}

/// Content that a plan may use to fetch less. The default uses none.
#[derive(Debug, Clone, Default)]
pub struct Reuse {
    /// Blocks on the partition, to put chunks together from. Nothing is moved without them.
    pub found: Option<FoundBlocks>,
    /// Patches that fit the partition. Chunks are fetched whole without them.
    pub patched: Option<Patched>,
}

impl Plan {
    /// Plans the writing of all chunks that are not right. What can be moved is moved, since that costs least.
    #[must_use]
    pub fn new(index: &Index, comparison: &Comparison, reuse: Reuse) -> Self {
        Self::with_buffer(index, comparison, reuse, MAX_BUFFERED_BLOCKS)
    }

    /// Plans with room for `max_blocks` blocks in the buffer of the moves.
    fn with_buffer(index: &Index, comparison: &Comparison, reuse: Reuse, max_blocks: usize) -> Self {
        let Reuse { found, patched } = reuse;
        let candidates = found.map(|found| candidates(index, comparison, found)).unwrap_or_default();
        let moves = moves::order(candidates, index.chunk_count(), index.blocks_per_chunk(), max_blocks);
        let mut moved = vec![false; index.chunk_count() as usize];
        moves.chunks().iter().for_each(|chunk| moved[*chunk as usize] = true);

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
        let requests = coalesce(ChunkPlaces::with(index, patched.as_ref()), &needed);
        let (local, network): (Vec<&Request>, Vec<&Request>) =
            requests.iter().partition(|request| patched.as_ref().is_some_and(|patched| patched.is_local(request.pack)));
        let sum =
            |requests: Vec<&Request>| requests.iter().map(|request| request.range.end - request.range.start).sum();
        (totals.kept_bytes, totals.download_bytes) = (sum(local), sum(network));
        Self { zero, zero_by_writing: false, moves, requests, patched, destinations, totals }
    }

    /// Plans with little room in the buffer of the moves, for a fuzz target, whose partitions would never fill the real
    /// one.
    #[cfg(feature = "fuzzing")]
    #[must_use]
    pub fn with_small_buffer(index: &Index, comparison: &Comparison, reuse: Reuse, blocks: usize) -> Self {
        Self::with_buffer(index, comparison, reuse, blocks)
    }

    /// Returns the same plan, in which zeros are written as any other content is.
    #[must_use]
    pub fn with_zeros_written(self) -> Self {
        Self { zero_by_writing: true, ..self }
    }

    /// Whether the partition is right already and nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.totals.changed_bytes() == 0
    }

    /// Whether a request reads what is kept on the partition itself.
    #[must_use]
    pub fn is_local(&self, request: &Request) -> bool {
        self.patched.as_ref().is_some_and(|patched| patched.is_local(request.pack))
    }

    /// Iterates over the chunks of the image that a fetched stored chunk has to be written to.
    pub fn destinations(&self, stored: StoredChunkNo) -> impl Iterator<Item = ChunkNo> {
        let start = self.destinations.partition_point(|(other, _)| *other < stored);
        self.destinations[start..].iter().take_while(move |(other, _)| *other == stored).map(|(_, chunk)| *chunk)
    }
}

/// Finds the chunks whose every block is somewhere on the partition. Chunk 0 is not among them: its first block is
/// blanked first and written last.
fn candidates(index: &Index, comparison: &Comparison, found: FoundBlocks) -> Candidates {
    let per_chunk = index.blocks_per_chunk();
    let places = Places::new(found.blocks.as_slice());
    let wrong = (1..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)).count();
    // What is not used of it takes no memory.
    let sources = Vec::with_capacity((wrong * per_chunk as usize).min(MAX_BLOCKS));
    let mut candidates = Candidates { chunks: Vec::new(), sources };
    let mut next = ZERO_SOURCE;
    for chunk in (1..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)) {
        let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { continue };
        let Some(weak_hashes) = found.weak_hashes.of(stored) else { continue };
        let start = candidates.sources.len();
        // One content may be in any number of places. It is fetched once for all of those beyond the bound.
        if start + per_chunk as usize > MAX_BLOCKS {
            break;
        }
        for (weak_hash, own) in weak_hashes.zip(chunk * per_chunk..) {
            // A block that is in its place already costs least. The next best is the one after the last source: long
            // runs are long transfers.
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
