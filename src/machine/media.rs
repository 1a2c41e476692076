//! Boot media: the ID that distinguishes each, and the places of files on it. Pure.
//!
//! A medium made by `cargo xtask media` is an ISO 9660 file system whose volume set identifier is `REFLASH-` and its
//! ID. GRUB passes the ID on as `reflash.media=`, so that the agent finds the very medium it was started from, by its
//! content: a label could be that of another USB drive, and device names identify nothing.

use std::fmt;
use std::str::FromStr;

use uuid::fmt::Hyphenated;

/// Label of the medium, for people.
pub const LABEL: &str = "REFLASH";
/// Directory on the medium that holds all of the below.
pub const DIRECTORY: &str = "reflash";
/// The configuration, in [`DIRECTORY`].
pub const CONFIG: &str = "reflash.toml";
/// Public keys `*.pub`, in [`DIRECTORY`].
pub const KEYS: &str = "keys";
/// Names of machines, in [`DIRECTORY`]; see [`crate::machine::hostname::asset`].
pub const ASSETS: &str = "assets.txt";
/// A release tree, in [`DIRECTORY`], when the medium carries one.
pub const RELEASE: &str = "release";

/// Offset of the primary volume descriptor of ISO 9660 (ECMA-119, 6.2.1: sectors of 2048 bytes, the first 16 unused).
pub const DESCRIPTOR_OFFSET_BYTES: u64 = 16 * 2048;
/// Length of the primary volume descriptor.
pub const DESCRIPTOR_BYTES: usize = 2048;

const VOLUME_SET: &str = "REFLASH-";

/// The ID of a medium, shown as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaId(Hyphenated);

/// Text that is not the ID of a medium.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the ID of a boot medium")]
pub struct MediaIdError(String);

impl MediaId {
    /// An ID from a digest. Version and variant are set as for UUIDs made by a scheme of one's own (RFC 9562, 5.8).
    #[must_use]
    pub fn new(digest: [u8; 16]) -> Self {
        Self(uuid::Builder::from_custom_bytes(digest).into_uuid().hyphenated())
    }

    /// The volume set identifier of the medium.
    #[must_use]
    pub fn volume_set(&self) -> String {
        format!("{VOLUME_SET}{self}").to_ascii_uppercase()
    }

    /// A file that only this medium has, for GRUB, which cannot search for a volume set.
    #[must_use]
    pub fn marker(&self) -> String {
        format!("{DIRECTORY}/{self}.id")
    }

    /// The medium whose primary volume descriptor this is, if it is one of ours.
    #[must_use]
    pub fn of_descriptor(descriptor: &[u8]) -> Option<Self> {
        // ECMA-119, 8.4: type 1, "CD001", version 1; the volume set identifier has 128 characters at byte 190.
        let head = descriptor.get(..7)?;
        let set = descriptor.get(190..190 + 128)?;
        if head != b"\x01CD001\x01" {
            return None;
        }
        std::str::from_utf8(set).ok()?.trim_end().strip_prefix(VOLUME_SET)?.parse().ok()
    }
}

impl fmt::Display for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MediaId {
    type Err = MediaIdError;

    fn from_str(text: &str) -> Result<Self, MediaIdError> {
        text.parse().map(Self).map_err(|_| MediaIdError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::{DESCRIPTOR_BYTES, MediaId};

    #[test]
    fn ids_are_uuids_and_come_back() {
        let id = MediaId::new([0xff; 16]);
        assert_eq!(id.to_string(), "ffffffff-ffff-8fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        for text in ["", "x", "ffffffffffff8fffbfffffffffffffff", "ffffffff-ffff-8fff-bfff-fffffffffffff"] {
            assert!(text.parse::<MediaId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_descriptor_of_another_medium_has_no_id() {
        let id = MediaId::new([7; 16]);
        let mut descriptor = vec![b' '; DESCRIPTOR_BYTES];
        descriptor[..7].copy_from_slice(b"\x01CD001\x01");
        assert_eq!(MediaId::of_descriptor(&descriptor), None);
        descriptor[190..190 + id.volume_set().len()].copy_from_slice(id.volume_set().as_bytes());
        assert_eq!(MediaId::of_descriptor(&descriptor), Some(id));
        descriptor[0] = 2;
        assert_eq!(MediaId::of_descriptor(&descriptor), None);
        assert_eq!(MediaId::of_descriptor(&descriptor[..100]), None);
    }
}
