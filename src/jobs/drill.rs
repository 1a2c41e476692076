//! The drill as the boot environment knows it: asked for by the running system, taken once by the recovery, and never
//! in the way of anything else.
//!
//! GRUB starts recovery once, since `next_entry` is cleared first, and leaves the tries of the system alone. So a drill
//! that dies, hangs or is cut ends with the next start, which is the system's. What it may leave behind is the request
//! itself; it counts only together with the reason that it was made with.

use crate::boot::decide::Reason;
use crate::boot::env::{BootEnv, BootEnvError};
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::request::RecoveryRequest;
use crate::boot::slots::{self, SAFE_GENERATION};
use crate::jobs::state::StatePartition;
use crate::record::blackbox::{Attempt, AttemptOutcome, BlackBox, DrillCheck, DrillRecord};

/// Value of the request until a recovery takes it.
const REQUESTED: &str = "drill";
/// Value of the request from then on.
const BEGUN: &str = "drill:begun";

/// Request for a drill, as a recovery that has just started finds it in the boot environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillRequest {
    /// No drill is asked for.
    None,
    /// The drill begins now.
    Asked,
    /// The process of this recovery that carried it out has died.
    Died,
    /// The request is left over from a recovery that never came so far, or was cut. This recovery has another reason.
    LeftOver,
}

/// The reason for which no drill can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrillRefusal {
    /// GRUB would count the restart as a failed start of the system.
    #[error(
        "this boot has not called itself good, so that the restart after a drill would count against the system; ask \
         again once `reflash good` has run"
    )]
    NotGood,
    /// GRUB would find no recovery either.
    #[error("no boot script of a recovery can be read on the recovery partition; `reflash mend` may say why")]
    NoRecovery,
    /// A recovery that knows no drill would carry out a whole recovery.
    #[error(
        "the recovery in slot {slot} is older than the drill and would install the release that is offered; install a \
         release that brings a newer recovery first"
    )]
    OldRecovery {
        /// Name of the slot.
        slot: &'static str,
    },
}

/// Reads what is asked for. `resumed` says whether an earlier process of this recovery has died. Pure.
#[must_use]
pub fn requested(env: &GrubEnv, reason: Reason, resumed: bool) -> DrillRequest {
    match (env.get(names::REQUEST), reason) {
        (Some(REQUESTED), Reason::Requested) => DrillRequest::Asked,
        (Some(BEGUN), Reason::Requested) if resumed => DrillRequest::Died,
        (Some(REQUESTED | BEGUN), _) => DrillRequest::LeftOver,
        _ => DrillRequest::None,
    }
}

/// Whether a drill may be asked for, by the boot environment and the boot script of each slot that has one. Pure.
///
/// # Errors
/// [`DrillRefusal`].
pub fn check(env: &GrubEnv, scripts: &[(slots::Slot, String)]) -> Result<(), DrillRefusal> {
    if env.get(names::BOOT_OK) != Some("1") {
        return Err(DrillRefusal::NotGood);
    }
    if scripts.is_empty() {
        return Err(DrillRefusal::NoRecovery);
    }
    // Script and agent of a slot come together, so that the script shows how old the agent is.
    match scripts.iter().find(|(_, text)| slots::generation(text) < SAFE_GENERATION) {
        Some((slot, _)) => Err(DrillRefusal::OldRecovery { slot: slot.name() }),
        None => Ok(()),
    }
}

/// Has the next start be a drill.
///
/// # Errors
/// The next start is asked for something else, which a timer must not take away; the environment cannot be written.
pub fn ask(env: &BootEnv) -> Result<(), BootEnvError> {
    env.ask(RecoveryRequest::Drill)
}

/// Notes that the drill begins: whatever becomes of it, the next start is the system's.
///
/// # Errors
/// The environment cannot be written. The drill must not begin.
pub fn begin(env: &BootEnv) -> Result<(), BootEnvError> {
    // A recovery on trial is started with the request kept for the one before it.
    env.update(&[(names::NEXT_ENTRY, None), (names::REQUEST, Some(BEGUN))])
}

/// Removes the request: the drill is over, or was left over.
///
/// # Errors
/// The environment cannot be written.
pub fn end(env: &BootEnv) -> Result<(), BootEnvError> {
    env.update(&[(names::REQUEST, None)])
}

/// In the running system: removes the request of a drill that is not to come any more, and records that it did not take
/// place if its recovery never came so far as to record anything. Returns whether there was one.
///
/// # Errors
/// The environment cannot be read or written.
pub fn settle(state: &StatePartition) -> Result<bool, BootEnvError> {
    let env = state.boot_env().load_or_empty()?;
    if !is_over(&env) {
        return Ok(false);
    }
    let request = env.get(names::REQUEST);
    if request == Some(REQUESTED)
        && let Ok(mut open) = BlackBox::open(&state.blackbox_path())
    {
        let found = "the recovery did not come so far as to take the drill";
        let drill = DrillRecord::unfinished(vec![DrillCheck::new("start", false, found)]);
        let id = open.next_id();
        // A record that cannot be written is no reason to keep the request.
        let _ = open.record(&Attempt::of_lost_drill(id, drill));
    }
    state.boot_env().update_if(&is_over, &[(names::REQUEST, None)])
}

/// Whether the request of a drill is not to come any more.
fn is_over(env: &GrubEnv) -> bool {
    env.get(names::NEXT_ENTRY).is_none() && matches!(env.get(names::REQUEST), Some(REQUESTED | BEGUN))
}

