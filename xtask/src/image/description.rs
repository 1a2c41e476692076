//! What an image is, in files beside it: a description for the commands that follow, and its bill of materials.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::archives::PackagesDay;
use super::source::UsedSource;
use crate::contents::ImageContents;
use crate::contents::sbom::{self, SbomSubject};
use crate::invocation::program;
use crate::recipe::Recipe;

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
    /// Day that its packages are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<PackagesDay>,
    /// BLAKE3 digest of its bill of materials, the file beside it with the extension `cdx.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom_blake3: Option<String>,
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

    /// Returns the path of an image's bill of materials.
    #[must_use]
    pub fn sbom_path(image: &Path) -> PathBuf {
        image.with_extension("cdx.json")
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

    /// Refuses an image that another recipe has made: project files of several products may share the directory in
    /// which images are built, and the last one there may be another product's.
    ///
    /// # Errors
    /// When name or branch are not those of the recipe at `path`, or that cannot be read.
    pub fn check_recipe(&self, path: &Path) -> Result<()> {
        let recipe = Recipe::load(path)?;
        ensure!(
            recipe.name == self.name && recipe.ostree.branch == self.ostree_ref,
            "the image is {} (branch {}), and {} makes {} (branch {}): make that one with `{} image`, and give each \
             product a `dist` of its own in its project file",
            self.name,
            self.ostree_ref,
            path.display(),
            recipe.name,
            recipe.ostree.branch,
            program()
        );
        Ok(())
    }

    /// Writes it beside its image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write_beside(&self, image: &Path) -> Result<()> {
        let path = Self::path(image);
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Returns the bill of materials of an image that holds `contents`.
///
/// # Errors
/// Fails when the description has a time that no calendar has.
pub fn bill_of_materials(contents: &ImageContents, description: Option<&Description>) -> Result<String> {
    let archives = description.and_then(|description| description.packages.as_ref());
    let archives = archives.map(PackagesDay::archives_text).unwrap_or_default();
    let subject = SbomSubject {
        timestamp: description.map_or(0, |description| description.timestamp),
        ostree_commit: description.map(|description| description.ostree_commit.as_str()),
        archives: &archives,
    };
    sbom::json(contents, &subject)
}

#[cfg(test)]
mod tests {
    use super::{Description, LayoutOrigin};

    #[test]
    fn a_description_without_a_layout_is_one_of_a_first_image() {
        let text = r#"{"name":"a","version":"1","ostree_commit":"b","ostree_ref":"c","image_bytes":1,"kernel":"d",
            "timestamp":1,"inputs":"e"}"#;
        assert_eq!(serde_json::from_str::<Description>(text).unwrap().layout, LayoutOrigin::First);
        let kept = LayoutOrigin::Kept { previous: "ab".into(), changed_bytes: 4096 };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(text, r#"{"way":"kept","previous":"ab","changed_bytes":4096}"#);
    }

    #[test]
    fn a_description_is_found_beside_its_image() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("system.img");
        assert!(Description::beside(&image).is_err());
        let description = Description {
            name: "demo".into(),
            version: "1".into(),
            ostree_commit: "ab".into(),
            ostree_ref: "demo/x".into(),
            image_bytes: 7,
            kernel: "6.1".into(),
            timestamp: 1,
            layout: LayoutOrigin::Kept { previous: "ef".into(), changed_bytes: 3 },
            source: None,
            packages: None,
            sbom_blake3: None,
            inputs: "cd".into(),
        };
        description.write_beside(&image).unwrap();
        assert!(directory.path().join("system.json").exists());
        assert_eq!(Description::beside(&image).unwrap(), description);
    }
}
