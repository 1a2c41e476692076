//! The way back to the release that is kept on the partition.

use std::cell::RefCell;

use super::error::RecoveryError;
use super::job::RecoveryJob;
use super::planning::{self, Planned};
use super::retention;
use crate::chain::chain;
use crate::fetch::Source;
use crate::flash::frames;
use crate::flash::plan::{Comparison, Plan, Reuse};
use crate::flash::undo::{ChunkSource, Keeping, Kept, KeptChunks, UndoObstacle};
use crate::jobs::state::IndexedRelease;
use crate::record::event::{Event, ranges_for_people};
use crate::record::journal::Phase;
use crate::record::progress::Bytes;
use crate::release::frames::FrameDigests;
use crate::release::index::StoredChunkNo;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE};

/// Reads the kept release, compares the partition with it and plans. Every frame that the plan takes is checked, and
/// what is missing is fetched from `network` and kept, so that the undo itself depends on nothing but the disk. Nothing
/// of the system is written if something is missing and cannot be had.
pub(super) fn plan_back(
    job: &RecoveryJob<'_>,
    network: Option<&dyn Source>,
) -> Result<(IndexedRelease, KeptChunks, Planned), RecoveryError> {
    let target = job.resources.target;
    let mut kept = Kept::read(target, job.resources.keys).map_err(RecoveryError::Undo)?;
    kept.check_fit(&job.identity.product, &job.identity.hardware).map_err(UndoObstacle::Manifest)?;
    let Manifest { version, serial, .. } = &kept.manifest;
    job.journal.report(Event::ReleaseFound { version, serial: *serial, signed_by: kept.signed.key_name() });
    let sentence = format!("compare {} with the release {version} that is kept on it", target.name());
    let planned = job.journal.phase(Phase::Plan, &sentence, || match planning::compare_alone(job, &kept.index) {
        Ok(verified) => Ok::<_, RecoveryError>(Planned::Equal(verified)),
        Err(comparison) => {
            let plan = whole_plan(job, &mut kept, &comparison, network)?;
            Ok(Planned::Differs(comparison, Box::new(plan)))
        }
    })?;
    let index_object = kept.read_index_object(target).map_err(UndoObstacle::Read)?;
    let Kept { signed, manifest, index, chunks, .. } = kept;
    Ok((IndexedRelease { signed, manifest, index, index_object, survey: RefCell::default() }, chunks, planned))
}

/// Plans with what is kept and whole. What it lacks is an error without a network, and where no source has it.
fn whole_plan(
    job: &RecoveryJob<'_>,
    kept: &mut Kept,
    comparison: &Comparison,
    network: Option<&dyn Source>,
) -> Result<Plan, UndoObstacle> {
    let target = job.resources.target;
    let mut plan = plan(job, kept, comparison);
    let damaged = kept.leave_out_damaged(target, Some(&plan));
    if damaged > 0 {
        plan = self::plan(job, kept, comparison);
    }
    let missing: Vec<StoredChunkNo> = plan.fetched_alone().collect();
    if missing.is_empty() {
        return Ok(plan);
    }
    let what = format!("{damaged} of its chunks read back wrong on {}", target.identity());
    let Some(source) = network else {
        return match (damaged, u32::try_from(missing.len())) {
            (0, Ok(chunks)) => Err(UndoObstacle::Incomplete { version: kept.manifest.version.clone(), chunks }),
            _ => Err(UndoObstacle::Damaged { what }),
        };
    };
    job.journal.warn(&format!("{} chunks are not kept and have to be downloaded; {what}", missing.len()));
    match complete(job, kept, missing, source) {
        Ok(()) => {
            *kept = Kept::read(target, job.resources.keys)?;
            Ok(self::plan(job, kept, comparison))
        }
        // They are downloaded while the system is written.
        Err(error @ (UndoObstacle::NoRoom(_) | UndoObstacle::Write(_))) => {
            job.journal.warn(&format!("what is downloaded cannot be kept: {}", chain(&error)));
            // They are checked after decompression in any case.
            let _ = frames::learn_planned(&mut plan, source);
            Ok(plan)
        }
        Err(error) => Err(error),
    }
}

/// Fetches what is missing and keeps it with the rest.
fn complete(
    job: &RecoveryJob<'_>,
    kept: &Kept,
    missing: Vec<StoredChunkNo>,
    source: &dyn Source,
) -> Result<(), UndoObstacle> {
    let installed = job.read_record().and_then(|record| Some(record.manifest().image(SYSTEM_IMAGE).ok()?.size_bytes));
    let keeping = Keeping::of_missing(job.resources.target, kept, missing.into_iter(), installed.unwrap_or_default());
    let total = Bytes::of_disk(keeping.read_bytes());
    let frames = [None, retention::frames(&kept.manifest)];
    let network = ChunkSource { source, offered: None, frames, limit_bytes: u64::MAX };
    let now = job.journal.with_progress(total, |done| keeping.complete(done, network))?;
    match u32::try_from(now.missing.len()).unwrap_or(u32::MAX) {
        0 => Ok(()),
        chunks => {
            let version = kept.manifest.version.clone();
            let ranges = ranges_for_people(&now.missing);
            job.journal.warn(&format!("no source has what is missing of {version}; in its image it is at {ranges}"));
            Err(UndoObstacle::Incomplete { version, chunks })
        }
    }
}

fn plan(job: &RecoveryJob<'_>, kept: &Kept, comparison: &Comparison) -> Plan {
    let frames = kept.chunks.offer(&kept.index, job.resources.target);
    let mut plan = Plan::new(&kept.index, comparison, Reuse { kept: frames, ..Reuse::default() });
    plan.frames = FrameDigests::new(retention::frames(&kept.manifest), &kept.index);
    plan
}
