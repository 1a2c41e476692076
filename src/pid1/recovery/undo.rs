//! Goes back to the release that is kept on the machine, without a network.

use std::path::Path;
use std::time::Instant;

use super::ending::NextState;
use super::error::SetupError;
use super::robot_disk::RECOVERY;
use super::setup::Setup;
use super::standing::{id_of, scripts_know_safe_start};
use crate::boot::decide::{self, KeptRelease, Reason, System};
use crate::boot::env::BootEnvError;
use crate::boot::grubenv::names;
use crate::boot::request::RecoveryRequest;
use crate::boot::systems::Systems;
use crate::boot::worth::Worth;
use crate::chain::chain;
use crate::fetch::Source;
use crate::flash::undo::UndoTarget;
use crate::jobs::floor::{FloorChange, GoodRelease};
use crate::jobs::recovery::other;
use crate::jobs::recovery::{self, Policy, RecoveryError, RecoveryJob};
use crate::jobs::state::InstalledRecord;
use crate::pid1::link::WorkPart;
use crate::pid1::worker;
use crate::record::blackbox::AttemptOutcome;
use crate::record::event::Event;

/// Takes the installed release back, or repairs it where it is the one that is kept. `None` if that fails: something
/// else has to be done then, and the system is to be compared again first.
///
/// `system` is the state that was found. `network` is for what is damaged of the kept release, where there is a
/// network.
pub(super) fn run(
    setup: &Setup,
    job: &RecoveryJob<'_>,
    system: System,
    network: Option<&dyn Source>,
) -> Result<Option<NextState>, SetupError> {
    let Some(kept) = &setup.standing.kept_release() else { return Ok(None) };
    let started = Instant::now();
    let undone = setup.record.as_ref().filter(|record| record.id() != id_of(kept));
    let why = why(setup);
    setup.journal.report(Event::UndoBegan {
        version: &kept.version,
        serial: kept.serial,
        undone: undone.map(|record| (record.manifest().version.as_str(), record.manifest().serial)),
        why: &why,
    });
    let taken_back = undone.filter(|_| decide::takes_back(&setup.situation_of(system, network.is_some())));
    if let Err(error) = begin(setup, kept, taken_back) {
        setup.journal.warn(&format!("the undo cannot begin: {}", chain(&error)));
        setup.standing.give_up_undo(false);
        return Ok(None);
    }
    // A good release below the floor is one that a person goes back to: without its record too it is repaired then.
    if matches!(setup.standing.request, Some(RecoveryRequest::Undo { .. })) {
        warn_of(setup, setup.floor.allow(id_of(kept)));
    }
    // What is said of the good release from here on is said of the one that is gone back to.
    let job = RecoveryJob { policy: Policy { installed: None, ..job.policy }, ..job.clone() };
    match worker::within(&WorkPart::Undo, || recovery::undo(&job, network)) {
        Ok(report) => {
            worker::done();
            setup.finish(AttemptOutcome::Installed);
            let seconds = started.elapsed().as_secs();
            Ok(Some(NextState::Reboot(format!("{} is back after {seconds} s: starting it", report.version))))
        }
        Err(error) => {
            setup.journal.warn(&format!("the undo failed: {}", chain(&error)));
            let lacks_something = matches!(error, RecoveryError::Undo(_));
            if !lacks_something && error.is_of_the_disk() && restart_may_help(setup) {
                // What was written to begin it leads on with it.
                return Ok(Some(NextState::StartOver(chain(&error))));
            }
            setup.standing.give_up_undo(lacks_something && network.is_none());
            end_in_vain(setup, taken_back);
            Ok(None)
        }
    }
}

/// Whether a restart may cure the disk on which an undo or a factory reset failed, as one that hung: a few times, since
/// everything that is needed lies on it, and a server may never be there. Not where nothing counts how often: it would
/// be for ever.
pub(super) fn restart_may_help(setup: &Setup) -> bool {
    setup.finish(AttemptOutcome::Failed);
    setup.recorder.as_ref().is_some_and(|recorder| recorder.failures_in_a_row() <= setup.config.recoveries)
}