impl Attempt {
    /// An attempt of which nothing is known but that it did not take place.
    fn of_lost_drill(id: u64, drill: DrillRecord) -> Self {
        Self {
            id,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            reason: "requested".to_owned(),
            requested: true,
            drill: Some(drill),
            outcome: Some(AttemptOutcome::Started),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DrillRefusal, DrillRequest, ask, begin, check, end, requested, settle};
    use crate::boot::decide::Reason;
    use crate::boot::grubenv::{GrubEnv, names};
    use crate::boot::slots::Slot;
    use crate::jobs::state::StatePartition;
    use crate::record::blackbox::BlackBox;

    fn with(variables: &[(&str, &str)]) -> GrubEnv {
        let mut env = GrubEnv::default();
        variables.iter().for_each(|(name, value)| env.set(name, value).unwrap());
        env
    }

    #[test]
    fn only_the_recovery_that_was_asked_for_is_a_drill() {
        for (request, reason, resumed, expected) in [
            (None, Reason::Requested, false, DrillRequest::None),
            (Some("undo"), Reason::Requested, false, DrillRequest::None),
            (Some("drills"), Reason::Requested, false, DrillRequest::None),
            (Some("drill"), Reason::Requested, false, DrillRequest::Asked),
            // The process before this one died before it could take the request.
            (Some("drill"), Reason::Requested, true, DrillRequest::Asked),
            (Some("drill:begun"), Reason::Requested, true, DrillRequest::Died),
            // A later request of another kind, by a command that does not know the drill.
            (Some("drill:begun"), Reason::Requested, false, DrillRequest::LeftOver),
            (Some("drill"), Reason::Tries, false, DrillRequest::LeftOver),
            (Some("drill"), Reason::Menu, false, DrillRequest::LeftOver),
            (Some("drill:begun"), Reason::Recovering, true, DrillRequest::LeftOver),
        ] {
            let env = with(&request.map(|request| (names::REQUEST, request)).into_iter().collect::<Vec<_>>());
            assert_eq!(requested(&env, reason, resumed), expected, "{request:?} {reason:?} {resumed}");
        }
    }

    #[test]
    fn a_drill_needs_a_good_boot_and_recoveries_that_know_it() {
        let (old, new) = ("set script=whole\n".to_owned(), "set script=2\n".to_owned());
        let good = with(&[(names::BOOT_OK, "1")]);
        let both = |a: &String, b: &String| vec![(Slot::A, a.clone()), (Slot::B, b.clone())];
        assert_eq!(check(&good, &both(&new, &new)), Ok(()));
        assert_eq!(check(&good, &[(Slot::A, new.clone())]), Ok(()));
        assert_eq!(check(&good, &both(&new, &old)), Err(DrillRefusal::OldRecovery { slot: "b" }));
        assert_eq!(check(&with(&[(names::BOOT_OK, "0")]), &both(&new, &new)), Err(DrillRefusal::NotGood));
        assert_eq!(check(&with(&[]), &[]), Err(DrillRefusal::NotGood));
    }

    #[test]
    fn the_request_is_taken_once_and_the_tries_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        let env = state.boot_env();
        env.update(&[(names::TRIES, Some("2")), (names::BOOT_OK, Some("1"))]).unwrap();
        let read = || env.load_or_empty().unwrap();
        ask(&env).unwrap();
        assert_eq!((read().get(names::NEXT_ENTRY), read().get(names::REQUEST)), (Some("recovery"), Some("drill")));
        assert!(!settle(&state).unwrap(), "it is still to come");
        begin(&env).unwrap();
        assert_eq!(
            (read().get(names::NEXT_ENTRY), requested(&read(), Reason::Requested, true)),
            (None, DrillRequest::Died)
        );
        end(&env).unwrap();
        assert_eq!((read().get(names::REQUEST), read().get(names::TRIES)), (None, Some("2")));
        assert!(!settle(&state).unwrap());
    }

    /// The drill comes from a timer, and the request of a person must outlive it.
    #[test]
    fn no_drill_takes_the_place_of_what_somebody_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let env = StatePartition::new(dir.path()).boot_env();
        for (entry, request) in [("recovery", None), ("recovery", Some("undo:6")), ("factory-reset", None)] {
            env.update(&[(names::NEXT_ENTRY, Some(entry)), (names::REQUEST, request)]).unwrap();
            let error = ask(&env).unwrap_err().to_string();
            assert!(error.contains(&format!("something else, {}, which", request.unwrap_or(entry))), "{error}");
            let read = env.load_or_empty().unwrap();
            assert_eq!((read.get(names::NEXT_ENTRY), read.get(names::REQUEST)), (Some(entry), request));
        }
        env.update(&[(names::NEXT_ENTRY, Some(""))]).unwrap();
        ask(&env).unwrap();
        ask(&env).unwrap();
    }

    #[test]
    fn a_drill_that_never_took_place_is_recorded_by_the_running_system() {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        ask(&state.boot_env()).unwrap();
        // GRUB cleared it, and the kernel of the recovery panicked.
        state.boot_env().update(&[(names::NEXT_ENTRY, None)]).unwrap();
        assert!(settle(&state).unwrap());
        assert_eq!(state.boot_env().load_or_empty().unwrap().get(names::REQUEST), None);
        let open = BlackBox::open(&state.blackbox_path()).unwrap();
        let drill = open.attempts().last().unwrap().drill.clone().unwrap();
        assert!(!drill.passed && drill.checks[0].name == "start");
    }
}
