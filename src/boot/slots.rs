//! The two slots of the recovery partition, each with a complete recovery: which one GRUB starts, and which one may be
//! written. Pure; [`crate::jobs::recovery`] carries it out.
//!
//! GRUB does not replay a journal, so no rename is atomic for it. A slot is therefore written only while GRUB's
//! variable does not name it and this agent was not started from it. The variable, which fits in one sector, is the
//! only thing that switches.
//!
//! A slot that holds the right files may still not come up on this machine. A new recovery is therefore on trial first:
//! GRUB starts it once, and the variable keeps its value until the agent in the new slot has found a release.

use std::fmt;

use crate::release::manifest::{Manifest, Object};

/// A slot of the recovery partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Slot a, which GRUB starts when no variable names a slot.
    A,
    /// Slot b, the other one.
    B,
}

/// Names of the files of a slot, in the order in which they are written. The boot script is last, because the loader
/// takes a slot that has one for complete.
pub const FILES: [&str; 3] = ["initramfs.img", "vmlinuz", "grub.cfg"];

/// Folder of the files in a release, as in `recovery/vmlinuz`.
pub const RELEASE_FOLDER: &str = "recovery";

impl Slot {
    /// Reads the variable or the kernel argument. Any value but `a` and `b` is treated as absent.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Option<Self> {
        match value {
            Some("a") => Some(Self::A),
            Some("b") => Some(Self::B),
            _ => None,
        }
    }

    /// Returns the name of the slot, `a` or `b`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Returns the slot that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Returns the folder of the slot on the recovery partition.
    #[must_use]
    pub fn folder(self) -> String {
        format!("slots/{}", self.name())
    }
}

/// Generation of boot scripts that know no safe start and no undo. They end with the word `whole`.
const FIRST_GENERATION: u32 = 1;
/// Generation of the first boot scripts that make a safe start and offer an undo.
pub const SAFE_GENERATION: u32 = 2;

/// Returns the generation of a boot script, by which the agent knows what the script understands: the number that its
/// last line sets `script` to, and 0 for a text that is no whole script.
#[must_use]
pub fn generation(script_text: &str) -> u32 {
    let last = script_text.lines().map(str::trim).rfind(|line| !line.is_empty());
    match last.and_then(|line| line.strip_prefix("set script=")) {
        Some("whole") => FIRST_GENERATION,
        Some(number) => number.parse().unwrap_or(0),
        None => 0,
    }
}

/// Whether every boot script that GRUB may read makes a safe start and offers an undo: `generations` has one for each
/// slot that holds a script. What an older script cannot read is not written as long as one is there.
#[must_use]
pub fn all_know_safe_start(generations: &[u32]) -> bool {
    all_have(SAFE_GENERATION, generations)
}

/// Whether every boot script that GRUB may read has at least this generation.
#[must_use]
pub fn all_have(generation: u32, generations: &[u32]) -> bool {
    !generations.is_empty() && generations.iter().all(|found| *found >= generation)
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The trial of a slot that has not yet shown that it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// GRUB starts the slot for the next recovery, once.
    Due(Slot),
    /// GRUB has started the slot. If this agent was started from another slot, the trial failed.
    Tried(Slot),
}

impl Trial {
    /// Reads the variable. Any value that [`value`](Self::value) does not return is treated as no trial.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Option<Self> {
        match value?.split_once('-') {
            None => Slot::parse(value).map(Self::Due),
            Some((slot, "tried")) => Slot::parse(Some(slot)).map(Self::Tried),
            Some(_) => None,
        }
    }

    /// Returns the value of the variable.
    #[must_use]
    pub fn value(self) -> &'static str {
        match self {
            Self::Due(slot) => slot.name(),
            Self::Tried(Slot::A) => "a-tried",
            Self::Tried(Slot::B) => "b-tried",
        }
    }
}

/// The state of the slots, as the boot environment has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotState {
    /// Slot that GRUB starts.
    pub active: Option<Slot>,
    /// Slot that GRUB starts once before it goes back to the active slot.
    pub trial: Option<Trial>,
}

/// A slot that was found to hold the recovery of the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadySlot {
    /// The slot held the recovery before.
    Found(Slot),
    /// The recovery was written to the slot just now.
    Written(Slot),
}

impl SlotState {
    /// Returns the state for the time of a recovery, in which no trial is due: the slot may be written, or be found
    /// damaged.
    #[must_use]
    pub fn without_due_trial(self) -> Self {
        Self { trial: self.trial.filter(|trial| matches!(trial, Trial::Tried(_))), ..self }
    }

