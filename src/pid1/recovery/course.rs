//! Carries out what was decided ([`decide`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::direct_start;
use super::ending::NextState;
use super::error::SetupError;
use super::install::{self, WantedRelease};
use super::online::Online;
use super::pause::Pause;
use super::setup::{Compared, Setup};
use super::without::{HOUR, Instead, start, without_release};
use super::{sources, staged, undo};
use crate::boot::decide::{self, BootDecision, Reason, Recoveries, Situation, System, WithoutRelease};
use crate::fetch::{Mirrors, Source};
use crate::jobs::pause;
use crate::jobs::recovery::{Policy, RecoveryJob};
use crate::pid1::background::background;
use crate::record::blackbox::AttemptOutcome;
use crate::record::report::Ending;

/// Well below the shortest `watchdog.stall_s`.
const REST_STEP: Duration = Duration::from_secs(10);

/// Decides, and does it, until the machine is to be restarted.
pub(super) fn run(setup: &Setup, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Result<NextState, SetupError> {
    if setup.recoveries.count == 0 && setup.standing.safe_starts.made == 0 {
        pause::forget(&setup.disk.state);
    }
    // A release that was asked for is not kept waiting by a comparison.
    let at_once = setup.reason.is_requested() && !setup.undo_is_requested();
    let mut compared = if at_once { Compared::Unknown } else { setup.compare_at_first(job) };
    if setup.disk.grub_is_elsewhere && matches!(compared, Compared::Intact(..)) {
        drop(compared);
        // Whatever is written here, GRUB goes on counting there.
        let why = "GRUB was loaded from a copy of this disk, and counts there: detach the copy, or have the firmware \
                   start this disk";
        return Ok(direct_start::start(setup, why));
    }
    let mut may_park = true;
    // The old system is intact where the power was cut before the first write.
    let mut goes_on_with_update = setup.reason == Reason::Recovering && setup.staged.is_some();
    loop {
        let situation = setup.situation(&compared, false);
        // A pause that is over lets the machine try once more what it was parked for.
        let situation = if may_park { situation } else { unbraked(situation) };
        let system = situation.system;
        let decision = decide::decide(&situation);
        if decision == BootDecision::Start && goes_on_with_update {
            goes_on_with_update = false;
            drop(compared);
            if let Some(next) = staged::run(setup, mirrors, job) {
                return Ok(next);
            }
            compared = setup.compare(job);
            continue;
        }
        // Whatever else is done, the index of the intact system is given up before: it may take 20 MiB.
        if let (BootDecision::Start, Compared::Intact(proof, installed)) = (decision, compared) {
            return start(setup, job, proof, &installed, None, "nothing has to be mended");
        }
        let done = match decision {
            // It may have changed some of the system, or nothing.
            BootDecision::Undo => undo::run(setup, job, system, None)?,
            BootDecision::Park => {
                park(setup);
                let done = wait_parked(setup, mirrors, job)?;
                if done.is_none() {
                    setup.journal.note("parked for long enough: trying once more what was tried before");
                    may_park = false;
                }
                // A newer release may have been begun and not finished.
                done
            }
            // Only an intact system is started, and every intact one has its proof. Afterwards no undo is possible with
            // the network either.
            decision => fetch(setup, mirrors, job, &situation, decision)?,
        };
        if let Some(next) = done {
            return Ok(next);
        }
        compared = setup.compare(job);
    }
}

fn unbraked(situation: Situation) -> Situation {
    Situation { recoveries: Recoveries { count: 0, ..situation.recoveries }, ..situation }
}

/// Fetches a release and installs it, or what an undo lacks. Where none is to be had by the deadline, if there is one,
/// something else is done. `None` if the undo that was decided is not possible with a network either.
fn fetch(
    setup: &Setup,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    situation: &Situation,
    decision: BootDecision,
) -> Result<Option<NextState>, SetupError> {
    let is_undo = decision == BootDecision::UndoOnline;
    let wanted = if decision == BootDecision::FetchNewer { WantedRelease::Newer } else { WantedRelease::Offered };
    let job = &RecoveryJob {
        policy: Policy { above: above(setup, wanted), active: situation.system, ..job.policy },
        ..job.clone()
    };
    if decision == BootDecision::Fetch
        && let Some(next) = staged::run(setup, mirrors, job)
    {
        return Ok(Some(next));
    }
    let only_waits = decide::without_release(situation) == WithoutRelease::Wait;
    // What was cut can be finished by what the system has fetched.
    let has_other_way = !only_waits || setup.staged.is_some();
    let mut deadline = has_other_way.then(|| setup.began + setup.config.offline);
    if sources::are_at_hand(&setup.config, &setup.journal) {
        if is_undo {
            return undo_with(setup, mirrors, job, situation.system);
        }
        let deadline = deadline.filter(|_| wanted == WantedRelease::Newer);
        return install::until_installed(&Online::without_network(setup), mirrors, job, wanted, deadline).map(Some);
    }
    let mut rest = None;
    let online = loop {
        if let Some(online) = Online::bring_up(setup, deadline)? {
            break online;
        }
        if let Some(next) = staged::without_network(&Online::without_network(setup), mirrors, job) {
            return Ok(Some(next));
        }
        match without_release(setup, job, "no release is available", None)? {
            Instead::Done(next) => return Ok(Some(next)),
            Instead::GoOn { until } => {
                deadline = until;
                rest = until.map(|_| Rest::begin(setup));
            }
        }
    };
    drop(rest);
    if !setup.reason.is_requested() && !setup.usb_release.is_there() {
        sources::spread_out(setup.config.spread, &setup.handover, &setup.journal);
    }
    let next = match is_undo {
        true => undo_with(setup, mirrors, job, situation.system),
        false => install::until_installed(&online, mirrors, job, wanted, deadline).map(Some),
    };
    online.close();
    next
}

/// A pause that is meant. Until it is dropped the watchdog is fed: a reset would only begin the pause again.
struct Rest(Arc<AtomicBool>);

impl Rest {
    fn begin(setup: &Setup) -> Self {
        let (over, journal) = (Arc::new(AtomicBool::new(false)), Arc::clone(&setup.journal));
        let ended = Arc::clone(&over);
        background(&setup.journal, "pause", move || {
            while !ended.load(Ordering::Relaxed) {
                journal.progressed();
                std::thread::sleep(REST_STEP);
            }
        });
        Self(over)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Goes back to the release that is kept and lacks something that a network may have. Where that was asked for and
/// fails all the same, nothing else is installed in its place while the system is intact.
fn undo_with(
    setup: &Setup,
    mirrors: &Mirrors,
    job: &RecoveryJob<'_>,
    system: System,
) -> Result<Option<NextState>, SetupError> {
    if let Some(next) = undo::run(setup, job, system, Some(&install::once(mirrors)))? {
        return Ok(Some(next));
    }
    if setup.undo_is_requested()
        && let Instead::Done(next) = without_release(setup, job, "no undo is possible", None)?
    {
        return Ok(Some(next));
    }
    Ok(None)
}

/// The serial that a release must be above, where only a newer one is wanted.
fn above(setup: &Setup, wanted: WantedRelease) -> Option<u64> {
    setup.standing.installed.filter(|_| wanted == WantedRelease::Newer).map(|installed| installed.id.serial)
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
fn wait_parked(setup: &Setup, mirrors: &Mirrors, job: &RecoveryJob<'_>) -> Result<Option<NextState>, SetupError> {
    let Recoveries { serial, count } = setup.recoveries;
    let length = HOUR * decide::parked_hours(setup.recoveries, setup.config.recoveries);
    let pause = Pause::begin(&setup.disk.state, &setup.journal, &format!("parked:{serial}:{count}"), length);
    let until = pause.until;
    if sources::are_at_hand(&setup.config, &setup.journal) {
        return install::until_another(&Online::without_network(setup), mirrors, job, serial, Some(until));
    }
    let rest = Rest::begin(setup);
    let Some(online) = Online::bring_up(setup, Some(until))? else { return Ok(None) };
    drop(rest);
    online.settle(Ending::Failed);
    let next = install::until_another(&online, mirrors, job, serial, Some(until));
    online.close();
    next
}
