//! The number of systems, where the running system asked for another one. Nothing is fetched, and the system starts
//! again, whatever comes of it.

use std::path::Path;

use super::ending::NextState;
use super::robot_disk::RECOVERY;
use super::setup::Setup;
use crate::boot::grubenv::names;
use crate::boot::request::RecoveryRequest;
use crate::boot::systems::{SystemCount, Systems};
use crate::boot::worth::Worth;
use crate::chain::chain;
use crate::jobs::recovery::other::scripts_know_two;
use crate::jobs::relayout::{self, RobotFacts};
use crate::record::blackbox::AttemptOutcome;
use crate::record::progress::bytes;

/// Gives the disk the systems that were asked for, if they were. `None` when this recovery has another reason.
pub(super) fn run(setup: &Setup) -> Option<NextState> {
    let Some(RecoveryRequest::Systems(wanted)) = setup.standing.request else { return None };
    let env = setup.disk.state.boot_env();
    // First: a request that ends this process is not made again by every start.
    if let Err(error) = env.update(&[(names::NEXT_ENTRY, None), (names::REQUEST, None)]) {
        return Some(NextState::Reboot(format!("the disk keeps the systems that it has: {}", chain(&error))));
    }
    let sentence = match change(setup, wanted) {
        Ok(sentence) => sentence,
        Err(why) => {
            setup.journal.warn(&format!("the disk keeps the systems that it has: {why}"));
            format!("not changed: {why}")
        }
    };
    if let Some(recorder) = &setup.recorder {
        recorder.finish(AttemptOutcome::Started);
    }
    Some(NextState::Reboot(format!("{sentence}: starting the system")))
}

/// Changes the table. Returns what it has from now on, or why it is as before.
fn change(setup: &Setup, wanted: SystemCount) -> Result<String, String> {
    let whole = setup.disk.whole.as_ref().ok_or("the disk cannot be opened as a whole")?;
    let state = &setup.disk.state;
    let variables = state.boot_env().load_or_empty().map_err(|error| chain(&error))?;
    let robot = RobotFacts {
        image_bytes: RobotFacts::image_bytes(setup.record.as_ref()),
        is_good: matches!(setup.standing.worth(), Worth::Before | Worth::SameImage),
        scripts_know_two: scripts_know_two(Path::new(RECOVERY)),
        systems: Systems::of(&variables),
    };
    let planned = relayout::plan(whole, wanted, robot).map_err(|refusal| refusal.to_string())?;
    let image_bytes = robot.image_bytes.unwrap_or_default();
    let done = relayout::carry_out(whole, &setup.disk.target, image_bytes, &planned, state);
    done.map_err(|error| chain(&error))?;
    Ok(match wanted {
        SystemCount::Two => {
            format!("the disk has two systems, of {} and {}", bytes(planned.first_bytes), bytes(planned.second_bytes))
        }
        SystemCount::One => format!("the disk has one system, of {}", bytes(planned.first_bytes)),
    })
}
