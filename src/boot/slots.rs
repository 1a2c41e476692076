//! The two slots of the recovery partition, each a whole recovery: which one GRUB's pointer is to name, and which one may
//! be written. Pure; `recovery/renew.rs` does it.
//!
//! GRUB replays no journal, so that no rename is atomic for it. A slot is therefore only written while neither the
//! pointer names it nor this agent was started from it, and the pointer, one sector, is the only thing that switches.
//!
//! That a slot holds what it is to hold says nothing about whether it comes up on this machine. It is therefore on trial
//! first: GRUB starts it once, and the pointer stays where it is until the agent in it has found a release.

use std::fmt;

use crate::release::manifest::{Manifest, Object};

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// What GRUB takes when nothing is said.
    A,
    /// The other.
    B,
}

/// The files of a slot, in the order they are written: the loader takes a slot for whole by its boot script.
pub const FILES: [&str; 3] = ["initramfs.img", "vmlinuz", "grub.cfg"];

/// What a release calls them: `recovery/vmlinuz`.
pub const RELEASE_FOLDER: &str = "recovery";

impl Slot {
    /// Reads the variable or the kernel argument. Anything else counts as not said.
    #[must_use]
    pub fn parse(word: Option<&str>) -> Option<Self> {
        match word {
            Some("a") => Some(Self::A),
            Some("b") => Some(Self::B),
            _ => None,
        }
    }

    /// `a` or `b`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its folder on the recovery partition.
    #[must_use]
    pub fn folder(self) -> String {
        format!("slots/{}", self.name())
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A slot that has not shown yet that it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// GRUB starts it for the next recovery, once.
    Due(Slot),
    /// GRUB has started it. Unless this agent is the one that it started, it did not come up.
    Tried(Slot),
}

impl Trial {
    /// Reads the variable. Anything else counts as no trial.
    #[must_use]
    pub fn parse(word: Option<&str>) -> Option<Self> {
        match word?.split_once('-') {
            None => Slot::parse(word).map(Self::Due),
            Some((slot, "tried")) => Slot::parse(Some(slot)).map(Self::Tried),
            Some(_) => None,
        }
    }

    /// The variable's value.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Due(slot) => slot.name(),
            Self::Tried(Slot::A) => "a-tried",
            Self::Tried(Slot::B) => "b-tried",
        }
    }
}

/// What the boot environment says about the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pointers {
    /// The slot that GRUB starts.
    pub named: Option<Slot>,
    /// The one that it is to start once before.
    pub trial: Option<Trial>,
}

/// A slot that was found to hold the recovery of the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// It was there before.
    Found(Slot),
    /// It was written just now.
    Written(Slot),
}

impl Pointers {
    /// While a recovery works, no slot is due: it may be written, or be found spoiled.
    #[must_use]
    pub fn begun(self) -> Self {
        Self { trial: self.trial.filter(|trial| matches!(trial, Trial::Tried(_))), ..self }
    }

    /// The agent in `booted` has found a release, so that it can recover this machine: it is the one to start, and the
    /// other slot may be written.
    #[must_use]
    pub fn proven(self, booted: Slot) -> Self {
        let other = Trial::Tried(booted.other());
        Self { named: Some(booted), trial: self.trial.filter(|trial| *trial == other) }
    }

    /// What leads to a slot that is ready, for an agent in `booted`. One that failed its trial is left alone until it
    /// holds something else.
    #[must_use]
    pub fn leading_to(self, ready: Ready, booted: Option<Slot>) -> Self {
        let (Ready::Found(slot) | Ready::Written(slot)) = ready;
        if self.named == Some(slot) {
            return self.proven(slot);
        }
        let tried = self.trial == Some(Trial::Tried(slot));
        match (ready, tried, booted == Some(slot)) {
            (Ready::Found(_), true, false) => self,
            // What was named is lost, or could not be started.
            (Ready::Found(_), false, true) => self.proven(slot),
            // Also one on trial that had an answer without any release: it is still to be seen whether it finds one.
            _ => Self { trial: Some(Trial::Due(slot)), ..self },
        }
    }
}

/// The recovery that a release carries: an object for each of [`FILES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried([Object; FILES.len()]);

