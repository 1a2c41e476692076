//! The two systems of a robot that has two: which one GRUB starts, where it goes back to, and which one a release is
//! written to. Pure; `grub/README.md` has the variables, and `docs/two-systems.md` the whole table.
//!
//! A robot with one system is the case in which nothing of this is ever set.

use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::worth::Worth;
use crate::release::layout::Role;

use super::decide::System;

/// Generation of the first boot scripts that know two systems.
pub const GENERATION: u32 = 3;

/// The number of a system, of the two that a robot may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SystemNumber {
    /// The one that every robot has.
    #[default]
    First,
    /// The one that only a robot with two systems has.
    Second,
}

impl SystemNumber {
    /// Reads a variable; `None` for anything but `1` and `2`.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Option<Self> {
        match value {
            Some("1") => Some(Self::First),
            Some("2") => Some(Self::Second),
            _ => None,
        }
    }

    /// Returns the value of a variable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "1",
            Self::Second => "2",
        }
    }

    /// Returns the system that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Returns the role of the partition that holds it.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::First => Role::System,
            Self::Second => Role::System2,
        }
    }
}

/// Number of systems that a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemCount {
    /// One, which recovery writes over.
    One,
    /// Two, of which an update writes the one that is not in use.
    Two,
}

impl SystemCount {
    /// Reads the end of a request.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::One, Self::Two].into_iter().find(|count| count.name() == text)
    }

    /// The number as text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Two => "2",
        }
    }
}

/// The state of the two systems, as the environment has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Systems {
    /// System that GRUB starts.
    pub active: SystemNumber,
    /// Whether GRUB goes back to the other one, once, when the active one does not come up.
    pub on_trial: bool,
    /// Whether GRUB has gone back to the active one because the other did not come up.
    pub went_back: bool,
}

impl Systems {
    /// Reads the variables, as `grub/slot.cfg` does.
    #[must_use]
    pub fn of(env: &GrubEnv) -> Self {
        let active = SystemNumber::parse(env.get(names::SYSTEM)).unwrap_or_default();
        let before = env.get(names::BEFORE);
        Self { active, on_trial: before == Some(active.other().name()), went_back: before == Some(FAILED) }
    }
}

/// The variables that only a robot with two systems has.
pub const VARIABLES: [&str; 2] = [names::SYSTEM, names::BEFORE];
/// Value of `reflash_before` once GRUB has gone back.
pub const FAILED: &str = "failed";

/// A change of the system that GRUB starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// System to start from now on.
    pub to: SystemNumber,
    /// Whether GRUB goes back to the other one when this one does not come up.
    pub can_go_back: bool,
}

impl Switch {
    /// Returns the changes of the variables. The first system is the one without a variable, so that the environment of
    /// a robot that came back to it is that of a robot with one system.
    #[must_use]
    pub fn changes(self) -> [(&'static str, Option<&'static str>); 2] {
        let named = |number: SystemNumber| (number == SystemNumber::Second).then_some(number.name());
        [(names::SYSTEM, named(self.to)), (names::BEFORE, self.can_go_back.then_some(self.to.other().name()))]
    }
}

/// The facts of the other system when a release is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherFacts {
    /// Whether every boot script that GRUB may read knows two systems.
    pub is_known_to_grub: bool,
    /// Whether its record says that it holds the very release that is to be written.
    pub has_release: bool,
}

/// The facts of the active system when a release is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveFacts {
    /// Whether its record says that it holds the very release that is to be written.
    pub has_release: bool,
    /// State of its partition.
    pub system: System,
    /// Whether its release was ever good.
    pub worth: Worth,
}

/// Decides whether a release is written to the other system: what is worth keeping stays as it is, and a release that
/// is there already is repaired where it is.
#[must_use]
pub fn takes_other(active: ActiveFacts, other: OtherFacts) -> bool {
    other.is_known_to_grub && !active.has_release && (other.has_release || is_worth_keeping(active))
}

