//! Changes of the variables as values: what is set and removed together, and the room that all of ours take. Pure.

use crate::boot::decide::Recoveries;
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::slots::{Slot, SlotState, Trial};
use crate::boot::systems;

/// Returns the variables after some changes. The caller has checked the names.
pub(super) fn with_changes(env: &GrubEnv, changes: &[(&str, Option<&str>)]) -> GrubEnv {
    let mut env = env.clone();
    for (name, value) in changes {
        match value {
            Some(value) => drop(env.set(name, value)),
            None => drop(env.unset(name)),
        }
    }
    env
}

/// Removes variables of other programs, the last one first, until all of ours fit at their longest, and returns their
/// names: those programs must not keep a machine from recovering, and what is written at the end of a recovery must
/// fit too.
pub(super) fn give_way(env: &mut GrubEnv) -> Vec<String> {
    let mut dropped = Vec::new();
    let (longest, serial) = (Recoveries { serial: u64::MAX, count: u32::MAX }.to_string(), u64::MAX.to_string());
    let hours = u32::MAX;
    let request_at_most = format!("update:{serial}:0123456789abcdef:{:012}:{hours}", 0);
    let at_most = names::OURS.map(|name| match name {
        names::RECOVERIES => (name, longest.as_str()),
        names::GOOD | names::UNDO => (name, serial.as_str()),
        names::REQUEST => (name, request_at_most.as_str()),
        names::TRIES | names::MAX_TRIES | names::BOOT_OK | names::WAS_GOOD | names::SLOT | names::SYSTEM => (name, "1"),
        _ => (name, "recovery"),
    });
    // A robot with one system never has the variables of two.
    let has_two = env.get(names::SYSTEM).is_some() || env.get(names::BEFORE).is_some();
    let reserved =
        at_most.map(|(name, value)| (name, (has_two || !systems::VARIABLES.contains(&name)).then_some(value)));
    let is_too_long = |env: &GrubEnv, name: &str, value: &str| env.get(name).is_some_and(|own| own.len() > value.len());
    let fits = |env: &GrubEnv| {
        let shorter = |(name, value): &(&str, Option<&str>)| !value.is_some_and(|value| is_too_long(env, name, value));
        with_changes(env, &reserved.iter().copied().filter(shorter).collect::<Vec<_>>()).encode().is_ok()
    };
    while !fits(env) {
        match env.drop_last_foreign() {
            Some(name) => dropped.push(name),
            None => break,
        }
    }
    // At their longest, ours fit beside each other. What is longer than any program of ours writes it goes last: a
    // newer one may know what it means.
    for (name, value) in at_most {
        if !fits(env) && is_too_long(env, name, value) && env.unset(name) {
            dropped.push(name.to_owned());
        }
    }
    dropped
}

/// Reads the state of the slots from the variables.
pub(super) fn slot_state(env: &GrubEnv) -> SlotState {
    SlotState { active: Slot::parse(env.get(names::SLOT)), trial: Trial::parse(env.get(names::TRIAL)) }
}

/// Returns the state of the slots from which on the free one may be written.
pub(super) fn slots_from(env: &GrubEnv, proven: Option<Slot>) -> SlotState {
    let slots = slot_state(env);
    proven.map_or(slots.without_due_trial(), |slot| slots.with_proven(slot))
}

/// Returns the changes that bring the variables of the slots into a state.
pub(super) fn slot_changes<'a>(state: SlotState) -> [(&'a str, Option<&'a str>); 2] {
    [(names::SLOT, state.active.map(Slot::name)), (names::TRIAL, state.trial.map(Trial::value))]
}
