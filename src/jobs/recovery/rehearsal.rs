//! What a recovery does before it writes, tried for its own sake: a drill.

use super::error::RecoveryError;
use super::indexing::IndexUse;
use super::job::RecoveryJob;
use super::{offered as offering, planning};
use crate::chain::chain;
use crate::fetch::{FetchError, FetchErrorKind, SinkError};
use crate::flash::frames;
use crate::jobs::state::{IndexedRelease, InstalledRecord};
use crate::record::blackbox::DrillCheck;
use crate::record::progress::bytes;
use crate::release::frames::FrameDigests;
use crate::release::index::{ChunkContent, ChunkNo, Index, StoredChunkNo};
use crate::release::manifest::{SYSTEM_IMAGE, object_path};
use crate::release::zstd_frame;

/// Packs of which a chunk is fetched: enough to see that they are served, and little to download.
const MAX_PACKS: usize = 8;

/// Fetches and checks the release that is offered, compares and plans, and fetches a chunk of each of its packs.
/// Nothing is written. Each check is handed to `report` when it is made; what the next one needs and did not come ends
/// the rehearsal.
pub fn rehearse(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>, mut report: impl FnMut(DrillCheck)) {
    let mut checked = |name: &str, result: Result<String, RecoveryError>| {
        let (passed, found) = result.map_or_else(|error| (false, chain(&error)), |found| (true, found));
        report(DrillCheck::new(name, passed, &found));
        passed
    };
    let release = offering::fetch_indexed(job, record, IndexUse::All);
    let offered = release.as_ref().map(offered).ok();
    let Ok(release) = release.map_err(|error| checked("manifest", Err(error))) else { return };
    checked("manifest", Ok(offered.unwrap_or_default()));
    let planned = planning::compare_and_plan(job, planning::image_bytes(record), &release, None)
        .map(|planned| planned.totals(&release).to_string());
    if checked("plan", planned) {
        checked("content", fetch_samples(job, &release));
    }
}

fn offered(release: &IndexedRelease) -> String {
    format!("release {} (serial {})", release.manifest.version, release.manifest.serial)
}

/// Fetches one chunk of each of the first packs and checks that it is what the release says.
fn fetch_samples(job: &RecoveryJob<'_>, release: &IndexedRelease) -> Result<String, RecoveryError> {
    let (index, objects) = (&release.index, release.manifest.image(SYSTEM_IMAGE)?.frames);
    let mut sampled = vec![false; index.packs().len()];
    let mut samples = Vec::new();
    for chunk in 0..index.chunk_count() {
        let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { continue };
        let pack = index.location(stored).pack as usize;
        if sampled[pack] || sampled.iter().filter(|is_sampled| **is_sampled).count() >= MAX_PACKS {
            continue;
        }
        sampled[pack] = true;
        samples.push((chunk, stored));
    }
    let mut digests = FrameDigests::new(objects, index);
    // A recovery goes on without them.
    let _ = frames::learn(&mut digests, job.resources.source, samples.iter().map(|(_, stored)| *stored));
    let mut fetched = 0;
    for (chunk, stored) in samples {
        let is_right = |frame: &[u8]| digests.allows(stored, frame) && is_right(index, chunk, frame);
        fetched += fetch_sample(job, index, stored, is_right)
            .map_err(|source| RecoveryError::Fetch { what: "content of the release", source })?;
    }
    let packs = sampled.iter().filter(|is_sampled| **is_sampled).count();
    Ok(format!("{} from {packs} of {} packs are right", bytes(fetched), sampled.len()))
}

/// Fetches one chunk, from another source where the first has it wrong. Returns the number of its bytes.
fn fetch_sample(
    job: &RecoveryJob<'_>,
    index: &Index,
    stored: StoredChunkNo,
    is_right: impl Fn(&[u8]) -> bool,
) -> Result<u64, FetchError> {
    let place = index.location(stored);
    let path = object_path(&index.packs()[place.pack as usize].digest);
    let wanted = usize::try_from(place.range.end - place.range.start).unwrap_or(usize::MAX);
    let mut received: Vec<u8> = Vec::new();
    job.resources.source.get_range(&path, place.range.clone(), &mut |part: &[u8]| {
        received.extend_from_slice(part);
        if received.len() < wanted || is_right(&received) {
            return Ok(());
        }
        received.clear();
        let reason = "the chunk there is not what the release says".to_owned();
        Err(SinkError::Wrong { from: place.range.start, reason })
    })?;
    if received.len() == wanted {
        return Ok(wanted as u64);
    }
    let problem = format!("{} of {wanted} bytes came", received.len());
    Err(FetchError::new(FetchErrorKind::Corrupt, &path, problem))
}

fn is_right(index: &Index, chunk: ChunkNo, received: &[u8]) -> bool {
    let len = index.chunk_len(chunk);
    zstd_frame::check_chunk(received, len).is_ok()
        && zstd::bulk::decompress(received, len).is_ok_and(|content| index.matches(chunk, &content))
}
