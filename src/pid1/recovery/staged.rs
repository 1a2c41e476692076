//! The update that the running system has fetched: applied from the data partition, without a network.
//!
//! Nothing of the store is trusted: the manifest needs a signature, all else the digests that follow from it. The boot
//! environment says, beside the request for this recovery, whether it may be applied without asking a network.

use super::data_store::Staged;
use super::ending::NextState;
use super::install;
use super::online::Online;
use super::setup::Setup;
use crate::boot::request::UpdatePermission;
use crate::boot::slots::{Slot, Trial};
use crate::chain::chain;
use crate::fetch::{Mirrors, Source};
use crate::jobs::floor::ReleaseId;
use crate::jobs::recovery::{self, Policy, RecoveryJob};
use crate::pid1::link::WorkPart;
use crate::pid1::worker;
use crate::record::progress::bytes;
use crate::sys;

/// Applies what the running system has fetched. `None` where that is not possible: a network is to be asked then, and
/// what was fetched is still one of the sources.
pub(super) fn run(setup: &Setup, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Option<NextState> {
    let staged = setup.staged.as_ref()?;
    let started = std::time::Instant::now();
    if let Some(why) = obstacle(setup, staged) {
        setup.journal.note(&format!("{why}: asking a network"));
        return None;
    }
    let installed = worker::within(&WorkPart::Staged, || {
        let release = staged.store.release(&setup.keys).map_err(|error| chain(&error))?;
        recovery::accept(job, setup.record.as_ref(), &release).map_err(|error| chain(&error))?;
        if release.id() != id_of(&staged.permission) {
            return Err("it is another release than the one that was asked about".to_owned());
        }
        let (_, all) = staged.store.bytes();
        let version = &release.manifest.version;
        setup.journal.note(&format!("{version} was fetched by the system, {}: no network is needed", bytes(all)));
        let once = install::once(mirrors);
        let policy = Policy { asked_before: true, ..job.policy };
        let job = RecoveryJob { policy, ..job.with_source(&once) };
        recovery::install(&job, setup.record.as_ref(), release).map_err(|error| chain(&error))
    });
    match installed {
        Ok(report) => Some(install::installed(&Online::without_network(setup), &report, started)),
        Err(why) => {
            setup.journal.warn(&format!("the update that the system has fetched is not applied: {why}"));
            None
        }
    }
}

/// The reason for which a network is asked first, if there is one.
fn obstacle(setup: &Setup, staged: &Staged) -> Option<String> {
    let now = sys::clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let UpdatePermission { asked_unix_s, hours, .. } = staged.permission;
    if !staged.permission.is_enough(now) {
        return Some(match now.checked_sub(asked_unix_s) {
            Some(ago) => format!(
                "the servers were asked about the update {} h ago, which is enough for {hours} h",
                ago.div_ceil(3600)
            ),
            None => {
                "how long ago the servers were asked about the update is not known, for the clock is behind".to_owned()
            }
        });
    }
    if setup.usb_release.is_there() {
        return Some("a person has plugged in a USB drive with a release".to_owned());
    }
    // A recovery that is new has to show that its network works.
    let booted = Slot::parse(setup.args.slot.as_deref());
    let trial = setup.disk.state.boot_env().slots().ok().and_then(|slots| slots.trial);
    let is_on_trial = booted.is_some_and(|booted| trial == Some(Trial::Tried(booted)));
    is_on_trial.then(|| "this recovery is on trial".to_owned())
}

fn id_of(permission: &UpdatePermission) -> ReleaseId {
    ReleaseId { serial: permission.serial, digest: permission.digest }
}
