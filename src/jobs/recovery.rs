//! Makes a partition equal to a release, for PID 1 and for a command typed by hand: release, comparison and plan,
//! permit, write and read-back, commit.
//!
//! Each step takes what only the step before can make: nothing is written without a [`WritePermit`], and only what was
//! [`Verified`] is committed.

mod boot_chain;
mod commit;
mod error;
mod job;
mod offered;
mod partition;
mod planning;
mod rehearsal;
mod release;
mod renew;
mod retention;
mod rewrite;
mod rollout;
mod spare_slot;
mod staging;
mod undo;

use crate::boot::env::WritePermit;
use crate::fetch::Source;
use crate::flash::plan::Comparison;
use crate::flash::undo::Nowhere;
use crate::flash::verify::Verified;
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::event::Event;
use crate::record::journal::Phase;
use crate::record::totals::Totals;
use crate::release::manifest::Manifest;
pub use commit::Committed;
pub use error::{CommitError, RecoveryError};
pub use job::{Identity, InstalledRelease, Keep, Policy, RecoveryJob, Resources};
pub use offered::fetch_release;
pub use partition::{BootChain, RecoveryPartition, Renewal, SlotStorage};
use planning::Planned;
pub use rehearsal::rehearse;
pub use release::{accept, check_room, fetch_file};
use renew::NetworkUse;
pub use renew::is_in_a_slot;
use retention::Retention;
pub use rollout::check_still_offered;
pub use staging::{Foreseen, fetch_through};

/// Report of a finished recovery.
#[derive(Debug)]
pub struct RecoveryReport {
    /// Version that is now installed.
    pub version: String,
    /// Serial of that version.
    pub serial: u64,
    /// Quantities of the first plan.
    pub totals: Totals,
    /// Proof that the machine starts this version.
    pub committed: Committed,
}

/// Installs the release that is offered. `record` is that of the installed release, if there is one.
///
/// # Errors
/// [`RecoveryError`]; [`RecoveryError::is_retryable`] says whether to try again.
pub fn run(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<RecoveryReport, RecoveryError> {
    let release = offered::fetch_indexed(job, record)?;
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
    let release = release::with_index(job, record, release)?;
    make_equal(job, record, &release)
}

fn make_equal(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<RecoveryReport, RecoveryError> {
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
    let mut planned = planning::compare_and_plan(job, record, release, retention.chunks())?;
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
    let (release, chunks, planned) = undo::plan_back(job, network)?;
    let job = &job.with_source(network.unwrap_or(&Nowhere));
    let totals = planned.totals(&release);
    planned.announce(job.journal);
    let permit = commit::permit(job, &release, NetworkUse::Forbidden)?;
    let verified = rewrite::until_verified(job, &release.index, planned, Some(&chunks), &permit)?;
    let committed = commit(job, &release, verified, permit, NetworkUse::Forbidden)?;
    Ok(report(&release, totals, committed))
}

/// Compares the partition with the installed release.
///
/// # Errors
/// The comparison, if anything differs; the journal has the damage.
pub fn compare(job: &RecoveryJob<'_>, installed: &IndexedRelease) -> Result<Verified, Comparison> {
    let version = &installed.manifest.version;
    let sentence = format!("compare {} with the installed release {version}", job.resources.target.name());
    job.journal.infallible_phase(Phase::Plan, &sentence, || {
        planning::compare(job, &installed.index).inspect_err(|comparison| {
            job.journal.report(Event::Damaged(&comparison.damaged_ranges(&installed.index)));
        })
    })
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
    let release = offered::fetch_indexed(job, record)?;
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
    let release = offered::fetch_indexed(job, record)?;
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

/// Lets the machine start what was verified: records the release, brings the recovery up to date, then points GRUB at
/// both. A power cut before that last write repeats only the cheap comparisons.
fn commit(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    verified: Verified,
    permit: WritePermit,
    network_use: NetworkUse,
) -> Result<Committed, RecoveryError> {
    let version = &release.manifest.version;
    job.journal.phase(Phase::Commit, &format!("make {version} the system to boot"), || {
        let recorded = commit::record(verified, job.resources.state, release);
        let slots = renew::renew(job, &release.manifest, network_use);
        if let Some(pointers) = slots {
            spare_slot::mend(job, &release.manifest, pointers, network_use);
        }
        boot_chain::mend(job, &release.release(), network_use);
        let committed = recorded.finish(permit, job.policy.tries, slots)?;
        if let Some(error) = &committed.unrecorded {
            job.journal.warn(&format!("{version} starts, but cannot be recorded as installed: {error}"));
        }
        Ok(committed)
    })
}

fn report(release: &IndexedRelease, totals: Totals, committed: Committed) -> RecoveryReport {
    let Manifest { version, serial, .. } = &release.manifest;
    RecoveryReport { version: version.clone(), serial: *serial, totals, committed }
}
