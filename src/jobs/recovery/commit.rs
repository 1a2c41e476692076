//! The boot environment before the first write and after the proof: only what was verified can be committed.

use std::io;

use crate::boot::env::{PermitRequest, WritePermit};
use crate::boot::slots::SlotState;
use crate::boot::systems::Switch;
use crate::boot::worth::Worth;
use crate::flash::verify::Verified;
use crate::jobs::floor::ReleaseId;
use crate::jobs::recovery::error::{CommitError, RecoveryError};
use crate::jobs::recovery::job::{Policy, RecoveryJob};
use crate::jobs::recovery::renew::NetworkUse;
use crate::jobs::state::{IndexedRelease, StatePartition};

/// Makes sure that every boot from now on leads back into recovery, until the release is committed.
pub(super) fn permit(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    network_use: NetworkUse,
) -> Result<WritePermit, RecoveryError> {
    let Some(state) = job.resources.state else { return Ok(WritePermit::without_environment()) };
    let request = request(job, release, network_use);
    let permit = state.boot_env().begin_recovering(request).map_err(RecoveryError::Prepare)?;
    report_dropped(job, &permit);
    // On a robot with two systems, GRUB goes back to a good one from whatever was installed over another release.
    Ok(match job.resources.other.filter(|other| other.is_known_to_grub) {
        None => permit,
        Some(other) => {
            let can_go_back = other.is_good && (request.replaces || other.is_gone_back_to);
            permit.with_switch(Switch { to: other.number.other(), can_go_back })
        }
    })
}

/// Makes sure that GRUB goes on starting the active system while the other one is written. `slots_stay` says that the
/// recovery is not brought up to date afterwards.
pub(super) fn permit_other(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    network_use: NetworkUse,
    slots_stay: bool,
) -> Result<WritePermit, RecoveryError> {
    let Some(state) = job.resources.state else { return Ok(WritePermit::without_environment()) };
    let request = PermitRequest {
        replaces: true,
        slots_stay,
        requests_stay: job.policy.in_running_system,
        ..request(job, release, network_use)
    };
    let permit = state.boot_env().begin_other(request).map_err(RecoveryError::Prepare)?;
    report_dropped(job, &permit);
    Ok(permit)
}

fn report_dropped(job: &RecoveryJob<'_>, permit: &WritePermit) {
    if !permit.dropped.is_empty() {
        let dropped = permit.dropped.join(", ");
        job.journal.warn(&format!("the boot environment was full; removed variables of other programs: {dropped}"));
    }
}

fn request(job: &RecoveryJob<'_>, release: &IndexedRelease, network_use: NetworkUse) -> PermitRequest {
    let Policy { requested, recoveries, installed, safe_start, .. } = job.policy;
    let recoveries = recoveries.towards(release.manifest.serial, requested);
    let recoveries_on_success = if requested { recoveries } else { recoveries.one_more() };
    // Only a recovery that found a release has proven its slot.
    let proven = job.resources.renewal.and_then(|renewal| renewal.booted);
    let proven = proven.filter(|_| network_use == NetworkUse::Allowed);
    let good = installed.filter(|installed| installed.worth == Worth::Before).map(|installed| installed.id.serial);
    let replaces = installed.is_none_or(|installed| installed.id != release.id());
    let id = release.id();
    let is_another = |known: ReleaseId| known.serial == id.serial && known != id;
    let noted = job.resources.floor.and_then(|floor| floor.record().good).map(|good| good.release);
    let noted = noted.filter(|noted| noted.serial == id.serial);
    let good_is_another = noted.or(installed.map(|installed| installed.id)).is_some_and(is_another);
    PermitRequest {
        recoveries,
        recoveries_on_success,
        proven,
        good,
        replaces,
        good_is_another,
        safe_start,
        slots_stay: false,
        requests_stay: false,
    }
}

/// A verified release whose record was written, or could not be.
#[derive(Debug)]
pub(super) struct Recorded {
    unrecorded: Option<io::Error>,
}

/// Proof that GRUB will start the verified system.
#[derive(Debug)]
pub struct Committed {
    /// Error because of which the release could not be recorded as installed. The system starts all the same: without
    /// the record a later recovery asks the network where it could have compared.
    pub unrecorded: Option<io::Error>,
}

/// Records the verified release as the installed one.
pub(super) fn record(_proof: Verified, state: Option<&StatePartition>, release: &IndexedRelease) -> Recorded {
    let recorded = state.map_or(Ok(()), |state| state.record_installed(&release.signed, &release.index_object));
    Recorded { unrecorded: recorded.err() }
}

impl Recorded {
    /// Refuses what could not be recorded: what GRUB is switched to has to be known to the next recovery.
    pub(super) fn or_nothing(self) -> Result<Self, RecoveryError> {
        match self.unrecorded {
            None => Ok(self),
            Some(error) => Err(RecoveryError::OtherRecord(error)),
        }
    }

    /// Gives the system its tries, and points GRUB at `slots` for the next recovery unless they are to stay as they
    /// are.
    ///
    /// # Errors
    /// [`CommitError`]; the next boot comes back to recovery.
    pub(super) fn finish(
        self,
        permit: WritePermit,
        tries: u8,
        slots: Option<SlotState>,
    ) -> Result<Committed, CommitError> {
        permit.finish(tries, slots)?;
        Ok(Committed { unrecorded: self.unrecorded })
    }
}
