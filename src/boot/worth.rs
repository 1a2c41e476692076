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
    /// Nothing that is left says which.
    #[default]
    Unknown,
}

impl Worth {
    /// Judges the installed release, which has this serial, by the boot environment and by what the black box has of
    /// it.
    ///
    /// The black box goes before `reflash_was_good`, which an older agent leaves alone when it installs another
    /// release, and which an older boot script never sets.
    #[must_use]
    pub fn judge(serial: u64, env: &GrubEnv, recorded: Self) -> Self {
        let good = env.get(names::GOOD).and_then(|text| text.parse().ok());
        if good == Some(serial) || env.get(names::BOOT_OK) == Some("1") {
            return Self::Before;
        }
        match (recorded, env.get(names::WAS_GOOD)) {
            (Self::Never | Self::Before, _) => recorded,
            (Self::Unknown, Some("1")) => Self::Before,
            (Self::Unknown, Some("0")) => Self::Never,
            (Self::Unknown, _) => Self::Unknown,
        }
    }

    /// The word for people and for `reflash status --json`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Before => "before",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Worth::{self, Before, Never, Unknown};
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
            assert_eq!(Worth::judge(7, &env, recorded), expected, "{variables:?} {recorded:?}");
        }
    }
}
