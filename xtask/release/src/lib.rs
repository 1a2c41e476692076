//! The release builder: a system image becomes a signed release tree of static files.
//!
//! The tree is described in `docs/release-format.md`. Objects are written first and the manifest last, each under a
//! temporary name: a server may serve the tree while it is being written.

pub mod check;
mod chunks;
pub mod history;
pub mod keygen;
mod objects;
mod patches;
mod reuse;
pub mod room;
mod spec;
pub mod step;
pub mod succession;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use minisign::SecretKey;
use reflash::release::manifest::{self, Manifest};

/// The highest serial that is signed: 2^53 - 1, the largest whole number that every reader of JSON keeps exactly
/// (RFC 7493, section 2.2). A robot never goes below a serial it installed, so that a slip of the hand up to the end
/// of `u64` would leave no number for the release after it.
pub const MAX_SERIAL: u64 = (1 << 53) - 1;

use crate::objects::{Objects, write_whole};
use crate::reuse::Reusable;
pub use crate::spec::{DEFAULT_LEVEL, Spec};
use crate::step::step;
pub use crate::succession::Allow;

/// The channel of a release that names none.
pub const DEFAULT_CHANNEL: &str = "stable";

/// Version of the oldest agent that can install what is released here. It is raised when a release would be wrong for
/// agents that do not know all of its members.
const MINIMUM_AGENT: &str = "0.1.0";

/// The result of a release.
#[derive(Debug)]
pub struct Released {
    /// The manifest that was published.
    pub manifest: Manifest,
    /// The path of the manifest in the tree.
    pub path: PathBuf,
    /// The bytes that a first flash downloads for the system image.
    pub packed_bytes: u64,
    /// The part of these bytes that the release before did not have.
    pub new_bytes: u64,
    /// Bytes of a system partition that holds the image and lets a robot go back to it from any update.
    pub partition_bytes: u64,
}

/// Writes the release into the tree `out` and signs it.
///
/// # Errors
/// When the image or a file cannot be read, a value is out of range, the serial goes back or is above [`MAX_SERIAL`],
/// or the release would end its channel in a way that [`Spec::allow`] does not name.
pub fn build(spec: &Spec, key: &SecretKey, out: &Path) -> Result<Released> {
    // Before the image is compressed, which takes minutes.
    let (before, mut manifest) = begin(spec, key.keynum(), out)?;
    let path = out.join(manifest::manifest_path(&spec.channel));
    let objects = Objects::open(out)?;
    let image = step("cut, hash and compress the image", || {
        let reusable = before.as_ref().and_then(|before| Reusable::of(before, out));
        chunks::pack(spec, &objects, reusable.as_ref())
    })?;
    let files = spec.files.iter().map(|(name, path)| {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(manifest::File { name: name.clone(), object: objects.put(&content)? })
    });
    manifest.files = files.collect::<Result<_>>()?;
    manifest.images = vec![image.described];
    succession::check(before.as_ref(), &manifest, &spec.allow)?;
    manifest.check_values().context("check the manifest before it is signed")?;
    // The release before may have been made by a builder that kept no history.
    history::keep_published(out, &spec.channel)?;
    step("sign the manifest", || publish(&manifest, key, &path))?;
    history::keep_published(out, &spec.channel)?;
    let image_bytes = manifest.images.iter().map(|image| image.size_bytes).sum::<u64>();
    Ok(Released {
        manifest,
        path,
        packed_bytes: image.packed_bytes,
        new_bytes: image.new_bytes,
        partition_bytes: image_bytes + image.undo_bytes,
    })
}

/// Refuses what [`build`] would refuse without a look at the image, so that a caller can ask before other long work.
/// `key_number` is that of the key that will sign ([`keygen::key_number`]).
///
/// # Errors
/// As [`build`].
pub fn refuse_early(spec: &Spec, key_number: &[u8], out: &Path) -> Result<()> {
    begin(spec, key_number, out).map(drop)
}

/// What the channel has offered last, and the manifest of the next release as far as it is known before any work.
fn begin(spec: &Spec, key_number: &[u8], out: &Path) -> Result<(Option<Manifest>, Manifest)> {
    let path = out.join(manifest::manifest_path(&spec.channel));
    let before = published(&path)?;
    let manifest = Manifest {
        format: manifest::FORMAT,
        product: spec.product.clone(),
        hardware: spec.hardware.clone(),
        channel: spec.channel.clone(),
        version: spec.version.clone(),
        serial: next_serial(before.as_ref(), spec.serial)?,
        created_unix_s: created(spec)?,
        minimum_agent: MINIMUM_AGENT.to_owned(),
        images: Vec::new(),
        layout: spec.layout.clone(),
        files: Vec::new(),
    };
    succession::check(before.as_ref(), &manifest, &spec.allow).context("check what the channel has offered so far")?;
    succession::check_key(&path.with_added_extension("minisig"), key_number, &spec.allow)?;
    Ok((before, manifest))
}

/// Signs a manifest and publishes it at `path`.
///
/// # Errors
/// When the key cannot sign, or a file cannot be written.
pub fn publish(manifest: &Manifest, key: &SecretKey, path: &Path) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    let comment =
        format!("reflash {} {} {} serial {}", manifest.product, manifest.channel, manifest.version, manifest.serial);
    let signature = minisign::sign(None, key, Cursor::new(&json), Some(&comment), Some("reflash release manifest"))
        .context("sign the manifest")?;
    std::fs::create_dir_all(path.parent().context("a manifest lies in a channel")?)?;
    // An agent that reads between the two sees a signature that does not fit, and tries again.
    write_whole(&path.with_added_extension("minisig"), signature.to_string().as_bytes())?;
    write_whole(path, &json)
}

/// The manifest that the channel offers so far.
fn published(path: &Path) -> Result<Option<Manifest>> {
    match std::fs::read(path) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json).with_context(|| format!("read {}", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// The serial after the one published, or the wished one if it does not go back and leaves room for others.
fn next_serial(before: Option<&Manifest>, wished: Option<u64>) -> Result<u64> {
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

fn created(spec: &Spec) -> Result<u64> {
    spec.created_unix_s.map_or_else(now, Ok)
}

/// The time that a release is dated with: `SOURCE_DATE_EPOCH`, or else the clock.
fn now() -> Result<u64> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH={epoch:?} is not a number of seconds"));
    }
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}
