//! Model of what the scripts in `grub/` do with an environment when no key is pressed. Pure; `grub/README.md` has the
//! same rules in prose, and `tests/vm/fallback.rs` tests the real GRUB by them.

use reflash::boot::decide::Reason;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::boot::slots::{Slot, Trial};
use reflash::boot::systems::{SystemNumber, Systems};

/// Choice of what GRUB starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Start of the active system, with so many tries, this one included.
    System(u8),
    /// Start of the other of two systems, to which GRUB goes back, with all its tries.
    Back(SystemNumber, u8),
    /// Safe start of the system, by its number: no try is counted.
    Safe(u16),
    /// Start of a recovery.
    Recovery(Reason),
}

/// Chooses what to start by the bytes of `grubenv`; `None` stands for a file that GRUB cannot read.
#[must_use]
pub fn choose(block: Option<&[u8]>) -> Choice {
    let env = block.and_then(|block| GrubEnv::parse(block).ok()).unwrap_or_default();
    // To GRUB a variable that is empty and one that is not there are the same.
    let value = |name| env.get(name).filter(|value| !value.is_empty());
    if value(names::NEXT_ENTRY) == Some("recovery") {
        return Choice::Recovery(Reason::Requested);
    }
    if value(names::RECOVERING) == Some("1") {
        return Choice::Recovery(Reason::Recovering);
    }
    if value(names::NEXT_ENTRY) == Some("safe") {
        return Choice::Safe(value(names::SAFE).and_then(safe_number).unwrap_or(1));
    }
    match value(names::TRIES) {
        None => Choice::Recovery(Reason::EnvLost),
        Some(tries) => match digit(tries) {
            Some(tries) => Choice::System(tries),
            None => back(&env).unwrap_or(Choice::Recovery(Reason::Tries)),
        },
    }
}

