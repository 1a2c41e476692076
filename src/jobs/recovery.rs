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
pub mod other;
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
use crate::boot::systems::{ActiveFacts, OtherFacts, Switch, is_worth_keeping, takes_other};
use crate::fetch::Source;
use crate::flash::beside::Beside;
use crate::flash::plan::Comparison;
use crate::flash::target::BlockTarget as _;
use crate::flash::undo::{self as keeping, Nowhere, UndoObstacle};
use crate::flash::verify::Verified;
use crate::flash::write;
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::event::{Event, ranges_for_people};
use crate::record::journal::Phase;
use crate::record::totals::Totals;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE};
pub use commit::Committed;
pub use error::{CommitError, RecoveryError};
pub use job::{Identity, InstalledRelease, Keep, Policy, RecoveryJob, Resources};
pub use offered::fetch_release;
use other::OtherSystem;
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

/// Writes the release that is offered to the other system and has GRUB start it, while the machine works with the
/// active one. `None` where the active system holds that release, or an older boot script would start it whatever is
/// written.
///
/// # Errors
/// As [`run`].
pub fn update_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
) -> Result<Option<RecoveryReport>, RecoveryError> {
    let release = offered::fetch_indexed(job, record)?;
    install_on_other(job, record, &release)
}

/// Finds out what [`update_other`] would do, without changing anything.
///
/// # Errors
/// As [`run`], up to the plan.
pub fn estimate_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
) -> Result<Option<(Manifest, Totals)>, RecoveryError> {
    let release = offered::fetch_indexed(job, record)?;
    let totals = estimate_on_other(job, record, &release)?;
    Ok(totals.map(|totals| (release.manifest, totals)))
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

/// What is written, where a release belongs on the other system.
struct Aim<'a> {
    other: OtherSystem<'a>,
    beside: Beside<'a>,
    active: ActiveFacts,
}

/// Decides whether a release belongs on the other system.
fn aim<'a>(
    job: &RecoveryJob<'a>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<Option<Aim<'a>>, RecoveryError> {
    let Some(other) = job.resources.other else { return Ok(None) };
    let (id, Policy { active, installed, .. }) = (release.id(), job.policy);
    let known = other.state.record(job.resources.keys);
    let active = ActiveFacts {
        has_release: record.is_some_and(|record| record.id() == id),
        system: active,
        worth: installed.map(|installed| installed.worth).unwrap_or_default(),
    };
    let facts = OtherFacts {
        is_known_to_grub: other.is_known_to_grub,
        has_release: known.is_some_and(|known| known.id() == id),
    };
    if !takes_other(active, facts) {
        return Ok(None);
    }
    let image_bytes = release.index.image_bytes();
    write::check_size(image_bytes, other.target)?;
    let active_bytes = record.and_then(|record| Some(record.manifest().image(SYSTEM_IMAGE).ok()?.size_bytes));
    let beside = Beside::new(other.target, image_bytes, job.resources.target, active_bytes.unwrap_or(image_bytes));
    Ok(Some(Aim { other, beside, active }))
}

/// Finds out what [`install_on_other`] would do, without changing anything.
fn estimate_on_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<Option<Totals>, RecoveryError> {
    let Some(Aim { other, beside, .. }) = aim(job, record, release)? else { return Ok(None) };
    let inner = job.on_other(&beside, other.state);
    Ok(Some(planning::compare_and_plan(&inner, beside.size_bytes(), release, None)?.totals(release)))
}

/// Writes the release to the other system and has GRUB start that one, if that is where it belongs; `None` if it is
/// not. The active system is read only, and is started as before whenever this is cut.
fn install_on_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<Option<RecoveryReport>, RecoveryError> {
    let Some(Aim { other, beside, active }) = aim(job, record, release)? else { return Ok(None) };
    let image_bytes = release.index.image_bytes();
    let inner = job.on_other(&beside, other.state);
    let planned = planning::compare_and_plan(&inner, beside.size_bytes(), release, None)?;
    let totals = planned.totals(release);
    planned.announce(job.journal);
    if planned.change(&release.index).is_some() && !job.policy.asked_before {
        rollout::check_still_offered(job, record, release.id())?;
    }
    release::note_choice(job, release);
    let permit = commit::permit_other(job, release, NetworkUse::Allowed)?;
    if planned.change(&release.index).is_some() {
        other.state.forget_installed().map_err(RecoveryError::OtherRecord)?;
        if let Err(error) = keeping::forget(other.target, image_bytes) {
            let name = other.target.name();
            job.journal.warn(&format!("what was kept for an undo on {name} cannot be removed: {error}"));
        }
    }
    let verified = rewrite::until_verified(&inner, &release.index, planned, None, &permit)?;
    let switch = Switch { to: other.number, can_go_back: is_worth_keeping(active) };
    let committed = commit(&inner, release, verified, permit.with_switch(switch), NetworkUse::Allowed)?;
    Ok(Some(report(release, totals, committed)))
}

/// Has GRUB start the other system, which holds a release that was good, once all of its bytes were seen to be right.
fn start_other(job: &RecoveryJob<'_>, other: OtherSystem<'_>) -> Result<RecoveryReport, RecoveryError> {
    let Some(installed) = other.state.installed(job.resources.keys) else {
        return Err(UndoObstacle::Nothing.into());
    };
    let inner = job.on_other(other.target, other.state);
    let verified = compare(&inner, &installed).map_err(|comparison: Comparison| UndoObstacle::Damaged {
        what: format!(
            "{} of it on {}",
            ranges_for_people(&comparison.damaged_ranges(&installed.index)),
            other.target.identity()
        ),
    })?;
    let (version, serial) = (&installed.manifest.version, installed.manifest.serial);
    job.journal.report(Event::SystemIntact { version, serial });
    let permit = commit::permit_other(job, &installed, NetworkUse::Forbidden)?;
    let permit = permit.with_switch(Switch { to: other.number, can_go_back: false });
    let committed = commit(&inner, &installed, verified, permit, NetworkUse::Forbidden)?;
    Ok(report(&installed, Totals::nothing_to_do(installed.index.image_bytes()), committed))
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
        let recorded = if permit.is_switch() { recorded.or_nothing()? } else { recorded };
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