    /// Returns the state after the agent in `booted` has found a release. That slot can recover this machine, so GRUB
    /// starts it from now on, and the other slot may be written.
    #[must_use]
    pub fn with_proven(self, booted: Slot) -> Self {
        let other = Trial::Tried(booted.other());
        Self { active: Some(booted), trial: self.trial.filter(|trial| *trial == other) }
    }

    /// Returns the state that leads to a slot that is ready, for an agent in `booted`. A slot that failed its trial is
    /// left alone until it holds something else.
    #[must_use]
    pub fn leading_to(self, ready: ReadySlot, booted: Option<Slot>) -> Self {
        let (ReadySlot::Found(slot) | ReadySlot::Written(slot)) = ready;
        if self.active == Some(slot) {
            return self.with_proven(slot);
        }
        let was_tried = self.trial == Some(Trial::Tried(slot));
        match (ready, was_tried, booted == Some(slot)) {
            (ReadySlot::Found(_), true, false) => self,
            // The variable that named the active slot is lost, or that slot could not be started.
            (ReadySlot::Found(_), false, true) => self.with_proven(slot),
            // This includes a slot whose trial ended without a release: whether it can find one is still open.
            _ => Self { trial: Some(Trial::Due(slot)), ..self },
        }
    }
}

/// The recovery in a release: an object for each of [`FILES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryFiles([Object; FILES.len()]);

/// The error for a release that has some of the files of a recovery and not all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the release carries no file {RELEASE_FOLDER}/{missing}, and carries others of a recovery: it was built wrong")]
pub struct IncompleteRecovery {
    /// Name of the first file that is missing.
    pub missing: &'static str,
}

impl RecoveryFiles {
    /// Returns the recovery in a release; `None` for a release without one, which changes nothing.
    ///
    /// # Errors
    /// [`IncompleteRecovery`] when only some of the files are there.
    pub fn of(manifest: &Manifest) -> Result<Option<Self>, IncompleteRecovery> {
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
                Err(IncompleteRecovery { missing: missing.map_or(FILES[0], |(name, _)| name) })
            }
        }
    }

    /// Iterates over the files, each with its object, in the order in which they are written.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Object)> {
        FILES.into_iter().zip(&self.0)
    }
}

/// The step that brings the recovery of the release into a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotPlan {
    /// Point GRUB at this slot, which holds the recovery already.
    PointTo(Slot),
    /// Write the recovery to this slot, which is free.
    Write(Slot),
    /// Change nothing: no slot holds the recovery, and it is not known which slot is free.
    ChangeNothing,
}

