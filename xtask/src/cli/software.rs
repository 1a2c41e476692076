//! What a release says of the software in its image: the bill of materials, and what changed since the release before.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::release::manifest::{Manifest, object_path};

use crate::contents::difference::{self, PackageChanges};
use crate::contents::packages::InstalledPackage;
use crate::contents::{ImageContents, sbom};
use crate::image::{Description, bill_of_materials};
use crate::release::history;

/// Name of the file that says which packages changed since the release before.
const CHANGES_FILE: &str = "package-changes.json";

/// Changes of packages between two releases, as they are published.
#[derive(serde::Serialize)]
struct PublishedChanges<'a> {
    /// Release before.
    since_version: &'a str,
    since_serial: u64,
    #[serde(flatten)]
    packages: &'a PackageChanges,
}

/// Returns the files that a release carries for people and scanners; robots pass them over. They are written into
/// `directory`. `tree` and `channel` are where the release before is. An image that was not made by the builder has
/// none.
///
/// # Errors
/// Fails when a file cannot be written.
pub fn files(
    image: &Path,
    description: Option<&Description>,
    (tree, channel): (&Path, &str),
    directory: &Path,
) -> Result<Vec<(String, PathBuf)>> {
    let sbom = match text(image, description) {
        Ok(sbom) => sbom,
        Err(error) => {
            eprintln!("  the release carries no bill of materials: {error:#}");
            return Ok(Vec::new());
        }
    };
    let write = |name: &str, content: &[u8]| -> Result<(String, PathBuf)> {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok((name.to_owned(), path))
    };
    let mut files = vec![write(sbom::FILE, sbom.as_bytes())?];
    if let Some((before, packages)) = packages_before(tree, channel) {
        let changes = difference::packages(&packages, &sbom::packages(sbom.as_bytes())?);
        let PackageChanges { added, removed, upgraded, downgraded } = &changes;
        eprintln!(
            "  packages since release {} (serial {}): {} upgraded, {} downgraded, {} added, {} removed",
            before.version,
            before.serial,
            upgraded.len(),
            downgraded.len(),
            added.len(),
            removed.len()
        );
        for change in downgraded {
            eprintln!("    downgraded: {} {} -> {}", change.name, change.old, change.new);
        }
        let (since_version, since_serial) = (before.version.as_str(), before.serial);
        let published = PublishedChanges { since_version, since_serial, packages: &changes };
        files.push(write(CHANGES_FILE, &serde_json::to_vec_pretty(&published)?)?);
    }
    Ok(files)
}

/// The bill of materials beside the image, or a new one where that is not the image's.
fn text(image: &Path, description: Option<&Description>) -> Result<String> {
    let wanted = description.and_then(|description| description.sbom_blake3.as_deref());
    let beside = std::fs::read_to_string(Description::sbom_path(image)).ok();
    let is_right = |text: &String| wanted == Some(blake3::hash(text.as_bytes()).to_hex().as_str());
    match beside.filter(is_right) {
        Some(text) => Ok(text),
        None => bill_of_materials(&ImageContents::read(image)?, description),
    }
}

/// The last release of the channel, with its packages: where there is a roll-out, the one that is offered stays. A
/// release without them, or one that cannot be read, has nothing to be compared with.
fn packages_before(tree: &Path, channel: &str) -> Option<(Manifest, Vec<InstalledPackage>)> {
    let manifest = history::releases(tree, channel).ok()?.into_iter().next()?.manifest;
    let file = manifest.files.iter().find(|file| file.name == sbom::FILE)?;
    let content = std::fs::read(tree.join(object_path(&file.object.blake3))).ok()?;
    let packages = sbom::packages(&content).ok()?;
    Some((manifest, packages))
}

#[cfg(test)]
mod tests {
    use super::{CHANGES_FILE, files, packages_before};
    use crate::contents::sbom;
    use reflash::release::digest::Digest;
    use reflash::release::manifest::{FORMAT, File, Manifest, Object, manifest_path, object_path};
    use reflash::release::rollout::release_path;

    /// Where there is a roll-out, the release that is offered stays, and the list of changes grew for ever.
    #[test]
    fn the_release_before_is_the_last_one_that_was_made() {
        let directory = tempfile::tempdir().unwrap();
        let list = br#"{"components":[]}"#;
        let object = Object { blake3: Digest::of(list), size_bytes: list.len() as u64 };
        let write = |path: &str, content: &[u8]| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write(&object_path(&object.blake3), list);
        for (serial, path) in [(1, manifest_path("stable")), (2, release_path("stable", 2))] {
            let manifest = Manifest {
                format: FORMAT,
                product: "demo".into(),
                hardware: vec!["*".into()],
                channel: "stable".into(),
                version: "1".into(),
                serial,
                created_unix_s: 1,
                minimum_agent: "0.1.0".into(),
                images: Vec::new(),
                layout: None,
                files: vec![File { name: sbom::FILE.into(), object }],
            };
            write(&path, &serde_json::to_vec(&manifest).unwrap());
        }
        assert_eq!(packages_before(directory.path(), "stable").unwrap().0.serial, 2);
    }

    #[test]
    fn an_image_of_somebody_else_has_no_list_and_is_released_without() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("system.img");
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        let found = files(&image, None, (directory.path(), "stable"), &directory.path().join("out")).unwrap();
        assert!(found.is_empty(), "{found:?}");
        assert!(!directory.path().join("out").join(CHANGES_FILE).exists());
    }
}
