//! The manifest that a channel offers: how it is read, numbered, dated, signed and published.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::Cursor;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use minisign::SecretKey;
use reflash::release::manifest::Manifest;

use crate::pair::replace_signed;
use crate::place::TreePlace;

/// The highest serial that is signed: 2^53 - 1, the largest whole number that every reader of JSON keeps exactly
/// (RFC 7493, section 2.2). A robot never goes below a serial it installed, so that a slip of the hand up to the end
/// of `u64` would leave no number for the release after it.
pub const MAX_SERIAL: u64 = (1 << 53) - 1;

/// Signs a manifest and publishes it at `path`.
///
/// # Errors
/// When the key cannot sign, or a file cannot be written.
pub fn publish(manifest: &Manifest, key: &SecretKey, path: &Path) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    let comment =
        format!("reflash {} {} {} serial {}", manifest.product, manifest.channel, manifest.version, manifest.serial);
    let signature = signature(&json, key, &comment).context("sign the manifest")?;
    let channel = path.parent().context("a manifest lies in a channel")?;
    let name = path.file_name().and_then(OsStr::to_str).context("a manifest has a name")?;
    std::fs::create_dir_all(channel)?;
    let replaced = replace_signed(&TreePlace(channel.to_owned()), name, &signature, &json)?;
    ensure!(replaced, "{} has changed meanwhile: is somebody else making a release there?", path.display());
    Ok(())
}

/// Keeps other releases out of a tree until the file is dropped: two at once would take the same serial, and one could
/// publish its signature beside the manifest of the other; and what a release takes over must not be deleted meanwhile.
///
/// # Errors
/// When the tree cannot be written.
pub fn lock(root: &Path) -> Result<File> {
    let directory = root.join("objects");
    std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let file = File::open(&directory).with_context(|| format!("open {}", directory.display()))?;
    // A file system that knows no locks keeps nothing out, and is no reason to make no release.
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        eprintln!("  waiting for another release in {}", root.display());
        file.lock().with_context(|| format!("lock {}", directory.display()))?;
    }
    Ok(file)
}

/// Returns the text of a signature file for these bytes.
///
/// # Errors
/// When the key cannot sign.
pub fn signature(content: &[u8], key: &SecretKey, comment: &str) -> Result<String> {
    let signed = minisign::sign(None, key, Cursor::new(content), Some(comment), Some("reflash release manifest"))?;
    Ok(signed.to_string())
}

/// The manifest that the channel offers so far.
pub(crate) fn published(path: &Path) -> Result<Option<Manifest>> {
    match std::fs::read(path) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json).with_context(|| {
            format!("{} is damaged; the manifests of all releases are kept in history/ beside it", path.display())
        })?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// The serial after the one published, or the wished one if it does not go back and leaves room for others.
pub(crate) fn next_serial(before: Option<&Manifest>, wished: Option<u64>) -> Result<u64> {
    let before = before.map_or(0, |manifest| manifest.serial);
    match wished {
        Some(wished) if wished < before => {
            bail!("serial {wished} is below the published {before}: robots would refuse the release")
        }
        // A channel that is above the limit already must still be able to go on.
        Some(wished) if wished > MAX_SERIAL.max(before.saturating_add(1)) => {
            bail!("serial {wished} is above {MAX_SERIAL}: hardly a release could follow it; choose a lower one")
        }
        Some(wished) => Ok(wished),
        None => before.checked_add(1).with_context(|| {
            format!("the published serial {before} is the last there is: no release can follow it on this channel")
        }),
    }
}

/// The time that a release is dated with: `SOURCE_DATE_EPOCH`, or else the clock.
pub(crate) fn now() -> Result<u64> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH={epoch:?} is not a number of seconds"));
    }
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}
