//! What the partition holds, compared with a release, and the plan that follows from it.

use crate::flash::plan::{Blocks, Comparison, FoundBlocks, NumberedRequest, Plan, Reuse};
use crate::flash::readback::Scan;
use crate::flash::survey::Survey;
use crate::flash::undo::{Change, KeptChunks, UndoRoom};
use crate::flash::verify::Verified;
use crate::jobs::recovery::error::RecoveryError;
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::savings::{self, fetch_groups, fetch_weak_hashes};
use crate::jobs::state::{IndexedRelease, InstalledRecord};
use crate::record::event::Event;
use crate::record::journal::{Journal, Phase};
use crate::record::progress::Bytes;
use crate::record::totals::Totals;
use crate::release::frames::FrameDigests;
use crate::release::index::Index;
use crate::release::manifest::SYSTEM_IMAGE;

/// State of the partition before anything is written.
pub(super) enum Planned {
    /// Every byte is right already.
    Equal(Verified),
    /// Some bytes differ; the plan says what to do about them.
    Differs(Comparison, Box<Plan>),
}

impl Planned {
    /// Quantities of the plan.
    pub(super) fn totals(&self, release: &IndexedRelease) -> Totals {
        match self {
            Self::Equal(_) => Totals::nothing_to_do(release.index.image_bytes()),
            Self::Differs(_, plan) => plan.totals,
        }
    }

    /// The writing that a plan is about; `None` when nothing has to be done.
    pub(super) fn change<'a>(&'a self, index: &'a Index) -> Option<Change<'a>> {
        match self {
            Self::Equal(_) => None,
            Self::Differs(comparison, _) => Some(Change { index, comparison }),
        }
    }

    /// Adds the room that it takes to keep what an undo needs.
    pub(super) fn add_room(&mut self, room: UndoRoom) {
        if let Self::Differs(_, plan) = self {
            plan.totals.undo_needed_bytes = room.needed_bytes;
            plan.totals.undo_room_bytes = room.there_bytes;
        }
    }

    /// Reports the quantities of a plan that is about to be carried out.
    pub(super) fn announce(&self, journal: &Journal) {
        if let Self::Differs(_, plan) = self {
            journal.report(Event::Planned(plan.totals));
        }
    }
}

/// Size of the image that a record names, bytes: an older and larger image may have left blocks behind the new one that
/// can be used again.
pub(super) fn image_bytes(record: Option<&InstalledRecord>) -> u64 {
    record.and_then(|record| Some(record.manifest().image(SYSTEM_IMAGE).ok()?.size_bytes)).unwrap_or_default()
}

/// Compares the partition with a release, and plans how to make it equal. What is kept on the partition is used.
pub(super) fn compare_and_plan(
    job: &RecoveryJob<'_>,
    search_bytes: u64,
    release: &IndexedRelease,
    kept: Option<&KeptChunks>,
) -> Result<Planned, RecoveryError> {
    let (index, target) = (&release.index, job.resources.target);
    job.journal.phase(Phase::Plan, &format!("compare {} with the release", target.name()), || {
        let looked = release.survey.take().filter(|survey| survey.suits(index, target));
        let survey = match looked {
            Some(survey) => *survey,
            None => look_through(job, (index.chunk_bytes(), index.image_bytes()), search_bytes)?,
        };
        let (scan, blocks) = survey.compare(index);
        report_read_errors(job, &scan);
        Ok(match Verified::from_scan(scan) {
            Ok(verified) => Planned::Equal(verified),
            Err(comparison) => {
                let mut plan = with_groups(job, release, plan(job, release, kept, &comparison, blocks)?)?;
                plan.frames = FrameDigests::new(release.manifest.image(SYSTEM_IMAGE)?.frames, index);
                savings::learn_frames(job, &mut plan)?;
                Planned::Differs(comparison, Box::new(plan))
            }
        })
    })
}

