//! What is done where no release is to be had ([`decide::without_release`]).

use std::time::{Duration, Instant};

use super::direct_start;
use super::ending::NextState;
use super::error::SetupError;
use super::pause::Pause;
use super::setup::{Compared, Setup};
use super::undo;
use crate::boot::decide::{self, Reason, Recoveries, Situation, WithoutRelease};
use crate::chain::chain;
use crate::fetch::Source;
use crate::flash::verify::Verified;
use crate::jobs::pause;
use crate::jobs::recovery::{self, Policy, RecoveryJob};
use crate::jobs::state::IndexedRelease;
use crate::pid1::worker;
use crate::record::blackbox::AttemptOutcome;

/// An hour, the unit of the pauses of a machine that waits for others.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

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
        let system = compared.system();
        let situation = setup.situation(&compared, network.is_some());
        let what = decide::without_release(&situation);
        if let Some(until) = rest_before(setup, what, &situation, why) {
            return Ok(Instead::GoOn { until: Some(until) });
        }
        return match (what, compared) {
            (WithoutRelease::Start, Compared::Intact(proof, installed)) => {
                start(setup, job, proof, &installed, None, why).map(Instead::Done)
            }
            (WithoutRelease::SafeStart, Compared::Intact(proof, installed)) => {
                let number = setup.standing.next_safe_start();
                start(setup, job, proof, &installed, Some(number), why).map(Instead::Done)
            }
            (WithoutRelease::Undo, _) => match undo::run(setup, job, system, network)? {
                Some(next) => Ok(Instead::Done(next)),
                None => continue,
            },
            (WithoutRelease::Try, _) => try_once(setup, why).map(Instead::Done),
            (WithoutRelease::Wait | WithoutRelease::Start | WithoutRelease::SafeStart, _) => {
                Ok(Instead::GoOn { until: None })
            }
        };
    }
}

/// Starts the intact system once more; with a number, as a safe start.
pub(super) fn start(
    setup: &Setup,
    job: &RecoveryJob<'_>,
    proof: Verified,
    installed: &IndexedRelease,
    safe_start: Option<u16>,
    why: &str,
) -> Result<NextState, SetupError> {
    let job = RecoveryJob { policy: Policy { safe_start, ..job.policy }, ..job.clone() };
    let report = match recovery::start_again(&job, proof, installed) {
        Ok(report) => report,
        // The environment cannot be written, so that GRUB would lead back here.
        Err(error) => return Ok(direct_start::start(setup, &format!("{why} and {}", chain(&error)))),
    };
    // It was written before, and GRUB could not write it all the same.
    if setup.reason == Reason::EnvUnwritable && setup.recoveries.count > 0 && safe_start.is_none() {
        return Ok(direct_start::start(setup, "GRUB cannot write the boot environment, which is whole"));
    }
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

/// Returns the end of the pause before this step, unless there is none or it is over.
fn rest_before(setup: &Setup, step: WithoutRelease, situation: &Situation, why: &str) -> Option<Instant> {
    let hours = decide::hours_before(step, situation);
    let Recoveries { serial, count } = situation.recoveries;
    let name = match step {
        // A safe start that came up was the pause itself, and has noted that.
        WithoutRelease::SafeStart => pause::after_safe_start(situation.safe_starts.made.into()),
        _ => format!("start:{serial}:{count}"),
    };
    let until = rest(setup, &name, hours)?;
    let minutes = until.saturating_duration_since(Instant::now()).as_secs().div_ceil(60);
    setup.journal.note(&format!("{why}; the system is started once more in {minutes} minutes"));
    Some(until)
}

/// Starts a system of which nothing is known.
fn try_once(setup: &Setup, why: &str) -> Result<NextState, SetupError> {
    if let Err(error) = setup.disk.state.boot_env().try_once(setup.recoveries) {
        return Ok(direct_start::start(setup, &format!("{why} and {}", chain(&error))));
    }
    worker::done();
    setup.finish(AttemptOutcome::Started);
    Ok(NextState::Reboot(format!("{why}, and nothing is known of the system: trying to start it")))
}

/// Returns the end of a pause of so many hours, unless it is over. It goes on from where it was each time this is
/// asked.
fn rest(setup: &Setup, name: &str, hours: u32) -> Option<Instant> {
    let mut going_on = setup.pause.borrow_mut();
    if hours == 0 {
        *going_on = None;
        return None;
    }
    let pause = match going_on.take() {
        Some(pause) if pause.is(name) => pause,
        _ => Pause::begin(&setup.disk.state, &setup.journal, name, HOUR * hours),
    };
    let until = going_on.insert(pause).until;
    (Instant::now() < until).then_some(until)
}
