//! What a build says about its image, for people and for the commands that take the image: a JSON file beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::source::UsedSource;

/// Description of an image: a JSON file beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Name of the recipe.
    pub name: String,
    /// Version of the recipe.
    pub version: String,
    /// Digest of the commit in the image.
    pub ostree_commit: String,
    /// Branch of the commit.
    pub ostree_ref: String,
    /// Size of the image.
    pub image_bytes: u64,
    /// `uname -r` of the image's kernel.
    pub kernel: String,
    /// Seconds since 1970 that the commit carries.
    pub timestamp: u64,
    /// Way in which its blocks were laid out.
    #[serde(default)]
    pub layout: LayoutOrigin,
    /// Source that it was made from, in place of a bootstrapped tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<UsedSource>,
    /// Digest of everything the image was made from: what has not changed is not built again.
    pub inputs: String,
}

/// Way in which the blocks of an image were laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "way", rename_all = "lowercase")]
pub enum LayoutOrigin {
    /// Laid out without an image before.
    #[default]
    First,
    /// Unchanged content lies where it was in the previous image.
    Kept {
        /// BLAKE3 digest of the image before.
        previous: String,
        /// Bytes of the 4 KiB blocks that are not what they are in the image before.
        changed_bytes: u64,
    },
    /// Laid out from scratch, although an image before was given.
    Fresh {
        /// BLAKE3 digest of the image before.
        previous: String,
        /// Reason for it.
        because: String,
        /// Bytes of the 4 KiB blocks that are not what they are in the image before.
        changed_bytes: u64,
    },
}

impl Description {
    /// Returns the path of an image's description.
    #[must_use]
    pub fn path(image: &Path) -> PathBuf {
        image.with_extension("json")
    }

    /// Reads the description beside an image.
    ///
    /// # Errors
    /// When there is none, or the file beside the image is no description.
    pub fn beside(image: &Path) -> Result<Self> {
        let path = Self::path(image);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no description of an image", path.display()))
    }

    /// Writes the description beside an image.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write_beside(&self, image: &Path) -> Result<()> {
        let path = Self::path(image);
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("write {}", path.display()))
    }
}
