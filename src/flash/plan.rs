//! Plans what has to happen to a partition so that it equals an image. Pure.
//!
//! The index says what each chunk must hold, and a [`Comparison`] which chunks the partition holds already. For the
//! others the plan chooses the cheapest way: zero them, put them together from blocks of the partition, by themselves
//! or with deltas, or fetch them, many compressed together or one by one.

mod candidates;
mod comparison;
mod deltas;
mod elsewhere;
mod groups;
mod moves;
mod places;
mod requests;

use crate::record::totals::Totals;
use crate::release::deltas::BlockNo;
use crate::release::frames::FrameDigests;
use crate::release::groups::Groups;
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};
use crate::release::weak_hashes::{MAX_BLOCKS, WeakHash, WeakHashes};

use candidates::Candidates;
pub use candidates::{BATCH_BYTES, MovePiece, ZERO_SOURCE};
pub use comparison::{Blocks, Comparison};
pub use deltas::FittingDeltas;
pub(crate) use elsewhere::ChunkPlaces;
pub use elsewhere::{FramePlace, KeptFrames};
pub use moves::{Batch, MAX_BUFFERED_BLOCKS, Moves};
use places::Places;
pub(crate) use requests::coalesce;
use requests::joined_numbers;
pub use requests::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, NumberedRequest, Request};

/// A plan: what to do with each chunk. Chunks that are right do not appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Chunks to fill with zeros, ascending.
    pub zero: Vec<ChunkNo>,
    /// Whether zeros are written, and not left to the device's command to zero: what it zeroed has read back wrong.
    pub zero_by_writing: bool,
    /// Chunks to put together from blocks of the partition, by themselves or with deltas.
    pub moves: Moves,
    /// The deltas that `moves` speaks of.
    pub deltas: Option<FittingDeltas>,
    /// Requests for these deltas, in pack order. They are fetched before anything is written.
    pub delta_requests: Vec<NumberedRequest>,
    /// The groups that `group_requests` speak of.
    pub groups: Groups,
    /// Requests for chunks of which many are compressed together.
    pub group_requests: Vec<NumberedRequest>,
    /// Requests for what has to be fetched chunk by chunk, in pack order.
    pub requests: Vec<Request>,
    /// Digests of what is fetched chunk by chunk, as far as they are known.
    pub frames: FrameDigests,
    /// Frames that are kept on the partition itself, if there are any.
    pub kept: Option<KeptFrames>,
    /// Fetched stored chunks, each with a chunk to write it to: sorted by stored chunk, then by chunk.
    destinations: Vec<(StoredChunkNo, ChunkNo)>,
    /// Quantities of the plan, for people and for progress.
    pub totals: Totals,
}

/// Blocks that were found on the partition. A plan needs them only until it knows which chunks can be moved, and they
/// are large.
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
    /// Deltas that fit the partition.
    pub deltas: Option<FittingDeltas>,
    /// Frames that are kept on the partition.
    pub kept: Option<KeptFrames>,
}

impl Plan {
    /// Plans the writing of all chunks that are not right. What can be moved is moved, since that costs least.
    #[must_use]
    pub fn new(index: &Index, comparison: &Comparison, reuse: Reuse) -> Self {
        Self::with_buffer(index, comparison, reuse, MAX_BUFFERED_BLOCKS)
    }

    /// Plans with room for `max_blocks` blocks in the buffer of the moves.
    fn with_buffer(index: &Index, comparison: &Comparison, reuse: Reuse, max_blocks: usize) -> Self {
        let Reuse { found, mut deltas, kept } = reuse;
        if let (Some(deltas), Some(kept)) = (&mut deltas, &kept) {
            deltas.without_kept(index, comparison, kept);
        }
        let candidates = candidates(index, comparison, found, deltas.as_ref());
        let moves = moves::order(candidates, index.chunk_count(), index.blocks_per_chunk(), max_blocks);
        let mut made = vec![Made::Fetched; index.chunk_count() as usize];
        for piece in moves.pieces() {
            let by = if piece.delta.is_some() { Made::ByDelta } else { Made::Moved };
            piece.chunks.iter().for_each(|chunk| made[*chunk as usize] = by);
        }

        let mut totals = Totals { image_bytes: index.image_bytes(), ..Totals::default() };
        let mut zero = Vec::new();
        let mut destinations = Vec::new();
        for chunk in 0..index.chunk_count() {
            let range = index.chunk_range(chunk);
            let size = range.end - range.start;
            match (index.chunk_content(chunk), made[chunk as usize]) {
                _ if comparison.is_right(chunk) => totals.right_bytes += size,
                (_, Made::Moved) => totals.move_bytes += size,
                (_, Made::ByDelta) => totals.write_bytes += size,
                (ChunkContent::Zero, Made::Fetched) => {
                    totals.zero_bytes += size;
                    zero.push(chunk);
                }
                (ChunkContent::Stored(stored), Made::Fetched) => {
                    totals.write_bytes += size;
                    destinations.push((stored, chunk));
                }
            }
        }
        destinations.sort_unstable();
        let delta_requests = deltas.as_ref().map(|deltas| {
            let table = deltas.table();
            // Pieces ascend by their chunks, and deltas do in their pack.
            let used = moves.pieces().filter_map(|piece| piece.delta);
            joined_numbers(used.map(|number| (number, table.pack().digest, table.place(number))))
        });
        let mut plan = Self {
            zero,
            zero_by_writing: false,
            moves,
            deltas,
            delta_requests: delta_requests.unwrap_or_default(),
            groups: Groups::default(),
            group_requests: Vec::new(),
            requests: Vec::new(),
            frames: FrameDigests::default(),
            kept,
            destinations,
            totals,
        };
        plan.requests = coalesce(ChunkPlaces::with(index, plan.kept.as_ref()), &plan.needed());
        plan.count_downloads();
        plan
    }

