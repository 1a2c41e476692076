//! What is done where no release is to be had ([`decide::without_release`]).

use std::time::{Duration, Instant};

use super::direct_start;
use super::ending::NextState;
use super::error::SetupError;
use super::setup::{Compared, Setup};
use super::undo;
use crate::boot::decide::{self, Reason, WithoutRelease};
use crate::chain::chain;
use crate::fetch::Source;
use crate::flash::verify::Verified;
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
        let what = decide::without_release(&setup.situation(&compared));
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
            (WithoutRelease::Try, _) => try_once(setup, why),
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

/// Starts a system of which nothing is known, after a pause that grows with each time that this was in vain.
fn try_once(setup: &Setup, why: &str) -> Result<Instead, SetupError> {
    let tried = setup.recoveries.count;
    let hours = if tried == 0 { 0 } else { decide::parked_hours(setup.recoveries, 1) };
    let due = setup.began + setup.config.offline + HOUR * hours;
    if Instant::now() < due {
        setup.journal.note(&format!("{why}; the system is tried once more in {hours} h, whatever it is"));
        return Ok(Instead::GoOn { until: Some(due) });
    }
    if let Err(error) = setup.disk.state.boot_env().try_once(setup.recoveries) {
        return Ok(Instead::Done(direct_start::start(setup, &format!("{why} and {}", chain(&error)))));
    }
    worker::done();
    setup.finish(AttemptOutcome::Started);
    Ok(Instead::Done(NextState::Reboot(format!("{why}, and nothing is known of the system: trying to start it"))))
}
