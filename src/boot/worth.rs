//! The worth of the installed release: whether a boot of it ever called itself good. Pure.
//!
//! Images of version 0.1 write no more than `reflash_boot_ok=1`, which the count of the next start wipes out. So there
//! are several witnesses, and the one that is bound to the release itself is believed first.

use crate::boot::grubenv::{GrubEnv, names};

/// The knowledge of whether the installed release was ever good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Worth {
    /// No boot of it called itself good since it was installed.
    Never,
    /// A boot of it called itself good.
    Before,
    /// A boot of another release with the very same image called itself good, and none of its own.
    SameImage,
    /// Nothing that is left says which.
    #[default]
    Unknown,
}

/// Witnesses of a good boot beside the boot environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Witnesses {
    /// Testimony of the black box on releases with the serial of the installed one.
    pub recorded: Worth,
    /// Whether the release that was good last has the serial of the installed one and another manifest: what is bound
    /// to a serial alone is about that one.
    pub is_of_another_manifest: bool,
    /// Whether the release that was good last has the image of the installed one.
    pub has_image: bool,
}

impl Worth {
    /// Judges the installed release, which has this serial, by the boot environment and the other witnesses.
    ///
    /// The black box goes before `reflash_was_good`, which an older agent leaves alone when it installs another
    /// release, and which an older boot script never sets.
    #[must_use]
    pub fn judge(serial: u64, env: &GrubEnv, witnesses: Witnesses) -> Self {
        let Witnesses { recorded, is_of_another_manifest, has_image } = witnesses;
        let good = env.get(names::GOOD).and_then(|text| text.parse().ok()).filter(|_| !is_of_another_manifest);
        if good == Some(serial) || env.get(names::BOOT_OK) == Some("1") {
            return Self::Before;
        }
        let recorded = if is_of_another_manifest { Self::Unknown } else { recorded };
        let worth = match (recorded, env.get(names::WAS_GOOD)) {
            (Self::Unknown, Some("1")) => Self::Before,
            (Self::Unknown, Some("0")) => Self::Never,
            _ => recorded,
        };
        // The same bytes came up before, so that what keeps them from it now lies elsewhere.
        if worth != Self::Before && has_image { Self::SameImage } else { worth }
    }

    /// The word for people and for `reflash status --json`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Before => "before",
            Self::SameImage => "same-image",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Witnesses;
    use super::Worth::{self, Before, Never, SameImage, Unknown};
    use crate::boot::grubenv::GrubEnv;

    #[test]
    fn what_is_bound_to_the_release_is_believed_first() {
        for (variables, recorded, expected) in [
            (&[][..], Unknown, Unknown),
            (&[], Never, Never),
            (&[], Before, Before),
            (&[("reflash_good", "7")], Never, Before),
            (&[("reflash_good", "6")], Unknown, Unknown),
            (&[("reflash_good", "6")], Never, Never),
            (&[("reflash_good", "7x")], Unknown, Unknown),
            // A good boot of an image that writes nothing else is still going on.
            (&[("reflash_boot_ok", "1")], Never, Before),
            (&[("reflash_boot_ok", "0")], Unknown, Unknown),
            (&[("reflash_was_good", "1")], Unknown, Before),
            // An older agent installed another release and left the variable alone.
            (&[("reflash_was_good", "1")], Never, Never),
            // An older boot script counted the good boot down.
            (&[("reflash_was_good", "0")], Before, Before),
            (&[("reflash_was_good", "0"), ("reflash_good", "6")], Unknown, Never),
            (&[("reflash_was_good", "x")], Unknown, Unknown),
        ] {
            let mut env = GrubEnv::default();
            for (name, value) in variables {
                env.set(name, value).unwrap();
            }
            let mut witnesses = Witnesses { recorded, ..Witnesses::default() };
            assert_eq!(Worth::judge(7, &env, witnesses), expected, "{variables:?} {recorded:?}");
            // The same image came up before: that is worth as much as the release itself, and no more.
            witnesses.has_image = true;
            let expected = if expected == Before { Before } else { SameImage };
            assert_eq!(Worth::judge(7, &env, witnesses), expected, "{variables:?} {recorded:?}");
        }
    }

    #[test]
    fn another_manifest_with_the_serial_of_a_good_release_inherits_nothing() {
        let witnesses = |recorded| Witnesses { recorded, is_of_another_manifest: true, has_image: false };
        for (variables, recorded, expected) in [
            (&[("reflash_good", "7")][..], Before, Unknown),
            (&[("reflash_good", "7"), ("reflash_was_good", "0")], Before, Never),
            (&[("reflash_was_good", "0")], Never, Never),
            // Its own boot is good, or was: an image of today records no more than that.
            (&[("reflash_boot_ok", "1")], Never, Before),
            (&[("reflash_good", "7"), ("reflash_was_good", "1")], Never, Before),
        ] {
            let mut env = GrubEnv::default();
            for (name, value) in variables {
                env.set(name, value).unwrap();
            }
            assert_eq!(Worth::judge(7, &env, witnesses(recorded)), expected, "{variables:?} {recorded:?}");
        }
    }
}
