//! `reflash request`: the next boot starts recovery, for this or that, or offers a factory reset.

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::commands::RequestedAction;
use super::context::keys;
use super::mounted::MountedState;
use super::options::Options;
use super::status::look_for_undo;
use crate::boot::grubenv::names;
use crate::boot::request::RecoveryRequest;
use crate::boot::systems::{SystemCount, Systems};
use crate::chain::chain;
use crate::disk::raw::WholeDisk;
use crate::jobs::recovery::other::scripts_know_two;
use crate::jobs::relayout::{self, RobotFacts};
use crate::jobs::systems;
use crate::record::progress::bytes;

pub(super) fn run(options: &Options, action: RequestedAction) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let systems = Systems::of(&mounted.state.boot_env().load_or_empty()?);
    match action {
        // A newer release is asked for elsewhere; here it is a recovery like any other.
        RequestedAction::Reflash | RequestedAction::Newer => {
            let asked = options.serial.map(RecoveryRequest::Release);
            request(options, &mounted, systems, "recovery", asked, "the next boot goes to recovery")
        }
        RequestedAction::FactoryReset => {
            let sentence = "the next boot asks at the console whether to delete all data";
            request(options, &mounted, systems, "factory-reset", None, sentence)
        }
        RequestedAction::Undo => undo(options, &mounted, systems),
        RequestedAction::Systems(wanted) => change_systems(options, &mounted, systems, wanted),
    }
}

/// Writes the request. What an earlier one asked for beside `next_entry` does not outlive it.
fn request(
    options: &Options,
    mounted: &MountedState,
    looked_at: Systems,
    entry: &str,
    asked: Option<RecoveryRequest>,
    sentence: &str,
) -> Result<Exit, Failure> {
    let asked = asked.map(|asked| asked.to_string());
    let changes = [(names::NEXT_ENTRY, Some(entry)), (names::REQUEST, asked.as_deref())];
    // What is asked for is meant for the system that was looked at: an update may have just switched to the other one.
    if !mounted.state.boot_env().update_if(&|env| Systems::of(env) == looked_at, &changes)? {
        return failure("nothing is asked for: the system to be started next was changed a moment ago; ask again");
    }
    let mut answer = json!({ "next_entry": entry });
    if let Some(asked) = asked {
        answer["request"] = asked.into();
    }
    print(options, &answer, || sentence.to_owned())?;
    Ok(Exit::Done)
}

/// Asks for an undo, if there is one to ask for.
fn undo(options: &Options, mounted: &MountedState, systems: Systems) -> Result<Exit, Failure> {
    let keys = keys(options, Some(mounted))?;
    let running = mounted.state.system();
    if mounted.other.is_some() && systems::is_switched(systems, running) {
        let refused = systems::undo_switch(&mounted.state, &keys, &mounted.floor())?;
        refused.iter().flat_map(|change| &change.failed).for_each(|error| complain(&chain(error)));
        print(options, &json!({ "system": running.name() }), || {
            let what = match refused {
                Some(_) => "the release of the other one is refused",
                None => "what the other one holds is not known, so that no release is refused",
            };
            format!("the next start is of this system, {}, again: {what}", running.name())
        })?;
        return Ok(Exit::Done);
    }
    let installed = mounted.state.record(&keys);
    match look_for_undo(mounted, &keys, installed.as_ref()) {
        Ok(kept) => {
            let of = installed.map(|record| record.manifest().serial);
            let condition = if kept.is_complete() { "" } else { ", if a network has what is missing of it" };
            let sentence = format!("the next boot goes back to {} (serial {}){condition}", kept.version, kept.serial);
            request(options, mounted, systems, "recovery", Some(RecoveryRequest::Undo { of }), &sentence)
        }
        Err(obstacle) => {
            print(options, &json!({ "obstacle": obstacle }), || format!("no undo is possible: {obstacle}"))?;
            Ok(Exit::No)
        }
    }
}

/// Asks for another number of systems, if the disk can have it.
fn change_systems(
    options: &Options,
    mounted: &MountedState,
    systems: Systems,
    wanted: SystemCount,
) -> Result<Exit, Failure> {
    let Some((disk, _)) = &mounted.boot_disk else {
        return failure("this machine was not started from the disk of a robot");
    };
    let keys = keys(options, Some(mounted))?;
    let variables = mounted.state.boot_env().load_or_empty()?;
    let robot = RobotFacts {
        image_bytes: RobotFacts::image_bytes(mounted.state.record(&keys).as_ref()),
        is_good: variables.get(names::BOOT_OK) == Some("1"),
        scripts_know_two: mounted.recovery.as_deref().is_some_and(scripts_know_two),
        systems,
    };
    match relayout::plan(&WholeDisk::open_read_only(disk)?, wanted, robot) {
        Ok(planned) => {
            let sentence = match wanted {
                SystemCount::Two => format!(
                    "the next boot makes two systems, of {} and {}, and starts this one again",
                    bytes(planned.first_bytes),
                    bytes(planned.second_bytes)
                ),
                SystemCount::One => format!("the next boot makes one system of {}", bytes(planned.first_bytes)),
            };
            request(options, mounted, systems, "recovery", Some(RecoveryRequest::Systems(wanted)), &sentence)
        }
        Err(refusal) => {
            print(options, &json!({ "refused": refusal.to_string() }), || format!("refused: {refusal}"))?;
            Ok(Exit::No)
        }
    }
}
