//! The two systems of a robot that has two: which one is active, and what follows when GRUB went back to the other.

use crate::boot::env::{BootEnvError, LoadedEnv};
use crate::boot::grubenv::names;
use crate::boot::systems::{Switch, SystemNumber, Systems};
use crate::jobs::floor::{Floor, FloorChange, ReleaseId};
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::record::blackbox::{AttemptOutcome, Remembered};
use crate::record::event::Event;
use crate::record::journal::Journal;
use crate::release::manifest::TrustedKeys;

/// Reason of an attempt that GRUB made without a recovery.
const REASON: &str = "tries";
const WHY: &str = "it did not come up, and GRUB went back to the system before it";

/// Returns what the environment says of the two systems. Where it is lost, the system is active that holds the release
/// which last called itself good: to go on with the other one would be an undo that was never asked for.
///
/// # Errors
/// The environment cannot be read.
pub fn look(state: &StatePartition, good: Option<ReleaseId>) -> Result<Systems, BootEnvError> {
    Ok(match state.boot_env().load()? {
        LoadedEnv::Good(env) => Systems::of(&env),
        LoadedEnv::Lost(_) => {
            let is_good = |number| good.is_some() && state.of_system(number).recorded_id(good) == good;
            let second = is_good(SystemNumber::Second) && !is_good(SystemNumber::First);
            Systems { active: if second { SystemNumber::Second } else { SystemNumber::First }, ..Systems::default() }
        }
    })
}

/// Whether GRUB starts the other system next, which an update has filled and which was not started yet: then the system
/// `running`, which was good, can be had back by one write.
#[must_use]
pub fn is_switched(systems: Systems, running: SystemNumber) -> bool {
    systems.on_trial && systems.active == running.other()
}

/// Has GRUB start the running system again, with all its tries, in place of the other one that it
/// [was switched to](is_switched): one write of one sector.
///
/// # Errors
/// The environment cannot be read or written.
pub fn switch_back(state: &StatePartition, keys: &TrustedKeys) -> Result<(), BootEnvError> {
    let env = state.boot_env();
    let tries = env.load_or_empty()?.get(names::MAX_TRIES).unwrap_or("3").to_owned();
    let good = state.record(keys).map(|record| record.manifest().serial.to_string());
    let [system, before] = Switch { to: state.system(), can_go_back: false }.changes();
    env.update(&[
        system,
        before,
        (names::TRIES, Some(&tries)),
        (names::BOOT_OK, Some("1")),
        (names::GOOD, good.as_deref()),
        (names::WAS_GOOD, Some("1")),
        (names::RECOVERIES, None),
        (names::SAFE, None),
    ])
}

/// Takes the switch to the other system back for a person, who does not want its release.
///
/// It is refused too, since the next round of an update would switch to it again. Returns how that went; `None` where
/// it is not known which release the other system holds.
///
/// # Errors
/// As [`switch_back`].
pub fn undo_switch(
    state: &StatePartition,
    keys: &TrustedKeys,
    floor: &Floor,
) -> Result<Option<FloorChange>, BootEnvError> {
    switch_back(state, keys)?;
    let unwanted = state.of_system(state.system().other()).record(keys);
    Ok(unwanted.map(|unwanted| floor.refuse(unwanted.id())))
}

/// Refuses the release of the other system, if GRUB has gone back from it, and returns its record. `state` is for the
/// active system.
pub fn refuse_failed(
    state: &StatePartition,
    systems: Systems,
    keys: &TrustedKeys,
    floor: &Floor,
    journal: &Journal,
) -> Option<InstalledRecord> {
    let failed = state.of_system(systems.active.other()).record(keys).filter(|_| systems.went_back)?;
    for error in floor.refuse(failed.id()).failed {
        journal.warn(&crate::chain::chain(&error));
    }
    Some(failed)
}

/// In the running system, after GRUB went back to it: refuses the release that did not come up, records that it was
/// taken back, and has GRUB forget it. Returns a sentence on it, if there is something to say.
///
/// # Errors
/// The environment cannot be read or written.
pub fn settle(
    state: &StatePartition,
    keys: &TrustedKeys,
    floor: &Floor,
    journal: &Journal,
) -> Result<Option<String>, BootEnvError> {
    let env = state.boot_env();
    let systems = Systems::of(&env.load_or_empty()?);
    if !systems.went_back {
        return Ok(None);
    }
    let failed = refuse_failed(state, systems, keys, floor, journal);
    let sentence = failed.zip(state.record(keys)).map(|(failed, back)| {
        let (failed, back) = (failed.manifest(), back.manifest());
        let attempt = Remembered::begin(REASON, &back.version, back.serial, journal);
        let undone = Some((failed.version.as_str(), failed.serial));
        journal.report(Event::UndoBegan { version: &back.version, serial: back.serial, undone, why: WHY });
        // What cannot be recorded is refused all the same.
        if let Err(error) = attempt.write(&state.blackbox_path(), AttemptOutcome::Installed) {
            journal.warn(&format!("the black box does not say that GRUB went back: {error}"));
        }
        format!("{} (serial {}) was taken back: {WHY}", failed.version, failed.serial)
    });
    // What the menu offers leads back to this system.
    env.update(&[(names::BEFORE, None), (names::UNDO, None)])?;
    Ok(sentence)
}
