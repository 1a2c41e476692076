//! What a channel has offered so far: each manifest is kept, with its signature, below `<channel>/history/`.
//!
//! Robots never ask for it. It lets a person list releases, offer an old one again under a new serial, and delete the
//! objects that no kept release needs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use minisign::SecretKey;
use reflash::release::manifest::{Manifest, manifest_path};
use reflash::release::rollout::rollout_path;

use crate::channel::{lock, next_serial, now, publish, published};
use crate::objects::write_whole;
use crate::step::step;
use crate::succession::{Allow, OfferedTo};
use crate::{check, succession};

/// One release of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastRelease {
    /// Manifest, whose signature was not checked.
    pub manifest: Manifest,
    /// Whether the channel offers it now.
    pub offered: bool,
}

/// Returns the directory of a channel's manifests, below the root of a tree.
#[must_use]
pub fn directory(channel: &str) -> String {
    format!("{channel}/history")
}

/// Returns the path of a kept manifest below the root of a tree. Its signature has `.minisig` after it.
#[must_use]
pub fn path(channel: &str, serial: u64) -> String {
    format!("{}/{serial}.json", directory(channel))
}

/// Keeps the manifest that the channel offers now. One whose signature is lost was taken by no machine, and does not
/// keep the next release from being made.
pub(crate) fn keep_published(root: &Path, channel: &str) -> Result<()> {
    let from = root.join(manifest_path(channel));
    let Some(manifest) = published(&from)? else { return Ok(()) };
    let to = root.join(path(channel, manifest.serial));
    let signature = from.with_added_extension("minisig");
    if !signature.exists() {
        eprintln!("  release {} is not kept in the history: {} is missing", manifest.serial, signature.display());
        return Ok(());
    }
    std::fs::create_dir_all(root.join(directory(channel))).with_context(|| format!("create {}", to.display()))?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let (content, kept) = (read(&from)?, to.with_added_extension("minisig"));
    // A release that was cut while it was published has left its signature beside the manifest before it: what is kept
    // of that one already fits.
    if kept.exists() && std::fs::read(&to).is_ok_and(|known| known == content) {
        return Ok(());
    }
    write_whole(&kept, &read(&signature)?)?;
    write_whole(&to, &content)
}

/// Returns the releases of a channel that are known, the newest first.
///
/// # Errors
/// When the manifest that is offered cannot be read. One of the history that is damaged is named and left out.
pub fn releases(root: &Path, channel: &str) -> Result<Vec<PastRelease>> {
    let offered = published(&root.join(manifest_path(channel)))?;
    let mut found: Vec<PastRelease> = Vec::new();
    let directory = root.join(directory(channel));
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => {
            entries.collect::<Result<Vec<_>, _>>().with_context(|| format!("list {}", directory.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "json") {
            match published(&path) {
                Ok(Some(manifest)) => found.push(PastRelease { offered: false, manifest }),
                Ok(None) => {}
                // It is of no use, and the others are.
                Err(error) => eprintln!("  a release of the history is left out: {error:#}"),
            }
        }
    }
    if let Some(offered) = offered {
        found.retain(|past| past.manifest.serial != offered.serial);
        found.push(PastRelease { manifest: offered, offered: true });
    }
    found.sort_unstable_by_key(|past| std::cmp::Reverse(past.manifest.serial));
    Ok(found)
}

/// Offers the content of an old release again, under the next serial: a robot never goes back to a lower serial, but it
/// installs whatever a higher one has.
///
/// Patches are left out, since they are against a release that robots no longer have. In a channel with a roll-out it
/// is offered to no robot yet: the roll-out has to name it.
///
/// # Errors
/// When the release is not known, objects of it were deleted or are damaged, or it would end its channel in a way that
/// `allow` does not name.
pub fn again(root: &Path, channel: &str, serial: u64, key: &SecretKey, allow: &[Allow]) -> Result<Manifest> {
    let _lock = lock(root)?;
    let known = releases(root, channel)?;
    let old = known.iter().find(|past| past.manifest.serial == serial).with_context(|| {
        let serials: Vec<String> = known.iter().map(|past| past.manifest.serial.to_string()).collect();
        format!("channel {channel} in {} has no release {serial}; it has {}", root.display(), serials.join(", "))
    })?;
    let offered = root.join(manifest_path(channel));
    let is_rolled_out = root.join(rollout_path(channel)).exists();
    ensure!(
        is_rolled_out || !old.offered,
        "release {serial} ({}) is the one that is offered now",
        old.manifest.version
    );
    let before = match is_rolled_out {
        true => known.first().map(|past| past.manifest.clone()),
        false => published(&offered)?,
    };
    let mut manifest = old.manifest.clone();
    (manifest.serial, manifest.created_unix_s) = (next_serial(before.as_ref(), None)?, now()?);
    manifest.images.iter_mut().for_each(|image| image.deltas.clear());
    succession::check(before.as_ref(), &manifest, allow)?;
    let to = if is_rolled_out { OfferedTo::NobodyYet } else { OfferedTo::Everybody };
    succession::check_key(to, &offered.with_added_extension("minisig"), key.keynum(), allow)?;
    step("check every object of the old release", || check::check_objects(root, &manifest))
        .with_context(|| format!("release {serial} cannot be offered again"))?;
    manifest.check_values().context("check the manifest before it is signed")?;
    let path = if is_rolled_out { root.join(path(channel, manifest.serial)) } else { offered };
    step("sign the manifest", || publish(&manifest, key, &path))?;
    keep_published(root, channel)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::{keep_published, path};
    use reflash::release::manifest::{FORMAT, Manifest, manifest_path};

    #[test]
    fn a_release_is_kept_with_its_signature_and_one_that_lost_it_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        keep_published(root, "stable").unwrap();
        let manifest = Manifest {
            format: FORMAT,
            product: "demo".into(),
            hardware: vec!["*".into()],
            channel: "stable".into(),
            version: "1".into(),
            serial: 7,
            created_unix_s: 1,
            minimum_agent: "0.1.0".into(),
            images: Vec::new(),
            layout: None,
            files: Vec::new(),
        };
        let offered = root.join(manifest_path("stable"));
        std::fs::create_dir_all(offered.parent().unwrap()).unwrap();
        std::fs::write(&offered, serde_json::to_vec(&manifest).unwrap()).unwrap();
        keep_published(root, "stable").unwrap();
        let kept = root.join(path("stable", 7));
        assert!(!kept.exists(), "without a signature it could not be offered again");
        std::fs::write(offered.with_added_extension("minisig"), "signature").unwrap();
        keep_published(root, "stable").unwrap();
        let signature = kept.with_added_extension("minisig");
        assert!(kept.exists() && std::fs::read_to_string(&signature).unwrap() == "signature");
        // The next release was cut between its signature and its manifest.
        std::fs::write(offered.with_added_extension("minisig"), "of the next one").unwrap();
        keep_published(root, "stable").unwrap();
        assert_eq!(std::fs::read_to_string(&signature).unwrap(), "signature");
        // One that is damaged keeps nothing from being listed.
        std::fs::write(root.join(path("stable", 3)), "{\"format\":").unwrap();
        let known: Vec<u64> =
            super::releases(root, "stable").unwrap().iter().map(|past| past.manifest.serial).collect();
        assert_eq!(known, [7]);
    }
}
