//! The way back to the release that is kept on the partition.

use super::error::RecoveryError;
use super::job::RecoveryJob;
use super::planning::{self, Planned};
use crate::flash::plan::{Comparison, Plan, Reuse};
use crate::flash::undo::{Kept, KeptChunks, UndoObstacle};
use crate::jobs::state::IndexedRelease;
use crate::record::event::Event;
use crate::record::journal::Phase;
use crate::release::manifest::Manifest;

/// Reads the kept release, compares the partition with it and plans. Every frame that the plan takes is checked, so
/// that nothing is written if something is missing and there is no network.
pub(super) fn plan_back(
    job: &RecoveryJob<'_>,
    has_network: bool,
) -> Result<(IndexedRelease, KeptChunks, Planned), RecoveryError> {
    let target = job.resources.target;
    let mut kept = Kept::read(target, job.resources.keys).map_err(RecoveryError::Undo)?;
    kept.check_fit(&job.identity.product, &job.identity.hardware).map_err(UndoObstacle::Manifest)?;
    let Manifest { version, serial, .. } = &kept.manifest;
    job.journal.report(Event::ReleaseFound { version, serial: *serial, signed_by: kept.signed.key_name() });
    let sentence = format!("compare {} with the release {version} that is kept on it", target.name());
    let planned = job.journal.phase(Phase::Plan, &sentence, || match planning::compare(job, &kept.index) {
        Ok(verified) => Ok::<_, RecoveryError>(Planned::Equal(verified)),
        Err(comparison) => {
            let plan = whole_plan(job, &mut kept, &comparison, has_network)?;
            Ok(Planned::Differs(comparison, Box::new(plan)))
        }
    })?;
    let Kept { signed, manifest, index, index_object, chunks, .. } = kept;
    Ok((IndexedRelease { signed, manifest, index, index_object }, chunks, planned))
}

/// Plans with what is kept and whole. What it lacks is an error without a network.
fn whole_plan(
    job: &RecoveryJob<'_>,
    kept: &mut Kept,
    comparison: &Comparison,
    has_network: bool,
) -> Result<Plan, UndoObstacle> {
    let target = job.resources.target;
    let mut plan = plan(job, kept, comparison);
    let damaged = kept.leave_out_damaged(target, &plan);
    if damaged > 0 {
        plan = self::plan(job, kept, comparison);
    }
    let missing: usize =
        plan.requests.iter().filter(|request| !plan.is_local(request)).map(|request| request.stored.len()).sum();
    if missing == 0 {
        return Ok(plan);
    }
    let what = format!("{damaged} of its chunks read back wrong on {}", target.identity());
    if has_network {
        job.journal.warn(&format!("{missing} chunks are not kept and have to be downloaded; {what}"));
        return Ok(plan);
    }
    match (damaged, u32::try_from(missing)) {
        (0, Ok(chunks)) => Err(UndoObstacle::Incomplete { version: kept.manifest.version.clone(), chunks }),
        _ => Err(UndoObstacle::Damaged { what }),
    }
}

fn plan(job: &RecoveryJob<'_>, kept: &Kept, comparison: &Comparison) -> Plan {
    let patched = kept.chunks.offer(&kept.index, job.resources.target);
    Plan::new(&kept.index, comparison, Reuse { found: None, patched })
}