/// Decides on the step, by the active slot and the slot that this agent was started from.
///
/// `holds` says whether a slot holds the recovery of the release. It has to read the slot, so it is called for as few
/// slots as needed.
pub fn plan(active: Option<Slot>, booted: Option<Slot>, mut holds: impl FnMut(Slot) -> bool) -> SlotPlan {
    let mut asked = Vec::new();
    for slot in [active, booted, Some(Slot::A), Some(Slot::B)].into_iter().flatten() {
        if !asked.contains(&slot) {
            asked.push(slot);
            if holds(slot) {
                return SlotPlan::PointTo(slot);
            }
        }
    }
    let in_use = |slot| active == Some(slot) || booted == Some(slot);
    match (active.or(booted), [Slot::A, Slot::B].into_iter().find(|slot| !in_use(*slot))) {
        (Some(_), Some(free)) => SlotPlan::Write(free),
        _ => SlotPlan::ChangeNothing,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        IncompleteRecovery, ReadySlot, RecoveryFiles, Slot, SlotPlan, SlotState, Trial, all_know_safe_start,
        generation, plan,
    };
    use crate::release::digest::Digest;
    use crate::release::manifest::{File, Manifest, Object};

    const BOTH: [Option<Slot>; 3] = [None, Some(Slot::A), Some(Slot::B)];

    #[test]
    fn the_generation_of_a_script_is_that_of_its_last_line() {
        for (text, expected) in [
            ("set script=whole\n", 1),
            ("set script=2\n", 2),
            ("set script=3", 3),
            ("echo\nset script=2\n\n  \n", 2),
            ("set script=2\necho", 0),
            ("set script=2x", 0),
            ("set script=-1", 0),
            ("# set script=2", 0),
            ("", 0),
        ] {
            assert_eq!(generation(text), expected, "{text:?}");
        }
        assert!(generation(include_str!("../../grub/slot.cfg")) >= super::SAFE_GENERATION);
        for (generations, all) in [(&[][..], false), (&[2], true), (&[2, 1], false), (&[0, 2], false), (&[2, 3], true)]
        {
            assert_eq!(all_know_safe_start(generations), all, "{generations:?}");
        }
    }

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
    fn the_slot_that_holds_the_release_wins_and_the_active_one_stays_where_both_do() {
        for named in BOTH {
            for booted in BOTH {
                for holder in [Slot::A, Slot::B] {
                    assert_eq!(plan(named, booted, |slot| slot == holder), SlotPlan::PointTo(holder));
                }
                let mut asked = 0;
                let kept = plan(named, booted, |_| {
                    asked += 1;
                    true
                });
                assert_eq!((kept, asked), (SlotPlan::PointTo(named.or(booted).unwrap_or(Slot::A)), 1));
            }
        }
    }

    #[test]
    fn a_new_recovery_is_trusted_once_it_has_found_a_release_and_is_not_tried_twice() {
        let (a, b) = (Slot::A, Slot::B);
        let old = SlotState { active: Some(a), trial: None };
        let due = old.leading_to(ReadySlot::Written(b), Some(a));
        assert_eq!(due, SlotState { active: Some(a), trial: Some(Trial::Due(b)) });
        // GRUB starts it.
        let tried = SlotState { trial: Some(Trial::Tried(b)), ..due };
        assert_eq!(tried.with_proven(b), SlotState { active: Some(b), trial: None });
        // It has only compared the system so far, and may be unable to use the network.
        assert_eq!(tried.leading_to(ReadySlot::Found(b), Some(b)), due);
        // The old recovery came up instead, and finds the release's recovery in the other slot.
        assert_eq!(tried.with_proven(a), tried);
        assert_eq!(tried.leading_to(ReadySlot::Found(b), Some(a)), tried);
        // That lasts until the next release brings another recovery, or the old one again.
        assert_eq!(tried.leading_to(ReadySlot::Written(b), Some(a)), due);
        assert_eq!(tried.leading_to(ReadySlot::Found(a), Some(a)), tried);
    }

    #[test]
    fn a_slot_is_never_due_while_an_agent_may_write_it() {
        let trials = [None, Some(Trial::Due(Slot::A)), Some(Trial::Due(Slot::B)), Some(Trial::Tried(Slot::A))];
        for (named, trial) in BOTH.into_iter().flat_map(|named| trials.map(|trial| (named, trial))) {
            let slots = SlotState { active: named, trial };
            assert_eq!(slots.without_due_trial().active, named);
            for began in [slots.without_due_trial(), slots.with_proven(Slot::A), slots.with_proven(Slot::B)] {
                assert!(!matches!(began.trial, Some(Trial::Due(_))));
            }
        }
    }

    #[test]
    fn a_lost_active_slot_is_restored_without_a_trial_of_the_running_one() {
        for booted in BOTH.into_iter().flatten() {
            let found = SlotState::default().leading_to(ReadySlot::Found(booted), Some(booted));
            assert_eq!(found, SlotState { active: Some(booted), trial: None });
            let other = SlotState::default().leading_to(ReadySlot::Found(booted.other()), Some(booted));
            assert_eq!(other, SlotState { active: None, trial: Some(Trial::Due(booted.other())) });
        }
    }

    #[test]
    fn values_are_read_as_they_are_written() {
        for trial in [Trial::Due(Slot::A), Trial::Due(Slot::B), Trial::Tried(Slot::A), Trial::Tried(Slot::B)] {
            assert_eq!(Trial::parse(Some(trial.value())), Some(trial));
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
        assert_eq!(RecoveryFiles::of(&with(&[])), Ok(None));
        assert_eq!(RecoveryFiles::of(&with(&["grub/core.img", "recoveryvmlinuz"])), Ok(None));
        let whole = with(&["recovery/grub.cfg", "x", "recovery/vmlinuz", "recovery/initramfs.img"]);
        let carried = RecoveryFiles::of(&whole).unwrap().unwrap();
        let sizes: Vec<_> = carried.files().map(|(name, object)| (name, object.size_bytes)).collect();
        assert_eq!(sizes, [("initramfs.img", 4), ("vmlinuz", 3), ("grub.cfg", 1)]);
        let half = with(&["recovery/grub.cfg", "recovery/initramfs.img"]);
        assert_eq!(RecoveryFiles::of(&half), Err(IncompleteRecovery { missing: "vmlinuz" }));
    }
}
