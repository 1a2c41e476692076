//! The update that the running system has fetched: applied from the data partition, without a network.
//!
//! Nothing of the store is trusted: the manifest needs a signature, all else the digests that follow from it. The boot
//! environment says, beside the request for this recovery, whether it may be applied without asking a network.

use super::data_store::Staged;
use super::ending::NextState;
use super::online::Online;
use super::setup::Setup;
use crate::boot::decide::{KeptRelease, Reason};
use crate::boot::request::UpdatePermission;
use crate::boot::slots::{Slot, Trial};
use crate::chain::chain;
use crate::fetch::{Mirrors, RetryPolicy, Source};
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
    let age = age_obstacle(&staged.permission, sys::clock::now_unix_s(), setup.clock.of_hardware());
    if let Some(why) = age.or_else(|| obstacle(setup).map(str::to_owned)) {
        setup.journal.note(&format!("{why}: asking a network"));
        return None;
    }
    apply(&Online::without_network(setup), mirrors, job, staged)
}

/// Applies what the running system has fetched though no network could be asked in time, where that is right all the
/// same. `None` where it is not, or is not possible.
pub(super) fn without_network(online: &Online<'_>, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Option<NextState> {
    let setup = online.setup;
    let staged = setup.staged.as_ref()?;
    let why =
        right_without_network(setup.reason, setup.standing.kept(false), &staged.permission, setup.clock.of_hardware())
            .filter(|_| obstacle(setup).is_none())?;
    setup.journal.note(&format!("no network, and {why}: applying what the system has fetched"));
    apply(online, mirrors, job, staged)
}

fn apply(online: &Online<'_>, mirrors: &Mirrors, job: &RecoveryJob<'_>, staged: &Staged) -> Option<NextState> {
    let setup = online.setup;
    let started = std::time::Instant::now();
    let installed = worker::within(&WorkPart::Staged, || {
        let release = staged.store.release(&setup.keys).map_err(|error| chain(&error))?;
        recovery::accept(job, setup.record.as_ref(), &release).map_err(|error| chain(&error))?;
        if release.id() != id_of(&staged.permission) {
            return Err("it is another release than the one that was asked about".to_owned());
        }
        let (_, all) = staged.store.bytes();
        let version = &release.manifest.version;
        setup.journal.note(&format!("{version} was fetched by the system, {}: no network is needed", bytes(all)));
        let once = mirrors.clone().with_retry_policy(RetryPolicy::Rounds(1));
        let policy = Policy { asked_before: true, ..job.policy };
        let job = RecoveryJob { policy, ..job.with_source(&once) };
        recovery::install(&job, setup.record.as_ref(), release).map_err(|error| chain(&error))
    });
    match installed {
        Ok(report) => Some(online.installed(&report, started)),
        Err(why) => {
            setup.journal.warn(&format!("the update that the system has fetched is not applied: {why}"));
            None
        }
    }
}

/// Says why the age of the permission has a network asked first, if it does, where the clock shows `now` and would show
/// `unmoved` had this recovery not set it. Pure.
fn age_obstacle(permission: &UpdatePermission, now: u64, unmoved: u64) -> Option<String> {
    if permission.is_enough(now) {
        return None;
    }
    let UpdatePermission { asked_unix_s, hours, .. } = *permission;
    Some(match now.checked_sub(asked_unix_s) {
        Some(ago) if now.abs_diff(unmoved) < 3600 => {
            format!(
                "the servers were asked about the update {} h ago, which is enough for {hours} h",
                ago.div_ceil(3600)
            )
        }
        Some(_) => {
            "how long ago the servers were asked about the update is not known, for the clock was set".to_owned()
        }
        None => "how long ago the servers were asked about the update is not known, for the clock is behind".to_owned(),
    })
}

/// Says what makes it right to apply the update although no network has come and the permission is not enough by the
/// clock as it is now. Pure.
///
/// Freshness protects the beginning of an update and not its end: half a system helps no robot. And a permission is
/// enough by the clock that the system and the hardware had, until this recovery alone moved it. A network is given its
/// time all the same: the robot may have been off for a month with a dead clock.
fn right_without_network(
    reason: Reason,
    kept: KeptRelease,
    permission: &UpdatePermission,
    unmoved: u64,
) -> Option<&'static str> {
    let has_way_back = matches!(kept, KeptRelease::Another | KeptRelease::Installed);
    match reason {
        Reason::Recovering if has_way_back => None,
        Reason::Recovering => Some("the update was cut and there is nothing to go back to"),
        _ => permission.is_enough(unmoved).then_some("by the hardware clock the servers were asked just before"),
    }
}

/// What other than age has a network asked first, if there is anything.
fn obstacle(setup: &Setup) -> Option<&'static str> {
    if setup.usb_release.is_there() {
        return Some("a person has plugged in a USB drive with a release");
    }
    // A recovery that is new has to show that its network works.
    let booted = Slot::parse(setup.args.slot.as_deref());
    let trial = setup.disk.state.boot_env().slots().ok().and_then(|slots| slots.trial);
    let is_on_trial = booted.is_some_and(|booted| trial == Some(Trial::Tried(booted)));
    is_on_trial.then_some("this recovery is on trial")
}

fn id_of(permission: &UpdatePermission) -> ReleaseId {
    ReleaseId { serial: permission.serial, digest: permission.digest }
}

#[cfg(test)]
mod tests {
    use super::{age_obstacle, right_without_network};
    use crate::boot::decide::{KeptRelease, Reason};
    use crate::boot::request::UpdatePermission;

    const ASKED: u64 = 1_794_700_000;
    const DAY: u64 = 24 * 3600;
    const PERMISSION: UpdatePermission = UpdatePermission { serial: 2, digest: [1; 8], asked_unix_s: ASKED, hours: 24 };

    #[test]
    fn an_age_is_named_only_by_a_clock_that_recovery_did_not_set() {
        let said = |now, unmoved| age_obstacle(&PERMISSION, now, unmoved).unwrap_or_default();
        assert_eq!(said(ASKED + 600, ASKED + 600), "");
        assert!(said(ASKED + 2 * DAY, ASKED + 2 * DAY - 5).contains("48 h ago"));
        assert!(said(ASKED + 60 * DAY, ASKED + 600).ends_with("the clock was set"));
        assert!(said(ASKED - 60 * DAY, ASKED - 60 * DAY).ends_with("the clock is behind"));
    }

    #[test]
    fn without_a_network_an_update_is_begun_by_the_hardware_clock_and_finished_by_any() {
        use KeptRelease::{Another, Installed, Nothing, Part};
        let is_right = |reason, kept, unmoved| right_without_network(reason, kept, &PERMISSION, unmoved).is_some();
        for kept in [Another, Installed, Nothing, Part] {
            assert!(is_right(Reason::Requested, kept, ASKED + 600), "{kept:?}");
            assert!(!is_right(Reason::Requested, kept, ASKED + 2 * DAY), "{kept:?}");
            assert!(!is_right(Reason::Requested, kept, 0), "{kept:?}");
            let has_way_back = [Another, Installed].contains(&kept);
            assert_eq!(is_right(Reason::Recovering, kept, 0), !has_way_back, "{kept:?}");
        }
    }
}
