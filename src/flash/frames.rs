//! Fetches the digests of frames that are going to be downloaded, so that these are checked before they are
//! decompressed.

use super::plan::Plan;
use crate::fetch::{FetchError, Source, pages};
use crate::release::frames::FrameDigests;
use crate::release::index::StoredChunkNo;
use crate::release::manifest::object_path;

/// Fetches the digests of what a plan fetches chunk by chunk.
///
/// # Errors
/// As [`learn`].
pub(crate) fn learn_planned(plan: &mut Plan, source: &dyn Source) -> Result<(), FetchError> {
    let wanted: Vec<StoredChunkNo> = plan.fetched_alone().collect();
    learn(&mut plan.frames, source, wanted.into_iter())
}

/// Fetches the digests of these frames, as far as they are not known and the release has them.
///
/// # Errors
/// The source's. The release is complete without them: what they would refuse is decompressed first, and refused then.
pub(crate) fn learn(
    frames: &mut FrameDigests,
    source: &dyn Source,
    wanted: impl Iterator<Item = StoredChunkNo>,
) -> Result<(), FetchError> {
    let Some(objects) = frames.objects() else { return Ok(()) };
    let lacking = frames.lacking_pages(wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    if !frames.has_sums() {
        let whole = 0..objects.sums.size_bytes;
        pages::fetch(source, &object_path(&objects.sums.blake3), &[whole], |_, sums| frames.take_sums(sums))?;
    }
    // A source that says "done" before the last byte has not delivered them.
    let lacking = if frames.has_sums() { lacking } else { Vec::new() };
    pages::fetch(source, &object_path(&objects.digests.blake3), &lacking, |number, page| {
        frames.take_page(lacking[number].start, page)
    })
}
