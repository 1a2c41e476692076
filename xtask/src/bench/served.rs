//! Files that nginx serves: releases in one tree, and the files of the peers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::images::BenchImages;
use crate::step::step;
use crate::{keygen, release};

/// Product and hardware of the releases that are measured.
pub const PRODUCT: &str = "bench";

/// Directories that nginx serves: releases and the peers' files.
pub struct Served {
    /// Directory that nginx serves.
    pub root: PathBuf,
    /// One tree of releases.
    pub releases: PathBuf,
    /// Everything that peers fetch.
    pub peers: PathBuf,
}

impl Served {
    /// Opens the directories. Files take long to make, so those of the same images are kept, and no others; releases
    /// are kept only as long as this program, which makes them, is the same.
    pub fn open(root: PathBuf, images: &BenchImages) -> Result<Self> {
        let key = step("hash the images", || images.key())?;
        let builder = std::env::current_exe().and_then(File::open).context("open this program")?;
        let builder = blake3::Hasher::new().update_reader(builder)?.finalize();
        let (releases, peers) = (root.join("reflash"), root.join("peers"));
        keep_only(&peers, &key)?;
        keep_only(&releases, &format!("{key} {builder}"))?;
        Ok(Self { root, releases, peers })
    }

    /// Publishes a channel for each image, in one tree: the later ones use the packs of `old` again, as releases do.
    pub fn publish<'a>(
        &self,
        images: impl Iterator<Item = (&'static str, &'a Path)>,
        old: &'a Path,
        secret: &Path,
    ) -> Result<()> {
        let key = keygen::load_secret(secret)?;
        // Each release is made once, `old` before the others.
        for (channel, image) in std::iter::once(("old", old)).chain(images) {
            let done = self.releases.join(format!("{channel}.released"));
            if done.exists() {
                continue;
            }
            let spec = release::Spec {
                product: PRODUCT.to_owned(),
                hardware: vec![PRODUCT.to_owned()],
                channel: channel.to_owned(),
                version: channel.to_owned(),
                serial: None,
                image: image.to_owned(),
                ostree: None,
                files: Vec::new(),
                layout: None,
                chunk_bytes: None,
                level: release::DEFAULT_LEVEL,
                created_unix_s: None,
                allow: Vec::new(),
            };
            if channel != "old" {
                // A real channel holds the release before, from which a new release knows what to reuse.
                fs::create_dir_all(self.releases.join(channel))?;
                for name in ["manifest.json.minisig", "manifest.json"] {
                    fs::copy(self.releases.join("old").join(name), self.releases.join(channel).join(name))
                        .context("put the release before into the channel")?;
                }
            }
            release::build(&spec, &key, &self.releases)?;
            fs::write(&done, "").with_context(|| format!("write {}", done.display()))?;
        }
        Ok(())
    }
}

/// Empties a directory whose content was made from anything else.
fn keep_only(directory: &Path, key: &str) -> Result<()> {
    let stamp = directory.join("made-from");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == key) {
        return Ok(());
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("delete {}", directory.display()));
        }
        _ => {}
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    fs::write(&stamp, key).with_context(|| format!("write {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::keep_only;

    #[test]
    fn files_made_from_other_images_are_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let served = dir.path().join("served");
        keep_only(&served, "one").unwrap();
        std::fs::write(served.join("old.zst"), "one").unwrap();
        keep_only(&served, "one").unwrap();
        assert!(served.join("old.zst").exists());
        keep_only(&served, "other").unwrap();
        assert!(!served.join("old.zst").exists());
    }
}