/// Offers the undo in GRUB's menu, or takes the offer away, by what the machine holds now. A script that does not know
/// the variable leaves it alone, but what an older recovery does not keep true must not be there.
pub(super) fn offer(setup: &Setup) -> Result<(), BootEnvError> {
    let keys = &setup.keys;
    let mut state = setup.disk.state.clone();
    let mut kept = setup.find_back().ok();
    if setup.disk.other.is_some() {
        // This recovery may have switched to the other one.
        let active = Systems::of(&state.boot_env().load_or_empty()?).active;
        if active != state.system() {
            kept = other::possible(&state, keys, &setup.floor).ok();
            state = state.of_system(active);
        }
    }
    let installed = state.record(keys).map(|record| record.id());
    let kept = kept.filter(|kept| Some(id_of(kept)) != installed);
    let known = scripts_know_safe_start(Path::new(RECOVERY));
    state.boot_env().offer_undo(kept.filter(|_| known).map(|kept| kept.serial))
}

/// Writes what has to be known if power is cut from here on: that the undo goes on, that what it leads to was good, and
/// that what it takes back is not chosen again.
fn begin(setup: &Setup, kept: &UndoTarget, undone: Option<&InstalledRecord>) -> Result<(), BootEnvError> {
    let good = kept.serial.to_string();
    let of = undone.map(|record| RecoveryRequest::Undo { of: Some(record.manifest().serial) });
    let nameless = RecoveryRequest::Undo { of: None };
    let request = of.or(setup.standing.request.filter(|asked| *asked == nameless)).map(|asked| asked.to_string());
    let env = setup.disk.state.boot_env();
    for name in env.make_room()? {
        setup.journal.warn(&format!("the boot environment was full: {name}, which another program set, is removed"));
    }
    env.update(&[(names::GOOD, Some(&good)), (names::REQUEST, request.as_deref())])?;
    warn_of(setup, setup.floor.note_good(GoodRelease::new(id_of(kept), &kept.image_id)));
    if let Some(record) = undone {
        warn_of(setup, setup.floor.refuse(record.id()));
    }
    Ok(())
}

/// Takes back what [`begin`] wrote, since the release stays: it may be what is installed again.
fn end_in_vain(setup: &Setup, undone: Option<&InstalledRecord>) {
    let good = setup.record.as_ref().filter(|_| setup.standing.worth() == Worth::Before);
    if let Some(noted) = good.and_then(InstalledRecord::as_good) {
        warn_of(setup, setup.floor.note_good(noted));
    }
    let good = good.map(|good| good.manifest().serial.to_string());
    let mut changes = vec![(names::REQUEST, None)];
    if good.is_some() {
        changes.push((names::GOOD, good.as_deref()));
    }
    if let Err(error) = setup.disk.state.boot_env().update(&changes) {
        setup.journal.warn(&chain(&error));
    }
    if let Some(record) = undone {
        warn_of(setup, setup.floor.lift(record.manifest().serial));
    }
}

fn warn_of(setup: &Setup, change: FloorChange) {
    change.failed.iter().for_each(|error| setup.journal.warn(&chain(error)));
}

/// The reason for which the release is taken back, for the console and the report.
fn why(setup: &Setup) -> String {
    if let Some(RecoveryRequest::Undo { .. }) = setup.standing.request {
        return match setup.reason {
            Reason::Recovering => "an undo of it was cut short".to_owned(),
            _ => "that was asked for".to_owned(),
        };
    }
    if setup.standing.kept(false) == KeptRelease::Installed {
        return "it is damaged, and kept on the machine".to_owned();
    }
    match (setup.reason, setup.standing.worth(), setup.standing.safe_starts.made) {
        (Reason::Tries, Worth::Never, _) => "none of its starts was ever good".to_owned(),
        (Reason::Tries, _, made) if made > 0 => {
            format!("it does not come up any more, and {made} safe starts changed nothing")
        }
        (reason, ..) => format!("it cannot be started or repaired here ({})", reason.description()),
    }
}
