//! Writes what differs and reads it back, until it is right or the disk has to be called broken.

use crate::boot::env::WritePermit;
use crate::flash::plan::{Comparison, Plan, Reuse};
use crate::flash::undo::{KeptChunks, KeptSource};
use crate::flash::verify::{self, Verified};
use crate::flash::write::{self, Work, Written};
use crate::jobs::recovery::error::{REWRITES, RecoveryError};
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::planning::{Planned, report_read_errors};
use crate::jobs::recovery::savings;
use crate::record::event::ranges_for_people;
use crate::record::journal::Phase;
use crate::record::progress::{Bytes, bytes};
use crate::release::index::Index;

/// Whether the writer is followed by a reader that checks what is on the medium.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadBehind {
    Yes,
    No,
}

/// Carries out the plan, and writes again what reads back wrong. What is kept on the partition is used for that too.
pub(super) fn until_verified(
    job: &RecoveryJob<'_>,
    index: &Index,
    planned: Planned,
    kept: Option<&KeptChunks>,
    permit: &WritePermit,
) -> Result<Verified, RecoveryError> {
    let (mut comparison, mut plan) = match planned {
        Planned::Equal(verified) => return Ok(verified),
        Planned::Differs(comparison, plan) => (comparison, *plan),
    };
    for _ in 0..=REWRITES {
        let written = write(job, index, &comparison, &plan, permit, ReadBehind::Yes)?;
        match read_back(job, written) {
            Ok(verified) => return Ok(verified),
            Err(still_wrong) => comparison = still_wrong,
        }
        let kept = kept.and_then(|kept| kept.offer(index, job.resources.target));
        // What reads back wrong is not left to the device's command to zero once more: it may have been the fault.
        let frames = plan.frames;
        plan = Plan::new(index, &comparison, Reuse { kept, ..Reuse::default() }).with_zeros_written();
        plan.frames = frames;
        savings::learn_frames(job, &mut plan)?;
    }
    Err(RecoveryError::ReadBack {
        target: job.resources.target.identity(),
        ranges: ranges_for_people(&comparison.damaged_ranges(index)),
    })
}

/// Carries out a plan without reading back what was written, where no boot environment of ours will start it. Returns
/// whether deltas or groups are wrong in every copy.
pub(super) fn unproven(
    job: &RecoveryJob<'_>,
    index: &Index,
    comparison: &Comparison,
    plan: &Plan,
) -> Result<bool, RecoveryError> {
    let written = write(job, index, comparison, plan, &WritePermit::without_environment(), ReadBehind::No)?;
    Ok(written.lacked_savings)
}

fn write<'i>(
    job: &RecoveryJob<'_>,
    index: &'i Index,
    comparison: &Comparison,
    plan: &Plan,
    permit: &WritePermit,
    read_behind: ReadBehind,
) -> Result<Written<'i>, RecoveryError> {
    let target = job.resources.target;
    let read_behind = read_behind == ReadBehind::Yes;
    let sentence = format!("write {} to {}", bytes(plan.totals.changed_bytes()), target.name());
    job.journal.phase(Phase::Write, &sentence, || {
        job.journal.with_progress(write::expected_work(plan, read_behind), |done| {
            let source = KeptSource::new(target, job.resources.source);
            let work = Work { plan, source: &source, target, done, read_behind };
            Ok(write::apply(index, comparison, work, permit)?)
        })
    })
}

fn read_back(job: &RecoveryJob<'_>, written: Written<'_>) -> Result<Verified, Comparison> {
    let target = job.resources.target;
    if written.zeroing_lied {
        job.journal.warn(&format!(
            "{} answers that it has zeroed and keeps what was there: zeros are written instead",
            target.identity()
        ));
    }
    job.journal.infallible_phase(Phase::Verify, &format!("read {} back", target.name()), || {
        let pending = Bytes::of_disk(written.read_back.pending_bytes());
        let scan = job.journal.with_progress(pending, |done| verify::read_back(written, target, done));
        report_read_errors(job, &scan);
        let ranges = scan.damaged_ranges();
        if !ranges.is_empty() {
            job.journal.warn(&format!("read back wrong: {}", ranges_for_people(&ranges)));
        }
        Verified::from_scan(scan)
    })
}
