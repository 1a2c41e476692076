//! Makes a partition equal to a release, for PID 1 and for a command typed by hand: release, comparison and plan,
//! permit, write and read-back, commit.
//!
//! Each step takes what only the step before can make: nothing is written without a [`WritePermit`], and only what was
//! [`Verified`] is committed.

mod boot_chain;
mod commit;
mod error;
mod finish;
mod indexing;
mod job;
mod left_out;
mod offered;
mod on_other;
pub mod other;
mod partition;
mod planning;
mod rehearsal;
mod release;
mod renew;
mod retention;
mod rewrite;
mod rollout;
mod savings;
mod spare_slot;
mod staging;
mod undo;

use crate::fetch::Source;
use crate::flash::undo::Nowhere;
use crate::flash::verify::Verified;
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::event::Event;
use crate::record::totals::Totals;
use crate::release::manifest::Manifest;
pub use commit::Committed;
pub use error::{CommitError, RecoveryError};
pub use finish::RecoveryReport;
use finish::{commit, report};
use indexing::IndexUse;
pub use job::{Identity, InstalledRelease, Keep, Policy, RecoveryJob, Resources};
pub use left_out::LeftOut;
pub use offered::fetch_release;
pub use on_other::{estimate_other, prepare_other, switch_to, update_other};
use on_other::{install_on_other, start_other};
pub use partition::{BootChain, RecoveryPartition, Renewal, SlotStorage};
use planning::Planned;
pub use planning::compare;
pub use rehearsal::rehearse;
pub use release::{accept, check_room, fetch_file};
use renew::NetworkUse;
pub use renew::is_in_a_slot;
use retention::Retention;
pub use rollout::check_still_offered;
pub use staging::{Foreseen, fetch_through};

/// Installs the release that is offered. `record` is that of the installed release, if there is one.
///
/// # Errors
/// [`RecoveryError`]; [`RecoveryError::is_retryable`] says whether to try again.
pub fn run(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<RecoveryReport, RecoveryError> {
    let release = offered::fetch_indexed(job, record, IndexUse::Writing)?;
    make_equal(job, record, &release)
}

/// Installs a release that was fetched before, or the recorded one again, whatever is offered now: the objects of the
/// recorded release may still be there.
///
/// # Errors
/// As [`run`].
pub fn install(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: Release,
) -> Result<RecoveryReport, RecoveryError> {
    let release = indexing::add_index(job, record, release, IndexUse::Writing)?;
    make_equal(job, record, &release)
}

fn make_equal(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<RecoveryReport, RecoveryError> {
    if let Some(report) = install_on_other(job, record, release)? {
        return Ok(report);
    }
    let retention = Retention::of(job, record, release);
    let planned = compare_and_plan(job, record, release, &retention)?;
    let totals = planned.totals(release);
    planned.announce(job.journal);
    if let Planned::Differs(..) = planned
        && !job.policy.asked_before
    {
        rollout::check_still_offered(job, record, release.id())?;
    }
    release::note_choice(job, release);
    let permit = commit::permit(job, release, NetworkUse::Allowed)?;
    retention.carry_out(job, planned.change(&release.index));
    let chunks = retention.into_chunks();
    let verified = rewrite::until_verified(job, &release.index, planned, chunks.as_ref(), &permit)?;
    let committed = commit(job, release, verified, permit, NetworkUse::Allowed)?;
    Ok(report(release, totals, committed))
}

/// Compares and plans, and adds how much room it takes to keep what an undo needs.
fn compare_and_plan(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
    retention: &Retention<'_>,
) -> Result<Planned, RecoveryError> {
    let search_bytes = planning::image_bytes(record);
    let mut planned = planning::compare_and_plan(job, search_bytes, release, retention.chunks())?;
    let room = planned.change(&release.index).map(|change| retention.room(job, change));
    planned.add_room(room.unwrap_or_default());
    Ok(planned)
}

/// Makes the partition equal to the release that is kept on it, whatever its serial is. The source of the job is not
/// asked: without `network` nothing but the partition is read, and with it only what is damaged there or missing.
///
/// What is kept stays as it is, so that an undo that is cut goes on where it was.
///
/// # Errors
/// [`RecoveryError::Undo`] before anything is written, if something is missing; else as [`run`].
pub fn undo(job: &RecoveryJob<'_>, network: Option<&dyn Source>) -> Result<RecoveryReport, RecoveryError> {
    if let Some(other) = job.resources.other.filter(|other| other.is_good && other.is_known_to_grub) {
        return start_other(job, other);
    }
    let (release, chunks, planned) = undo::plan_back(job, network)?;
    let job = &job.with_source(network.unwrap_or(&Nowhere));
    let totals = planned.totals(&release);
    planned.announce(job.journal);
    let permit = commit::permit(job, &release, NetworkUse::Forbidden)?;
    let verified = rewrite::until_verified(job, &release.index, planned, Some(&chunks), &permit)?;
    let committed = commit(job, &release, verified, permit, NetworkUse::Forbidden)?;
    Ok(report(&release, totals, committed))
}

/// Starts an intact system once more, with a fresh boot environment and without the network.
///
/// # Errors
/// The boot environment cannot be written.
pub fn start_again(
    job: &RecoveryJob<'_>,
    verified: Verified,
    installed: &IndexedRelease,
) -> Result<RecoveryReport, RecoveryError> {
    let Manifest { version, serial, .. } = &installed.manifest;
    job.journal.report(Event::SystemIntact { version, serial: *serial });
    let permit = commit::permit(job, installed, NetworkUse::Forbidden)?;
    let committed = commit(job, installed, verified, permit, NetworkUse::Forbidden)?;
    Ok(report(installed, Totals::nothing_to_do(installed.index.image_bytes()), committed))
}

/// Finds out what [`run`] would do, without changing anything on the partition.
///
/// # Errors
/// As [`run`], up to the plan.
pub fn estimate(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<(Manifest, Totals), RecoveryError> {
    let release = offered::fetch_indexed(job, record, IndexUse::Writing)?;
    let retention = Retention::of(job, record, &release);
    let totals = compare_and_plan(job, record, &release, &retention)?.totals(&release);
    Ok((release.manifest, totals))
}

/// Finds out what [`undo`] would do without a network, without changing anything. The whole partition is compared, and
/// every kept chunk that it would take is checked: unlike [`crate::flash::undo::possible`], this proves it.
///
/// # Errors
/// As [`undo`], up to the plan.
pub fn estimate_undo(job: &RecoveryJob<'_>) -> Result<(Manifest, Totals), RecoveryError> {
    let (release, _, planned) = undo::plan_back(job, None)?;
    let totals = planned.totals(&release);
    Ok((release.manifest, totals))
}

/// Writes the release that is offered and does not read it back, so that nothing is proven and nothing made bootable:
/// for image files and disks on a bench.
///
/// # Errors
/// As [`run`].
pub fn write_only(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
) -> Result<(Manifest, Totals), RecoveryError> {
    let release = offered::fetch_indexed(job, record, IndexUse::Writing)?;
    let retention = Retention::of(job, record, &release);
    let planned = compare_and_plan(job, record, &release, &retention)?;
    let totals = planned.totals(&release);
    planned.announce(job.journal);
    retention.carry_out(job, planned.change(&release.index));
    if let Planned::Differs(comparison, plan) = planned {
        rewrite::unproven(job, &release.index, &comparison, &plan)?;
    }
    Ok((release.manifest, totals))
}
