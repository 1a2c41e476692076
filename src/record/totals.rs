//! Quantities of a plan, as the console, the black box and reports show them. Pure.

use std::fmt;

use crate::record::progress::bytes;

/// Quantities of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Size of the image, bytes.
    pub image_bytes: u64,
    /// Bytes that are right on the partition already, zeros included.
    pub right_bytes: u64,
    /// Bytes to fill with zeros.
    pub zero_bytes: u64,
    /// Bytes to assemble from blocks found elsewhere on the partition.
    pub move_bytes: u64,
    /// Bytes to write with fetched content.
    pub write_bytes: u64,
    /// Bytes to download, the gaps between coalesced ranges included.
    pub download_bytes: u64,
    /// Bytes to read from what is kept on the partition itself, in place of a download.
    #[serde(skip_serializing_if = "is_none")]
    pub kept_bytes: u64,
    /// Bytes that it takes, by estimate, to keep what an undo needs; 0 where nothing is to be kept.
    #[serde(skip_serializing_if = "is_none")]
    pub undo_needed_bytes: u64,
    /// Bytes that are free for that behind the image.
    #[serde(skip_serializing_if = "is_none")]
    pub undo_room_bytes: u64,
}

/// Whether a quantity is left out of JSON, which had none of the kind before.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

impl Totals {
    /// Totals of a partition that holds an image of this size already.
    #[must_use]
    pub fn nothing_to_do(image_bytes: u64) -> Self {
        Self { image_bytes, right_bytes: image_bytes, ..Self::default() }
    }

    /// Bytes that change on the partition.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.zero_bytes + self.move_bytes + self.write_bytes
    }
}

/// The sentence that the console shows before anything is written.
impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} are right already; to download {}, to move {}, to write {}, to zero {}",
            bytes(self.right_bytes),
            bytes(self.download_bytes),
            bytes(self.move_bytes),
            bytes(self.write_bytes),
            bytes(self.zero_bytes)
        )?;
        if self.kept_bytes > 0 {
            write!(f, "; to take {} from what is kept on the disk", bytes(self.kept_bytes))?;
        }
        let (needed, there) = (bytes(self.undo_needed_bytes), bytes(self.undo_room_bytes));
        match self.undo_needed_bytes {
            0 => Ok(()),
            needed_bytes if needed_bytes <= self.undo_room_bytes => {
                write!(f, "; to keep for an undo about {needed} of {there} behind the image")
            }
            _ => write!(f, "; an undo would need about {needed} behind the image, where {there} are free"),
        }
    }
}