/// Number of tries, as the script has it.
fn digit(tries: &str) -> Option<u8> {
    match tries.as_bytes() {
        [digit @ b'1'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

/// Choice where a system that was switched to is on trial and does not start, for a disk that has both.
#[must_use]
pub fn back(env: &GrubEnv) -> Option<Choice> {
    let Systems { active, on_trial, .. } = Systems::of(env);
    let tries = env.get(names::MAX_TRIES).and_then(digit).unwrap_or(3);
    on_trial.then_some(Choice::Back(active.other(), tries))
}

/// Reads one to three digits; to the script anything else is no number.
fn safe_number(value: &str) -> Option<u16> {
    value.parse().ok().filter(|_| value.len() <= 3 && value.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Chooses the slot whose script the loader begins with; `has_script` says whether GRUB finds one there.
///
/// # Errors
/// Fails as `has_script` does.
pub fn choose_slot<E>(block: Option<&[u8]>, mut has_script: impl FnMut(Slot) -> Result<bool, E>) -> Result<Slot, E> {
    let env = block.and_then(|block| GrubEnv::parse(block).ok()).unwrap_or_default();
    let first = Slot::parse(env.get(names::SLOT)).unwrap_or(Slot::A);
    Ok(if has_script(first)? { first } else { first.other() })
}

/// Chooses the slot whose recovery the boot script of the slot `own` starts first.
#[must_use]
pub fn choose_recovery(block: Option<&[u8]>, own: Slot) -> Slot {
    let env = block.and_then(|block| GrubEnv::parse(block).ok()).unwrap_or_default();
    match Trial::parse(env.get(names::TRIAL)) {
        Some(Trial::Due(slot)) => slot,
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{Choice, choose, choose_recovery, choose_slot};
    use reflash::boot::decide::Reason;
    use reflash::boot::slots::Slot;
    use reflash::boot::systems::SystemNumber;

    #[test]
    fn the_rules_of_the_loader() {
        let of = |variables: &str, there: [bool; 2]| {
            let block = format!("# GRUB Environment Block\n{variables}");
            let has_script = |slot| Ok::<_, Infallible>(there[usize::from(slot == Slot::B)]);
            choose_slot(Some(block.as_bytes()), has_script).unwrap()
        };
        for (variables, named) in [
            ("reflash_slot=b\n", Slot::B),
            ("reflash_slot=a\n", Slot::A),
            ("reflash_slot=\n", Slot::A),
            ("reflash_slot=c\n", Slot::A),
            ("", Slot::A),
        ] {
            assert_eq!(of(variables, [true, true]), named, "{variables:?}");
            assert_eq!(of(variables, [true, false]), Slot::A, "{variables:?}");
            assert_eq!(of(variables, [false, true]), Slot::B, "{variables:?}");
        }
        assert_eq!(choose_slot(None, |slot| Ok::<_, Infallible>(slot == Slot::B)), Ok(Slot::B));
    }

    #[test]
    fn a_trial_goes_first_and_only_once() {
        for (value, expected) in [("b", Slot::B), ("a", Slot::A), ("b-tried", Slot::A), ("", Slot::A), ("c", Slot::A)] {
            let block = format!("# GRUB Environment Block\nreflash_trial={value}\n");
            assert_eq!(choose_recovery(Some(block.as_bytes()), Slot::A), expected, "{value:?}");
        }
        assert_eq!(choose_recovery(None, Slot::B), Slot::B);
    }

    #[test]
    fn the_rules_of_the_boot_script() {
        let of = |variables: &str| choose(Some(format!("# GRUB Environment Block\n{variables}").as_bytes()));
        for (variables, expected) in [
            ("reflash_tries=3\n", Choice::System(3)),
            ("reflash_tries=9\nreflash_recovering=\n", Choice::System(9)),
            ("reflash_tries=0\n", Choice::Recovery(Reason::Tries)),
            ("reflash_tries=10\n", Choice::Recovery(Reason::Tries)),
            ("reflash_tries=x\n", Choice::Recovery(Reason::Tries)),
            ("reflash_tries=3\nreflash_recovering=1\n", Choice::Recovery(Reason::Recovering)),
            ("reflash_tries=3\nnext_entry=recovery\n", Choice::Recovery(Reason::Requested)),
            ("reflash_tries=3\nnext_entry=other\n", Choice::System(3)),
            ("reflash_tries=3\nnext_entry=safe\nreflash_safe=2\n", Choice::Safe(2)),
            ("reflash_tries=0\nnext_entry=safe\nreflash_safe=140\n", Choice::Safe(140)),
            ("next_entry=safe\n", Choice::Safe(1)),
            ("next_entry=safe\nreflash_safe=1 init=/bin/sh\n", Choice::Safe(1)),
            ("next_entry=safe\nreflash_safe=1000\n", Choice::Safe(1)),
            ("reflash_tries=3\nreflash_safe=2\n", Choice::System(3)),
            ("reflash_recovering=1\nnext_entry=safe\nreflash_safe=2\n", Choice::Recovery(Reason::Recovering)),
            ("reflash_tries=\n", Choice::Recovery(Reason::EnvLost)),
            ("reflash_tries=3", Choice::Recovery(Reason::EnvLost)),
            ("reflash_tries=1\nreflash_system=2\nreflash_before=1\n", Choice::System(1)),
            (
                "reflash_tries=0\nreflash_max_tries=5\nreflash_system=2\nreflash_before=1\n",
                Choice::Back(SystemNumber::First, 5),
            ),
            ("reflash_tries=0\nreflash_before=2\n", Choice::Back(SystemNumber::Second, 3)),
            ("reflash_tries=0\nreflash_before=failed\n", Choice::Recovery(Reason::Tries)),
            ("reflash_tries=0\nreflash_before=1\n", Choice::Recovery(Reason::Tries)),
            ("reflash_tries=0\nreflash_before=2\nnext_entry=recovery\n", Choice::Recovery(Reason::Requested)),
            ("reflash_recovering=1\nreflash_tries=0\nreflash_before=2\n", Choice::Recovery(Reason::Recovering)),
            ("reflash_before=2\n", Choice::Recovery(Reason::EnvLost)),
        ] {
            assert_eq!(of(variables), expected, "{variables:?}");
        }
        for lost in [None, Some(&[0; 512][..]), Some(b"")] {
            assert_eq!(choose(lost), Choice::Recovery(Reason::EnvLost));
        }
    }
}
