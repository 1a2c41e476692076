//! The parts of a boot medium and of a network boot, checked before a machine reads them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::machine::config::Layer;
use reflash::machine::config::usable::newer_keys;
use reflash::machine::hostname;
use reflash::release::manifest::{Manifest, TrustedKeys, manifest_path};

use crate::initramfs::BuiltRecovery;
use crate::offered;

/// Everything a medium is made of.
pub struct MediaParts<'a> {
    /// Recovery kernel and initramfs.
    pub recovery: &'a BuiltRecovery,
    /// `reflash.toml`, for the agent on the medium and for the recovery partition it makes.
    pub config: Option<String>,
    /// Public keys, for both.
    pub keys: &'a [PathBuf],
    /// Names of machines, as [`hostname::asset`] reads them.
    pub assets: Option<String>,
    /// A release tree and the channel to take from it, for provisioning without a network.
    pub release: Option<(&'a Path, &'a str)>,
    /// Disks that are not blank may be erased without a person: any, or the one with this serial number.
    pub arm: Option<&'a str>,
    /// Seconds until the menu starts its first entry by itself; `None` waits for ever.
    pub timeout_s: Option<u32>,
}

/// Checks the texts that machines will read, so that a mistake is found here and not on a machine.
pub fn check_texts(parts: &MediaParts<'_>) -> Result<()> {
    if let Some(config) = &parts.config {
        Layer::parse("the configuration", config)?;
        warn_of_newer_keys(config);
    }
    if let Some(assets) = &parts.assets {
        hostname::asset(assets, |_| None)?;
    }
    if let Some(arm) = parts.arm {
        let plain = arm.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        ensure!(plain && !arm.is_empty(), "--arm {arm:?}: a serial number has letters, digits, '-', '_' and '.'");
    }
    Ok(())
}

/// Warns of keys for which a recovery that was published before them refuses the whole file.
fn warn_of_newer_keys(config: &str) {
    for (key, version) in newer_keys(config) {
        eprintln!(
            "warning: a recovery of {version} refuses a reflash.toml with {key}; the release must bring a newer one"
        );
    }
}

/// Reads the manifest of the release for a medium, which is checked as a machine does it. Its objects are looked at
/// when they are copied.
pub fn offered(tree: &Path, channel: &str, keys: &TrustedKeys) -> Result<Manifest> {
    offered::require(tree, channel).context("a medium carries a release, or is made with --no-release")?;
    let read = || -> Result<Manifest> {
        let path = tree.join(manifest_path(channel));
        let signature = fs::read_to_string(path.with_added_extension("minisig"))
            .with_context(|| format!("read {}.minisig", path.display()))?;
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Manifest::parse(&keys.authenticate(content, &signature)?)?)
    };
    read().with_context(|| {
        format!(
            "look at the release of channel {channel} in {} for the medium (a medium with --no-release needs none)",
            tree.display()
        )
    })
}

/// Copies a file, with both names in the error.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display())).map(drop)
}

/// Writes a file, with its name in the error.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