/// A release has some of the files and not all: half a recovery is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the release carries no file {RELEASE_FOLDER}/{missing}, and carries others of a recovery: it was built wrong")]
pub struct HalfCarried {
    /// The first that is missing.
    pub missing: &'static str,
}

impl Carried {
    /// The recovery of a release; `None` for a release without one, which changes nothing.
    ///
    /// # Errors
    /// [`HalfCarried`].
    pub fn by(manifest: &Manifest) -> Result<Option<Self>, HalfCarried> {
        let find = |name: &str| {
            let wanted = manifest.files.iter().find(|file| {
                file.name.strip_prefix(RELEASE_FOLDER).and_then(|rest| rest.strip_prefix('/')) == Some(name)
            });
            wanted.map(|file| file.object)
        };
        match FILES.map(find) {
            [None, None, None] => Ok(None),
            [Some(first), Some(second), Some(third)] => Ok(Some(Self([first, second, third]))),
            found => {
                let missing = FILES.iter().zip(found).find(|(_, object)| object.is_none());
                Err(HalfCarried { missing: missing.map_or(FILES[0], |(name, _)| name) })
            }
        }
    }

    /// Each file with its object, in the order they are written.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Object)> {
        FILES.into_iter().zip(&self.0)
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotPlan {
    /// The slot holds the release's recovery already.
    Point(Slot),
    /// None does, and this one is free.
    Write(Slot),
    /// None does, and which one is free cannot be said.
    Leave,
}

/// Decides, by what the pointer names and what this agent was started from. `holds` says whether a slot holds what it is
/// to hold; it is asked for as few slots as needed, since that means reading them.
pub fn plan(named: Option<Slot>, booted: Option<Slot>, mut holds: impl FnMut(Slot) -> bool) -> SlotPlan {
    let mut asked = Vec::new();
    for slot in [named, booted, Some(Slot::A), Some(Slot::B)].into_iter().flatten() {
        if !asked.contains(&slot) {
            asked.push(slot);
            if holds(slot) {
                return SlotPlan::Point(slot);
            }
        }
    }
    let in_use = |slot| named == Some(slot) || booted == Some(slot);
    match (named.or(booted), [Slot::A, Slot::B].into_iter().find(|slot| !in_use(*slot))) {
        (Some(_), Some(free)) => SlotPlan::Write(free),
        _ => SlotPlan::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::{Carried, HalfCarried, Pointers, Ready, Slot, SlotPlan, Trial, plan};
    use crate::release::digest::Digest;
    use crate::release::manifest::{File, Manifest, Object};

    const BOTH: [Option<Slot>; 3] = [None, Some(Slot::A), Some(Slot::B)];

    #[test]
    fn a_slot_in_use_is_never_written() {
        for named in BOTH {
            for booted in BOTH {
                let plan = plan(named, booted, |_| false);
                if let SlotPlan::Write(slot) = plan {
                    assert!(named != Some(slot) && booted != Some(slot), "{named:?} {booted:?}");
                }
                let in_use = [Slot::A, Slot::B].map(|slot| [named, booted].contains(&Some(slot)));
                assert_eq!(matches!(plan, SlotPlan::Write(_)), in_use[0] != in_use[1], "{named:?} {booted:?}");
            }
        }
    }

    #[test]
    fn what_holds_the_release_wins_and_the_pointer_stays_where_both_do() {
        for named in BOTH {
            for booted in BOTH {
                for holder in [Slot::A, Slot::B] {
                    assert_eq!(plan(named, booted, |slot| slot == holder), SlotPlan::Point(holder));
                }
                let mut asked = 0;
                let kept = plan(named, booted, |_| {
                    asked += 1;
                    true
                });
                assert_eq!((kept, asked), (SlotPlan::Point(named.or(booted).unwrap_or(Slot::A)), 1));
            }
        }
    }

    #[test]
    fn a_new_recovery_is_trusted_once_it_has_found_a_release_and_not_tried_twice() {
        let (a, b) = (Slot::A, Slot::B);
        let old = Pointers { named: Some(a), trial: None };
        let due = old.leading_to(Ready::Written(b), Some(a));
        assert_eq!(due, Pointers { named: Some(a), trial: Some(Trial::Due(b)) });
        // GRUB starts it.
        let tried = Pointers { trial: Some(Trial::Tried(b)), ..due };
        assert_eq!(tried.proven(b), Pointers { named: Some(b), trial: None });
        // It only compared the system: it may be blind in the network.
        assert_eq!(tried.leading_to(Ready::Found(b), Some(b)), due);
        // The old one came up instead, and finds the release's recovery in the other slot.
        assert_eq!(tried.proven(a), tried);
        assert_eq!(tried.leading_to(Ready::Found(b), Some(a)), tried);
        // Until the next release brings another, or takes it back.
        assert_eq!(tried.leading_to(Ready::Written(b), Some(a)), due);
        assert_eq!(tried.leading_to(Ready::Found(a), Some(a)), tried);
    }

    #[test]
    fn a_slot_is_never_due_while_an_agent_may_write_it() {
        let trials = [None, Some(Trial::Due(Slot::A)), Some(Trial::Due(Slot::B)), Some(Trial::Tried(Slot::A))];
        for (named, trial) in BOTH.into_iter().flat_map(|named| trials.map(|trial| (named, trial))) {
            let slots = Pointers { named, trial };
            assert_eq!(slots.begun().named, named);
            for began in [slots.begun(), slots.proven(Slot::A), slots.proven(Slot::B)] {
                assert!(!matches!(began.trial, Some(Trial::Due(_))));
            }
        }
    }

    #[test]
    fn a_lost_pointer_comes_back_without_a_trial_of_what_runs() {
        for booted in BOTH.into_iter().flatten() {
            let found = Pointers::default().leading_to(Ready::Found(booted), Some(booted));
            assert_eq!(found, Pointers { named: Some(booted), trial: None });
            let other = Pointers::default().leading_to(Ready::Found(booted.other()), Some(booted));
            assert_eq!(other, Pointers { named: None, trial: Some(Trial::Due(booted.other())) });
        }
    }

    #[test]
    fn words() {
        for trial in [Trial::Due(Slot::A), Trial::Due(Slot::B), Trial::Tried(Slot::A), Trial::Tried(Slot::B)] {
            assert_eq!(Trial::parse(Some(trial.word())), Some(trial));
        }
        for word in [None, Some(""), Some("c"), Some("a-"), Some("a-tried-"), Some("-tried"), Some("c-tried")] {
            assert_eq!(Trial::parse(word), None);
        }
        for slot in [Slot::A, Slot::B] {
            assert_eq!(Slot::parse(Some(slot.name())), Some(slot));
            assert_ne!(slot.other(), slot);
        }
        for word in [None, Some(""), Some("c"), Some("A"), Some("recovery")] {
            assert_eq!(Slot::parse(word), None);
        }
    }

    #[test]
    fn a_release_carries_all_of_a_recovery_or_none() {
        let with = |names: &[&str]| Manifest {
            format: 1,
            product: String::new(),
            hardware: Vec::new(),
            channel: String::new(),
            version: String::new(),
            serial: 1,
            created_unix_s: 0,
            minimum_agent: String::new(),
            images: Vec::new(),
            layout: None,
            files: (1..)
                .zip(names)
                .map(|(size_bytes, name)| File {
                    name: (*name).to_owned(),
                    object: Object { blake3: Digest::of(name.as_bytes()), size_bytes },
                })
                .collect(),
        };
        assert_eq!(Carried::by(&with(&[])), Ok(None));
        assert_eq!(Carried::by(&with(&["grub/core.img", "recoveryvmlinuz"])), Ok(None));
        let whole = with(&["recovery/grub.cfg", "x", "recovery/vmlinuz", "recovery/initramfs.img"]);
        let carried = Carried::by(&whole).unwrap().unwrap();
        let sizes: Vec<_> = carried.files().map(|(name, object)| (name, object.size_bytes)).collect();
        assert_eq!(sizes, [("initramfs.img", 4), ("vmlinuz", 3), ("grub.cfg", 1)]);
        let half = with(&["recovery/grub.cfg", "recovery/initramfs.img"]);
        assert_eq!(Carried::by(&half), Err(HalfCarried { missing: "vmlinuz" }));
    }
}
