//! What has to happen to a partition so that it equals an image: index x what is there -> plan. Pure.

mod moves;
mod patched;
mod requests;
mod survey;

use crate::record::totals::Totals;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::hints::{Hint, Hints};
use crate::release::index::{FrameContent, FrameNo, Index, StoredNo};

pub use moves::{BATCH_BYTES, Batch, BlockNo, MAX_BUFFERED_BLOCKS, Moves, ZERO_SOURCE};
use moves::{Candidates, Places};
pub use patched::Patched;
pub(crate) use requests::coalesce;
pub use requests::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, Request};
pub use survey::{Blocks, Survey};

/// What to do. Frames that are right do not appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Frames to fill with zeros, ascending.
    pub zero: Vec<FrameNo>,
    /// Frames to put together from what is on the partition.
    pub moves: Moves,
    /// What to fetch, in pack order.
    pub requests: Vec<Request>,
    /// Which of it is fetched as patches, if any is.
    pub patched: Option<Patched>,
    /// Frames that each fetched stored frame goes to: sorted by stored frame, then by frame.
    destinations: Vec<(StoredNo, FrameNo)>,
    /// Quantities, for people and for progress.
    pub totals: Totals,
}

/// What is known of the partition beyond the frames that are right.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// What is looked for.
    pub hints: &'a Hints,
    /// What is there.
    pub blocks: &'a Blocks,
}

impl Plan {
    /// Compares what should be with what is. Without `found` nothing is moved, without `patched` nothing patched; what
    /// can be moved costs least.
    #[must_use]
    pub fn new(index: &Index, survey: &Survey, found: Option<Found<'_>>, patched: Option<Patched>) -> Self {
        Self::with_buffer(index, survey, found, patched, MAX_BUFFERED_BLOCKS)
    }

    fn with_buffer(
        index: &Index,
        survey: &Survey,
        found: Option<Found<'_>>,
        patched: Option<Patched>,
        max_blocks: usize,
    ) -> Self {
        let per_frame = index.frame_bytes() / BLOCK_SIZE_BYTES as u32;
        let candidates = found.map(|found| candidates(index, survey, found)).unwrap_or_default();
        let moves = moves::order(&candidates, index.frame_count(), per_frame, max_blocks);
        drop(candidates);
        let mut moved = vec![false; index.frame_count() as usize];
        moves.batches.iter().flat_map(|batch| &batch.frames).for_each(|frame| moved[*frame as usize] = true);

        let mut totals = Totals { image_bytes: index.image_bytes(), ..Totals::default() };
        let mut zero = Vec::new();
        let mut destinations = Vec::new();
        for frame in 0..index.frame_count() {
            let range = index.frame_range(frame);
            let size = range.end - range.start;
            match index.frame_content(frame) {
                _ if survey.is_right(frame) => totals.right_bytes += size,
                _ if moved[frame as usize] => totals.move_bytes += size,
                FrameContent::Zero => {
                    totals.zero_bytes += size;
                    zero.push(frame);
                }
                FrameContent::Stored(stored) => {
                    totals.write_bytes += size;
                    destinations.push((stored, frame));
                }
            }
        }
        destinations.sort_unstable();
        let mut needed: Vec<StoredNo> = destinations.iter().map(|(stored, _)| *stored).collect();
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

    /// Frames of the image that a fetched stored frame has to be written to.
    pub fn destinations(&self, stored: StoredNo) -> impl Iterator<Item = FrameNo> {
        let start = self.destinations.partition_point(|(other, _)| *other < stored);
        self.destinations[start..].iter().take_while(move |(other, _)| *other == stored).map(|(_, frame)| *frame)
    }
}

/// Frames whose every block is somewhere on the partition. Frame 0 is not among them: its first block is blanked first
/// and written last.
fn candidates(index: &Index, survey: &Survey, found: Found<'_>) -> Candidates {
    let per_frame = index.frame_bytes() / BLOCK_SIZE_BYTES as u32;
    let places = Places::new(found.blocks.as_slice());
    let mut candidates = Candidates::default();
    let mut next = ZERO_SOURCE;
    for frame in (1..index.frame_count()).filter(|frame| !survey.is_right(*frame)) {
        let FrameContent::Stored(stored) = index.frame_content(frame) else { continue };
        let Some(hints) = found.hints.of(stored) else { continue };
        let start = candidates.sources.len();
        for (hint, own) in hints.zip(frame * per_frame..) {
            // In place costs least; after that what goes on where the block before came from, for long transfers.
            let source = if hint == Hint::NONE { Some(ZERO_SOURCE) } else { places.find(hint, &[own, next]) };
            let Some(source) = source else { break };
            next = if source == ZERO_SOURCE { ZERO_SOURCE } else { source + 1 };
            candidates.sources.push(source);
        }
        if candidates.sources.len() == start + per_frame as usize {
            candidates.frames.push(frame);
        } else {
            candidates.sources.truncate(start);
        }
    }
    candidates
}

#[cfg(test)]
pub(crate) mod tests;
