//! The two slots of the recovery partition, each a whole recovery: which one GRUB's pointer is to name, and which one may
//! be written. Pure; `recovery/renew.rs` does it.
//!
//! GRUB replays no journal, so that no rename is atomic for it. A slot is therefore only written while neither the
//! pointer names it nor this agent was started from it, and the pointer, one sector, is the only thing that switches.

use std::fmt;

use crate::manifest::{Manifest, Object};

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
pub enum Plan {
    /// The slot holds the release's recovery already.
    Point(Slot),
    /// None does, and this one is free.
    Write(Slot),
    /// None does, and which one is free cannot be said.
    Leave,
}

/// Decides, by what the pointer names and what this agent was started from. `holds` says whether a slot holds what it is
/// to hold; it is asked for as few slots as needed, since that means reading them.
pub fn plan(named: Option<Slot>, booted: Option<Slot>, mut holds: impl FnMut(Slot) -> bool) -> Plan {
    let mut asked = Vec::new();
    for slot in [named, booted, Some(Slot::A), Some(Slot::B)].into_iter().flatten() {
        if !asked.contains(&slot) {
            asked.push(slot);
            if holds(slot) {
                return Plan::Point(slot);
            }
        }
    }
    let in_use = |slot| named == Some(slot) || booted == Some(slot);
    match (named.or(booted), [Slot::A, Slot::B].into_iter().find(|slot| !in_use(*slot))) {
        (Some(_), Some(free)) => Plan::Write(free),
        _ => Plan::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::{Carried, HalfCarried, Plan, Slot, plan};
    use crate::digest::Digest;
    use crate::manifest::{File, Manifest, Object};

    const BOTH: [Option<Slot>; 3] = [None, Some(Slot::A), Some(Slot::B)];

    #[test]
    fn a_slot_in_use_is_never_written() {
        for named in BOTH {
            for booted in BOTH {
                let plan = plan(named, booted, |_| false);
                if let Plan::Write(slot) = plan {
                    assert!(named != Some(slot) && booted != Some(slot), "{named:?} {booted:?}");
                }
                let in_use = [Slot::A, Slot::B].map(|slot| [named, booted].contains(&Some(slot)));
                assert_eq!(matches!(plan, Plan::Write(_)), in_use[0] != in_use[1], "{named:?} {booted:?}");
            }
        }
    }

    #[test]
    fn what_holds_the_release_wins_and_the_pointer_stays_where_both_do() {
        for named in BOTH {
            for booted in BOTH {
                for holder in [Slot::A, Slot::B] {
                    assert_eq!(plan(named, booted, |slot| slot == holder), Plan::Point(holder));
                }
                let mut asked = 0;
                let kept = plan(named, booted, |_| {
                    asked += 1;
                    true
                });
                assert_eq!((kept, asked), (Plan::Point(named.or(booted).unwrap_or(Slot::A)), 1));
            }
        }
    }

    #[test]
    fn words() {
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