/// Whether the active system is one that GRUB can go back to after a switch. One of which nothing is known has to be
/// seen to be whole: a blank disk has such a one too.
#[must_use]
pub fn is_worth_keeping(active: ActiveFacts) -> bool {
    match active.worth {
        Worth::Before | Worth::SameImage => active.system != System::Damaged,
        Worth::Unknown => active.system == System::Intact,
        Worth::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{ActiveFacts, OtherFacts, Switch, SystemNumber, Systems, is_worth_keeping, takes_other};
    use crate::boot::decide::System;
    use crate::boot::grubenv::GrubEnv;
    use crate::boot::worth::Worth;

    #[test]
    fn the_variables_are_read_as_the_boot_script_reads_them() {
        use SystemNumber::{First, Second};
        for (variables, active, on_trial, went_back) in [
            (&[][..], First, false, false),
            (&[("reflash_system", "2")], Second, false, false),
            (&[("reflash_system", "3")], First, false, false),
            (&[("reflash_system", "2"), ("reflash_before", "1")], Second, true, false),
            (&[("reflash_before", "2")], First, true, false),
            (&[("reflash_system", "1"), ("reflash_before", "2")], First, true, false),
            (&[("reflash_before", "1")], First, false, false),
            (&[("reflash_system", "2"), ("reflash_before", "2")], Second, false, false),
            (&[("reflash_system", "1"), ("reflash_before", "failed")], First, false, true),
        ] {
            let mut env = GrubEnv::default();
            variables.iter().for_each(|(name, value)| env.set(name, value).unwrap());
            assert_eq!(Systems::of(&env), Systems { active, on_trial, went_back }, "{variables:?}");
        }
    }

    #[test]
    fn a_switch_is_read_as_it_is_written_and_the_first_system_needs_no_variable() {
        for to in [SystemNumber::First, SystemNumber::Second] {
            assert_eq!(SystemNumber::parse(Some(to.name())), Some(to));
            assert_ne!(to.other(), to);
            for can_go_back in [false, true] {
                let mut env = GrubEnv::default();
                for (name, value) in (Switch { to, can_go_back }).changes() {
                    value.into_iter().for_each(|value| env.set(name, value).unwrap());
                }
                assert_eq!(Systems::of(&env), Systems { active: to, on_trial: can_go_back, went_back: false });
                assert_eq!(env.get("reflash_system").is_some(), to == SystemNumber::Second);
            }
        }
    }

    /// Every combination, against the sentences of the documentation.
    #[test]
    fn the_last_good_system_is_never_the_one_that_is_written() {
        const BOTH: [bool; 2] = [false, true];
        let worths = [Worth::Never, Worth::Before, Worth::SameImage, Worth::Unknown];
        let systems = [System::Unknown, System::Intact, System::Damaged];
        let mut written = [0, 0];
        for (worth, system, has_release) in
            worths.iter().flat_map(|w| systems.iter().flat_map(move |s| BOTH.map(|b| (*w, *s, b))))
        {
            let active = ActiveFacts { has_release, system, worth };
            let was_good = matches!(worth, Worth::Before | Worth::SameImage);
            for (is_known_to_grub, has_it) in BOTH.iter().flat_map(|a| BOTH.map(|b| (*a, b))) {
                let other = OtherFacts { is_known_to_grub, has_release: has_it };
                let takes = takes_other(active, other);
                written[usize::from(takes)] += 1;
                if !is_known_to_grub {
                    assert!(!takes, "an older boot script starts the first system whatever the environment says");
                }
                if has_release {
                    assert!(!takes, "what is there already is repaired: {active:?} {other:?}");
                }
                if is_known_to_grub && !has_release && was_good && system != System::Damaged {
                    assert!(takes, "a good system stays as it is: {active:?} {other:?}");
                }
                if takes && !has_it {
                    assert!(is_worth_keeping(active), "what GRUB goes back to is whole: {active:?} {other:?}");
                }
            }
            assert!(!is_worth_keeping(active) || system == System::Intact || was_good, "{active:?}");
        }
        assert!(written[0] > 50 && written[1] > 10, "{written:?}");
    }
}
