//! The objects of a release that it is complete without: weak hashes, and the tables of deltas and groups, which spare
//! downloads, and the digests of frames. That one cannot be had is no reason to fail.

use super::error::RecoveryError;
use super::job::RecoveryJob;
use super::release::fetch_object;
use crate::chain::chain;
use crate::flash::frames;
use crate::flash::plan::{Blocks, Comparison, FittingDeltas, Plan};
use crate::jobs::state::{IndexedRelease, InstalledRecord};
use crate::order;
use crate::record::progress::bytes;
use crate::release::deltas::{self, Deltas};
use crate::release::groups::{self, Groups};
use crate::release::index::{Index, Pack};
use crate::release::manifest::{DeltaObjects, Image, Object, SYSTEM_IMAGE};
use crate::release::weak_hashes::{self, WeakHashes};

/// The deltas of a release, the likeliest first: those from the release that is installed, then those from the latest.
/// A robot whose record was lost may have any.
pub(super) fn deltas_for<'a>(job: &RecoveryJob<'_>, image: &'a Image) -> Vec<&'a DeltaObjects> {
    let record = job.read_record();
    let installed = record.as_ref().and_then(installed_sha256);
    let mut likely: Vec<&DeltaObjects> = image.deltas.iter().collect();
    order::by_key(&mut likely, |deltas| Some(deltas.from.as_str()) != installed);
    likely
}

/// Downloads tables of deltas until one is for what the partition holds. `pays` says whether one of so many bytes may
/// be worth its download.
pub(super) fn fitting_deltas(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    partition: (&Comparison, &Blocks),
    pays: impl Fn(u64) -> bool,
) -> Result<Option<FittingDeltas>, RecoveryError> {
    let (comparison, blocks) = partition;
    let mut best: Option<FittingDeltas> = None;
    if blocks.is_blank() || job.policy.chunks_alone {
        return Ok(None);
    }
    let offered = deltas_for(job, release.manifest.image(SYSTEM_IMAGE)?);
    for objects in offered.into_iter().filter(|objects| pays(objects.table.size_bytes)) {
        let Some(table) = fetch_deltas(job, &release.index, objects)? else { continue };
        let found = FittingDeltas::new(table, comparison, blocks);
        if best.as_ref().is_none_or(|best| best.count() < found.count()) {
            best = Some(found);
        }
        if best.as_ref().is_some_and(FittingDeltas::are_for_this_partition) {
            break;
        }
    }
    Ok(best)
}

fn installed_sha256(record: &InstalledRecord) -> Option<&str> {
    Some(record.manifest().image(SYSTEM_IMAGE).ok()?.sha256.as_str())
}

/// Downloads the table of deltas that belong to `index`.
fn fetch_deltas(job: &RecoveryJob<'_>, index: &Index, objects: &DeltaObjects) -> Result<Option<Deltas>, RecoveryError> {
    let pack = Pack { digest: objects.pack.blake3, size_bytes: objects.pack.size_bytes };
    let wanted = Wanted { what: "table of deltas", object: &objects.table, limit_bytes: deltas::MAX_TABLE_BYTES };
    fetch(job, wanted, |object| Deltas::from_object(&object, pack, index))
}

/// Downloads the table of groups that belong to `index`.
pub(super) fn fetch_groups(
    job: &RecoveryJob<'_>,
    index: &Index,
    object: &Object,
) -> Result<Option<Groups>, RecoveryError> {
    let wanted = Wanted { what: "table of groups", object, limit_bytes: groups::MAX_TABLE_BYTES };
    fetch(job, wanted, |object| Groups::from_object(&object, index))
}

/// Downloads the weak hashes of the release, if they are of use.
pub(super) fn fetch_weak_hashes(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    blocks: &Blocks,
) -> Result<Option<WeakHashes>, RecoveryError> {
    let Some(object) = release.manifest.image(SYSTEM_IMAGE)?.weak_hashes.as_ref().filter(|_| !blocks.is_blank()) else {
        return Ok(None);
    };
    let wanted = Wanted { what: "weak block hashes", object, limit_bytes: weak_hashes::MAX_SIZE_BYTES };
    fetch(job, wanted, |object| WeakHashes::decode(object, &release.index))
}

/// Downloads the digests of the frames that a plan fetches by themselves, as far as they are not known.
pub(super) fn learn_frames(job: &RecoveryJob<'_>, plan: &mut Plan) -> Result<(), RecoveryError> {
    let learnt = frames::learn_planned(plan, job.resources.source);
    match learnt.map_err(|source| RecoveryError::Fetch { what: "digests of frames", source }) {
        Err(error) if error.is_retryable() && !error.is_of_one_object() => return Err(error),
        Err(error) => {
            plan.frames.give_up();
            job.journal.warn(&format!("chunks are decompressed before they are checked: {}", chain(&error)));
        }
        Ok(()) => {}
    }
    Ok(())
}

/// An object, its name for people, and the most bytes that it may have.
struct Wanted<'a> {
    what: &'static str,
    object: &'a Object,
    limit_bytes: u64,
}

fn fetch<T, E: std::error::Error + 'static>(
    job: &RecoveryJob<'_>,
    wanted: Wanted<'_>,
    read: impl FnOnce(Vec<u8>) -> Result<T, E>,
) -> Result<Option<T>, RecoveryError> {
    let Wanted { what, object, limit_bytes } = wanted;
    let without = |why: &(dyn std::error::Error + 'static)| {
        job.journal.warn(&format!("more is downloaded, because of the {what}: {}", chain(why)));
        Ok(None)
    };
    if object.size_bytes > limit_bytes {
        let size = bytes(object.size_bytes);
        job.journal.warn(&format!("more is downloaded: the {what} of {size} is more than fits into memory"));
        return Ok(None);
    }
    match fetch_object(job.resources.source, what, object) {
        Ok(object) => read(object).map(Some).or_else(|error| without(&error)),
        Err(error) if error.is_retryable() && !error.is_of_one_object() => Err(error),
        Err(error) => without(&error),
    }
}