    /// Sums up what the requests ask for.
    fn count_downloads(&mut self) {
        let (local, network): (Vec<&Request>, Vec<&Request>) =
            self.requests.iter().partition(|request| self.is_local(request));
        let sum = |requests: Vec<&Request>| requests.into_iter().map(Request::bytes).sum::<u64>();
        let numbered = self.delta_requests.iter().chain(&self.group_requests);
        (self.totals.kept_bytes, self.totals.download_bytes) =
            (sum(local), sum(network) + numbered.map(NumberedRequest::bytes).sum::<u64>());
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
        self.kept.as_ref().is_some_and(|kept| kept.is_local(request.pack))
    }

    /// Iterates over the stored chunks that are fetched by themselves from a server.
    pub fn fetched_alone(&self) -> impl Iterator<Item = StoredChunkNo> {
        self.requests.iter().filter(|request| !self.is_local(request)).flat_map(|request| &request.stored).copied()
    }

    /// Iterates over the chunks of the image that a fetched stored chunk has to be written to.
    pub fn destinations(&self, stored: StoredChunkNo) -> impl Iterator<Item = ChunkNo> {
        let start = self.destinations.partition_point(|(other, _)| *other < stored);
        self.destinations[start..].iter().take_while(move |(other, _)| *other == stored).map(|(_, chunk)| *chunk)
    }
}

/// How a wrong chunk becomes right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Fetched,
    Moved,
    ByDelta,
}

/// Collects what fitting deltas make, and finds the other chunks whose every block is somewhere on the partition. Chunk
/// 0 is not among them: its first block is blanked first and written last.
fn candidates(
    index: &Index,
    comparison: &Comparison,
    found: Option<FoundBlocks>,
    deltas: Option<&FittingDeltas>,
) -> Candidates {
    let wrong = (1..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk));
    let per_chunk = index.blocks_per_chunk() as usize;
    let of_deltas = deltas.map_or(0, FittingDeltas::source_count);
    // What is not used of it takes no memory.
    let room = of_deltas + found.as_ref().map_or(0, |_| (wrong.clone().count() * per_chunk).min(MAX_BLOCKS));
    let mut candidates = Candidates::with_capacity(room);
    let mut finder = found.as_ref().map(|found| Finder::new(index, found));
    let mut by_delta = deltas.into_iter().flat_map(|deltas| deltas.wrong_chunks(comparison)).peekable();
    let mut made_until = 0;
    for chunk in wrong {
        if let (Some(deltas), Some((number, chunks))) =
            (deltas, by_delta.next_if(|(_, chunks)| chunks.first() == Some(&chunk)))
        {
            deltas.push_to(&mut candidates, number, &chunks);
            made_until = chunks.last().map_or(chunk, |last| last + 1);
        }
        // Deltas ascend, and what lies between the chunks of one is fetched or zeroed.
        if chunk >= made_until
            && let Some(finder) = &mut finder
        {
            finder.find(chunk, &mut candidates, of_deltas);
        }
    }
    candidates
}

/// Looks for the blocks of chunks on the partition.
struct Finder<'a> {
    index: &'a Index,
    found: &'a FoundBlocks,
    places: Places<'a>,
    /// The block after the last source: long runs are long transfers.
    next: BlockNo,
}

impl<'a> Finder<'a> {
    fn new(index: &'a Index, found: &'a FoundBlocks) -> Self {
        Self { index, found, places: Places::new(found.blocks.as_slice()), next: ZERO_SOURCE }
    }

    fn find(&mut self, chunk: ChunkNo, candidates: &mut Candidates, of_deltas: usize) {
        let per_chunk = self.index.blocks_per_chunk();
        let ChunkContent::Stored(stored) = self.index.chunk_content(chunk) else { return };
        let Some(weak_hashes) = self.found.weak_hashes.of(stored) else { return };
        // One content may be in any number of places. It is fetched once for all of those beyond the bound.
        if candidates.source_count() + per_chunk as usize > MAX_BLOCKS + of_deltas {
            return;
        }
        let source = |(weak_hash, own): (WeakHash, BlockNo)| {
            // A block that is in its place already costs least. The next best is the one after the last source.
            let source = if weak_hash == WeakHash::NONE {
                Some(ZERO_SOURCE)
            } else {
                self.places.find(weak_hash, &[own, self.next])
            }?;
            self.next = if source == ZERO_SOURCE { ZERO_SOURCE } else { source + 1 };
            Some(source)
        };
        candidates.push_found(chunk, weak_hashes.zip(chunk * per_chunk..).map(source));
    }
}

#[cfg(test)]
pub(crate) mod tests;
