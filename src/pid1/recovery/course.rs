//! Carries out what was decided ([`decide`]), and what is done where no release is to be had.

use std::time::{Duration, Instant};

use super::ending::NextState;
use super::error::SetupError;
use super::install::{self, Wanted};
use super::online::Online;
use super::setup::{Compared, Setup};
use super::{sources, undo};
use crate::boot::decide::{self, BootDecision, Recoveries, Situation, WithoutRelease};
use crate::fetch::{Mirrors, Source};
use crate::flash::verify::Verified;
use crate::jobs::recovery::{self, Policy, RecoveryJob};
use crate::jobs::state::IndexedRelease;
use crate::pid1::worker;
use crate::record::blackbox::AttemptOutcome;
use crate::record::report::Ending;

const HOUR: Duration = Duration::from_secs(3600);

/// Decides, and does it, until the machine is to be restarted.
pub(super) fn run(setup: &Setup, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Result<NextState, SetupError> {
    // A release that was asked for is not kept waiting by a comparison.
    let at_once = setup.reason.is_requested() && !setup.undo_is_requested();
    let mut compared = if at_once { Compared::Unknown } else { setup.compare(job) };
    let mut may_park = true;
    loop {
        let situation = setup.situation(&compared);
        // A pause that is over lets the machine try once more what it was parked for.
        let situation = if may_park { situation } else { unbraked(situation) };
        match (decide::decide(&situation), compared) {
            (BootDecision::Start, Compared::Intact(proof, installed)) => {
                return start(setup, job, proof, &installed, None, "nothing has to be mended");
            }
            (BootDecision::Undo, _) => {
                if let Some(next) = undo::run(setup, job, None)? {
                    return Ok(next);
                }
                // It may have changed some of the system, or nothing.
                compared = setup.compare(job);
            }
            (BootDecision::Park, before) => {
                park(setup);
                if let Some(next) = wait_parked(setup, mirrors, job)? {
                    return Ok(next);
                }
                setup.journal.note("parked for long enough: trying once more what was tried before");
                may_park = false;
                compared = before;
            }
            (BootDecision::FetchNewer, _) => return fetch(setup, mirrors, job, &situation, Wanted::Newer),
            // Only an intact system is started, and every intact one has its proof.
            (BootDecision::Fetch | BootDecision::Start, _) => {
                return fetch(setup, mirrors, job, &situation, Wanted::Offered);
            }
        }
    }
}

fn unbraked(situation: Situation) -> Situation {
    Situation { recoveries: Recoveries { count: 0, ..situation.recoveries }, ..situation }
}

/// Fetches a release and installs it. Where none is to be had by the deadline, if there is one, something else is done.
fn fetch(
    setup: &Setup,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    situation: &Situation,
    wanted: Wanted,
) -> Result<NextState, SetupError> {
    let job = &RecoveryJob { policy: Policy { above: above(setup, wanted), ..job.policy }, ..job.clone() };
    let can_wait = decide::without_release(situation) == WithoutRelease::Wait;
    let mut deadline = (!can_wait).then(|| setup.began + setup.config.offline);
    if sources::are_at_hand(&setup.config, &setup.journal) {
        let deadline = deadline.filter(|_| wanted == Wanted::Newer);
        return install::until_installed(&Online::without_network(setup), mirrors, job, wanted, deadline);
    }
    let online = loop {
        if let Some(online) = Online::bring_up(setup, deadline)? {
            break online;
        }
        match without_release(setup, job, "no release is available", None)? {
            Instead::Done(next) => return Ok(next),
            Instead::GoOn { until } => deadline = until,
        }
    };
    if !setup.reason.is_requested() && !setup.usb_release.is_there() {
        sources::spread_out(setup.config.spread, &setup.handover, &setup.journal);
    }
    let next = match undo_with(setup, mirrors, job)? {
        Some(next) => Ok(next),
        None => install::until_installed(&online, mirrors, job, wanted, deadline),
    };
    online.close();
    next
}

/// Goes back to the release that is kept, if that was decided and lacks something that a network has.
fn undo_with(setup: &Setup, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Result<Option<NextState>, SetupError> {
    if setup.standing.undo_needs_network() {
        undo::run(setup, job, Some(&install::once(mirrors)))
    } else {
        Ok(None)
    }
}

/// The serial that a release must be above, where only a newer one is wanted.
fn above(setup: &Setup, wanted: Wanted) -> Option<u64> {
    setup.standing.installed.filter(|_| wanted == Wanted::Newer).map(|installed| installed.id.serial)
}

/// What became of an attempt to do without a release.
pub(super) enum Instead {
    /// The machine is to be restarted.
    Done(NextState),
    /// Nothing can be done yet but to go on asking, until that time if there is one.
    GoOn {
        /// Time from which on something may be done.
        until: Option<Instant>,
    },
}

/// Does what is to be done where no release can be had. `why` says what keeps one from being installed; `network` is
/// there where the machine has one.
pub(super) fn without_release(
    setup: &Setup,
    job: &RecoveryJob<'_>,
    why: &str,
    network: Option<&dyn Source>,
) -> Result<Instead, SetupError> {
    loop {
        let compared = setup.compare(job);
        let what = decide::without_release(&setup.situation(&compared));
        return match (what, compared) {
            (WithoutRelease::Start, Compared::Intact(proof, installed)) => {
                start(setup, job, proof, &installed, None, why).map(Instead::Done)
            }
            (WithoutRelease::SafeStart, Compared::Intact(proof, installed)) => {
                let number = setup.standing.next_safe_start();
                start(setup, job, proof, &installed, Some(number), why).map(Instead::Done)
            }
            (WithoutRelease::Undo, _) => match undo::run(setup, job, network)? {
                Some(next) => Ok(Instead::Done(next)),
                None => continue,
            },
            (WithoutRelease::Try, _) => try_once(setup, why),
            (WithoutRelease::Wait | WithoutRelease::Start | WithoutRelease::SafeStart, _) => {
                Ok(Instead::GoOn { until: None })
            }
        };
    }
}

/// Starts the intact system once more; with a number, as a safe start.
fn start(
    setup: &Setup,
    job: &RecoveryJob<'_>,
    proof: Verified,
    installed: &IndexedRelease,
    safe_start: Option<u16>,
    why: &str,
) -> Result<NextState, SetupError> {
    let job = RecoveryJob { policy: Policy { safe_start, ..job.policy }, ..job.clone() };
    let report = recovery::start_again(&job, proof, installed)?;
    worker::done();
    setup.finish(AttemptOutcome::Started);
    let version = report.version;
    Ok(NextState::Reboot(match safe_start {
        None => format!("{why} and {version} is intact: starting it"),
        Some(number) => format!(
            "{why}; {version} is intact, was good before and does not come up: safe start {number}, with the image's own \
             settings and without the data"
        ),
    }))
}

/// Starts a system of which nothing is known, after a pause that grows with each time that this was in vain.
fn try_once(setup: &Setup, why: &str) -> Result<Instead, SetupError> {
    let tried = setup.recoveries.count;
    let hours = if tried == 0 { 0 } else { decide::parked_hours(setup.recoveries, 1) };
    let due = setup.began + setup.config.offline + HOUR * hours;
    if Instant::now() < due {
        setup.journal.note(&format!("{why}; the system is tried once more in {hours} h, whatever it is"));
        return Ok(Instead::GoOn { until: Some(due) });
    }
    setup.disk.state.boot_env().try_once(setup.recoveries)?;
    worker::done();
    setup.finish(AttemptOutcome::Started);
    Ok(Instead::Done(NextState::Reboot(format!("{why}, and nothing is known of the system: trying to start it"))))
}

/// Reports and records that this machine waits for another release.
fn park(setup: &Setup) {
    let Recoveries { serial, count } = setup.recoveries;
    let hours = decide::parked_hours(setup.recoveries, setup.config.recoveries);
    setup.journal.warn(&format!(
        "parked: release {serial} was installed {count} times without a good boot; waiting for a release \
         with a higher serial, and trying once more in {hours} h. \"Recover/Reflash\" in the boot menu writes this one \
         again"
    ));
    setup.finish(AttemptOutcome::Parked);
}

/// Waits for a newer release and installs it. `None` once the pause is over.
fn wait_parked(
    setup: &Setup,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
) -> Result<Option<NextState>, SetupError> {
    let until = Instant::now() + HOUR * decide::parked_hours(setup.recoveries, setup.config.recoveries);
    let serial = setup.recoveries.serial;
    if sources::are_at_hand(&setup.config, &setup.journal) {
        return install::until_another(&Online::without_network(setup), mirrors, job, serial, Some(until));
    }
    let Some(online) = Online::bring_up(setup, Some(until))? else { return Ok(None) };
    online.settle(Ending::Failed);
    let next = install::until_another(&online, mirrors, job, serial, Some(until));
    online.close();
    next
}