/// Reads what the partition holds, as far as an image of these sizes (of a chunk, and of all of it) and `search_bytes`.
pub(super) fn look_through(
    job: &RecoveryJob<'_>,
    sizes: (u32, u64),
    search_bytes: u64,
) -> Result<Survey, RecoveryError> {
    let total = Bytes::of_disk(sizes.1.max(search_bytes));
    Ok(job.journal.with_progress(total, |done| Survey::of(sizes, search_bytes, job.resources.target, done))?)
}

/// Compares the partition with an index, and plans nothing.
pub(super) fn compare_alone(job: &RecoveryJob<'_>, index: &Index) -> Result<Verified, Comparison> {
    let total = Bytes::of_disk(index.image_bytes());
    let scan = job.journal.with_progress(total, |done| Scan::of(index, job.resources.target, done));
    report_read_errors(job, &scan);
    Verified::from_scan(scan)
}

/// Compares the partition with the installed release.
///
/// # Errors
/// The comparison, if anything differs; the journal has the damage.
pub fn compare(job: &RecoveryJob<'_>, installed: &IndexedRelease) -> Result<Verified, Comparison> {
    let version = &installed.manifest.version;
    let sentence = format!("compare {} with the installed release {version}", job.resources.target.name());
    job.journal.infallible_phase(Phase::Plan, &sentence, || {
        compare_alone(job, &installed.index).inspect_err(|comparison| {
            job.journal.report(Event::Damaged(&comparison.damaged_ranges(&installed.index)));
        })
    })
}

/// Plans with deltas and in-place copies, where the partition holds anything.
fn plan(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    kept: Option<&KeptChunks>,
    comparison: &Comparison,
    blocks: Blocks,
) -> Result<Plan, RecoveryError> {
    let index = &release.index;
    let image = release.manifest.image(SYSTEM_IMAGE)?;
    let kept = kept.and_then(|kept| kept.offer(index, job.resources.target));
    let is_all_kept = kept.as_ref().is_some_and(|kept| kept.is_all(index, comparison));
    // A table of what could be spared is not fetched where it is larger than that.
    let pays = |plan: &Plan, table: Option<u64>| table.is_some_and(|bytes| bytes < plan.totals.download_bytes);
    let plan = Plan::new(index, comparison, Reuse { kept, ..Reuse::default() });
    if is_all_kept {
        return Ok(plan);
    }
    let deltas = savings::fitting_deltas(job, release, (comparison, &blocks), |table| pays(&plan, Some(table)))?;
    let plan = Plan::new(index, comparison, Reuse { deltas, kept: plan.kept, found: None });
    if !pays(&plan, image.weak_hashes.map(|hashes| hashes.size_bytes + delta_bytes(&plan))) {
        return Ok(plan);
    }
    let Some(weak_hashes) = fetch_weak_hashes(job, release, &blocks)? else { return Ok(plan) };
    let Plan { deltas, kept, .. } = plan;
    let found = Some(FoundBlocks { weak_hashes, blocks });
    Ok(Plan::new(index, comparison, Reuse { found, deltas, kept }))
}

/// Takes from groups what has fewer bytes there.
fn with_groups(job: &RecoveryJob<'_>, release: &IndexedRelease, plan: Plan) -> Result<Plan, RecoveryError> {
    let object = release.manifest.image(SYSTEM_IMAGE)?.groups.filter(|_| !job.policy.chunks_alone);
    let Some(object) = object.filter(|object| plan.is_worth_groups(object.size_bytes)) else { return Ok(plan) };
    Ok(match fetch_groups(job, &release.index, &object)? {
        Some(groups) => plan.with_groups(&release.index, groups),
        None => plan,
    })
}

/// Bytes that a plan downloads for its deltas: weak hashes spare nothing of them.
fn delta_bytes(plan: &Plan) -> u64 {
    plan.delta_requests.iter().map(NumberedRequest::bytes).sum()
}

/// Warns of ranges that the device could not read.
pub(super) fn report_read_errors(job: &RecoveryJob<'_>, scan: &Scan<'_>) {
    let name = job.resources.target.name();
    for (range, error) in &scan.read_errors {
        job.journal.warn(&format!("cannot read bytes {} to {} of {name}: {error}", range.start, range.end));
    }
}
