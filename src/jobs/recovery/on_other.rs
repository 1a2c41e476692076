//! A release on the other of two systems: written while the active one works, and started once it is proven.

use crate::boot::env::WritePermit;
use crate::boot::systems::{ActiveFacts, OtherFacts, Switch, is_worth_keeping, takes_other};
use crate::flash::beside::Beside;
use crate::flash::plan::Comparison;
use crate::flash::target::BlockTarget as _;
use crate::flash::undo::{self as keeping, UndoObstacle};
use crate::flash::verify::Verified;
use crate::flash::write;
use crate::jobs::recovery::commit;
use crate::jobs::recovery::error::RecoveryError;
use crate::jobs::recovery::finish::{self, RecoveryReport, report};
use crate::jobs::recovery::indexing::{self, IndexUse};
use crate::jobs::recovery::job::{Policy, RecoveryJob};
use crate::jobs::recovery::other::OtherSystem;
use crate::jobs::recovery::planning::{self, compare};
use crate::jobs::recovery::renew::NetworkUse;
use crate::jobs::recovery::{offered, release, rewrite, rollout};
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::event::{Event, ranges_for_people};
use crate::record::totals::Totals;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE};

/// Writes the release that is offered to the other system and has GRUB start it, while the machine works with the
/// active one. `None` where the active system holds that release, or an older boot script would start it whatever is
/// written.
///
/// # Errors
/// As [`super::run`].
pub fn update_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
) -> Result<Option<RecoveryReport>, RecoveryError> {
    let release = offered::fetch_indexed(job, record, IndexUse::All)?;
    install_on_other(job, record, &release)
}

/// Installs a release that was fetched before on the other system, as [`update_other`] does.
///
/// # Errors
/// As [`super::run`].
pub fn switch_to(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    fetched: Release,
) -> Result<Option<RecoveryReport>, RecoveryError> {
    let release = indexing::add_index(job, record, fetched, IndexUse::All)?;
    install_on_other(job, record, &release)
}

/// Writes a release that was fetched before to the other system and reads it back, and has GRUB go on starting the
/// active one: [`switch_to`] then has only to compare. `begun` gets the quantities of the plan. `None` as with
/// [`update_other`].
///
/// # Errors
/// As [`super::run`].
pub fn prepare_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    fetched: Release,
    begun: impl FnOnce(Totals),
) -> Result<Option<Totals>, RecoveryError> {
    let release = indexing::add_index(job, record, fetched, IndexUse::All)?;
    let Some(aim) = aim(job, record, &release)? else { return Ok(None) };
    // Nothing is made of the proof: whether all is still right is seen when GRUB is switched.
    aim.write(job, record, &release, begun, true).map(|written| Some(written.totals))
}

/// Finds out what [`update_other`] would do, without changing anything.
///
/// # Errors
/// As [`super::run`], up to the plan.
pub fn estimate_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
) -> Result<Option<(Manifest, Totals)>, RecoveryError> {
    let release = offered::fetch_indexed(job, record, IndexUse::All)?;
    let Some(Aim { other, beside, .. }) = aim(job, record, &release)? else { return Ok(None) };
    let inner = job.on_other(&beside, other.state);
    let totals = planning::compare_and_plan(&inner, beside.size_bytes(), &release, None)?.totals(&release);
    Ok(Some((release.manifest, totals)))
}

/// What is written, where a release belongs on the other system.
struct Aim<'a> {
    other: OtherSystem<'a>,
    beside: Beside<'a>,
    active: ActiveFacts,
}

/// A release that lies on the other system, proven.
struct WrittenBeside {
    verified: Verified,
    permit: WritePermit,
    totals: Totals,
}

impl Aim<'_> {
    /// Writes the release and reads it back. The active system is read only, and is started as before whenever this is
    /// cut.
    fn write(
        &self,
        job: &RecoveryJob<'_>,
        record: Option<&InstalledRecord>,
        release: &IndexedRelease,
        begun: impl FnOnce(Totals),
        slots_stay: bool,
    ) -> Result<WrittenBeside, RecoveryError> {
        let other = self.other;
        let inner = job.on_other(&self.beside, other.state);
        let planned = planning::compare_and_plan(&inner, self.beside.size_bytes(), release, None)?;
        let totals = planned.totals(release);
        planned.announce(job.journal);
        let changes = planned.change(&release.index).is_some();
        if changes && !job.policy.asked_before {
            rollout::check_still_offered(job, record, release.id())?;
        }
        release::note_choice(job, release);
        begun(totals);
        let permit = commit::permit_other(job, release, NetworkUse::Allowed, slots_stay)?;
        if changes {
            other.state.forget_installed().map_err(RecoveryError::OtherRecord)?;
            if let Err(error) = keeping::forget(other.target, release.index.image_bytes()) {
                let name = other.target.name();
                job.journal.warn(&format!("what was kept for an undo on {name} cannot be removed: {error}"));
            }
        }
        let verified = rewrite::until_verified(&inner, &release.index, planned, None, &permit)?;
        Ok(WrittenBeside { verified, permit, totals })
    }
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
    // What was looked through is the active system, and the other one is written.
    drop(release.survey.take());
    let image_bytes = release.index.image_bytes();
    write::check_size(image_bytes, other.target)?;
    let active_bytes = record.and_then(|record| Some(record.manifest().image(SYSTEM_IMAGE).ok()?.size_bytes));
    let beside = Beside::new(other.target, image_bytes, job.resources.target, active_bytes.unwrap_or(image_bytes));
    Ok(Some(Aim { other, beside, active }))
}

/// Writes the release to the other system and has GRUB start that one, if that is where it belongs; `None` if it is
/// not.
pub(super) fn install_on_other(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &IndexedRelease,
) -> Result<Option<RecoveryReport>, RecoveryError> {
    let Some(aim) = aim(job, record, release)? else { return Ok(None) };
    let WrittenBeside { verified, permit, totals } = aim.write(job, record, release, |_| (), false)?;
    let inner = job.on_other(&aim.beside, aim.other.state);
    let switch = Switch { to: aim.other.number, can_go_back: is_worth_keeping(aim.active) };
    let committed = finish::commit(&inner, release, verified, permit.with_switch(switch), NetworkUse::Allowed)?;
    Ok(Some(report(release, totals, committed)))
}

/// Has GRUB start the other system, which holds a release that was good, once all of its bytes were seen to be right.
pub(super) fn start_other(job: &RecoveryJob<'_>, other: OtherSystem<'_>) -> Result<RecoveryReport, RecoveryError> {
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
    let permit = commit::permit_other(job, &installed, NetworkUse::Forbidden, false)?;
    let permit = permit.with_switch(Switch { to: other.number, can_go_back: false });
    let committed = finish::commit(&inner, &installed, verified, permit, NetworkUse::Forbidden)?;
    Ok(report(&installed, Totals::nothing_to_do(installed.index.image_bytes()), committed))
}
