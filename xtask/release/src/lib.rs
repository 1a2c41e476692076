//! The release builder: a system image becomes a signed release tree of static files.
//!
//! The tree is described in `docs/release-format.md`. Objects are written first and the manifest last, each under a
//! temporary name: a server may serve the tree while it is being written.

mod channel;
pub mod check;
mod chunks;
mod deltas;
mod difference;
mod frames;
mod groups;
pub mod history;
pub mod keygen;
mod objects;
pub mod pair;
pub mod place;
mod reuse;
pub mod rollout;
pub mod room;
mod similar;
mod spec;
pub mod step;
pub mod succession;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::bootstrap_names;
use reflash::release::layout::{Layout, Role};
use reflash::release::manifest::{self, Manifest};
use reflash::release::rollout::rollout_path;

pub use minisign::SecretKey;

pub use crate::channel::{MAX_SERIAL, lock, publish, signature};
use crate::channel::{next_serial, now, published};
use crate::chunks::DeltaBase;
use crate::objects::Objects;
use crate::reuse::Reusable;
pub use crate::spec::{DEFAULT_LEVEL, Spec};
use crate::step::step;
pub use crate::succession::{Allow, OfferedTo};

/// The channel of a release that names none.
pub const DEFAULT_CHANNEL: &str = "stable";

/// Version of the oldest agent that can install what is released here. It is raised when a release would be wrong for
/// agents that do not know all of its members.
const MINIMUM_AGENT: &str = "0.1.0";

/// The most releases before that a release has deltas from.
const DELTA_BASES: usize = 2;

/// Size of a disk on which any layout has room: whether a smaller one has is seen when it is provisioned.
const LARGEST_DISK_BYTES: u64 = 1 << 50;

/// The result of a release.
#[derive(Debug)]
pub struct Released {
    /// The manifest that was published.
    pub manifest: Manifest,
    /// The path of the manifest in the tree.
    pub path: PathBuf,
    /// The bytes of all chunks of the system image.
    pub packed_bytes: u64,
    /// The bytes that a first flash downloads for the system image.
    pub first_flash_bytes: u64,
    /// The part of the bytes of chunks that the release before did not have.
    pub new_bytes: u64,
    /// Bytes of a system partition that holds the image and lets a robot go back to it from any update.
    pub partition_bytes: u64,
}

/// Writes the release into the tree `out` and signs it, for every robot of its channel.
///
/// # Errors
/// As [`build_for`].
pub fn build(spec: &Spec, key: &SecretKey, out: &Path) -> Result<Released> {
    build_for(OfferedTo::Everybody, spec, key, out)
}

/// Writes the release into the tree `out` and signs it.
///
/// # Errors
/// When the image or a file cannot be read, a value is out of range, the serial goes back or is above [`MAX_SERIAL`],
/// or the release would end its channel in a way that [`Spec::allow`] does not name.
pub fn build_for(to: OfferedTo, spec: &Spec, key: &SecretKey, out: &Path) -> Result<Released> {
    let _lock = lock(out)?;
    // Before the image is compressed, which takes minutes.
    let (before, mut manifest) = begin(to, spec, key.keynum(), out)?;
    let path = out.join(path_of(to, spec, manifest.serial));
    let objects = Objects::open(out)?;
    let image =
        step("cut, hash and compress the image", || chunks::pack(spec, &objects, &bases(before.as_ref(), spec, out)?))?;
    let files = spec.files.iter().map(|(name, path)| {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(manifest::File { name: name.clone(), object: objects.put(&content)? })
    });
    manifest.files = files.collect::<Result<_>>()?;
    if let Some(layout) = two_systems(spec) {
        let object = objects.put(&serde_json::to_vec(layout)?)?;
        manifest.files.push(manifest::File { name: bootstrap_names::TWO_SYSTEMS.to_owned(), object });
    }
    manifest.images = vec![image.described];
    succession::check(before.as_ref(), &manifest, &spec.allow)?;
    manifest.check_values().context("check the manifest before it is signed")?;
    // The release before may have been made by a builder that kept no history.
    history::keep_published(out, &spec.channel)?;
    step("sign the manifest", || publish(&manifest, key, &path))?;
    if to == OfferedTo::Everybody {
        history::keep_published(out, &spec.channel)?;
    }
    let image_bytes = manifest.images.iter().map(|image| image.size_bytes).sum::<u64>();
    Ok(Released {
        manifest,
        path,
        packed_bytes: image.packed_bytes,
        first_flash_bytes: image.first_flash_bytes,
        new_bytes: image.new_bytes,
        partition_bytes: image_bytes + image.undo_bytes,
    })
}

/// Refuses what [`build`] would refuse without a look at the image, so that a caller can ask before other long work.
/// `key_number` is that of the key that will sign ([`keygen::key_number`]).
///
/// # Errors
/// As [`build`].
pub fn refuse_early(to: OfferedTo, spec: &Spec, key_number: &[u8], out: &Path) -> Result<()> {
    begin(to, spec, key_number, out).map(drop)
}

/// What the channel has offered last, and the manifest of the next release as far as it is known before any work.
fn begin(to: OfferedTo, spec: &Spec, key_number: &[u8], out: &Path) -> Result<(Option<Manifest>, Manifest)> {
    spec::check_names(&spec.product, &spec.channel)?;
    let for_rollout = to == OfferedTo::NobodyYet;
    let offered = out.join(manifest::manifest_path(&spec.channel));
    let is_rolled_out = out.join(rollout_path(&spec.channel)).exists();
    ensure!(
        for_rollout || !is_rolled_out,
        "channel {} has a roll-out: a release for every robot at once would pass it by, and robots that know roll-outs \
         would not see it; make it with --for-rollout, then `rollout start`",
        spec.channel
    );
    ensure!(
        !for_rollout || offered.exists(),
        "the first release of channel {} has no release before it that robots outside of a roll-out could have; make it \
         without --for-rollout",
        spec.channel
    );
    let before = match to {
        OfferedTo::NobodyYet => history::releases(out, &spec.channel)?.into_iter().next().map(|past| past.manifest),
        OfferedTo::Everybody => published(&offered)?,
    };
    if let Some(layout) = two_systems(spec) {
        layout.place(LARGEST_DISK_BYTES).context("check the layout with two systems")?;
    }
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
        layout: spec.layout.as_ref().map(Layout::with_one_system),
        files: Vec::new(),
    };
    succession::check(before.as_ref(), &manifest, &spec.allow).context("check what the channel has offered so far")?;
    succession::check_key(to, &offered.with_added_extension("minisig"), key_number, &spec.allow)?;
    Ok((before, manifest))
}

/// The release before and the one before that, if their objects are there: robots that were off for one release are
/// common, and each base of deltas takes as long as the first.
fn bases(before: Option<&Manifest>, spec: &Spec, out: &Path) -> Result<Vec<DeltaBase>> {
    let mut bases: Vec<DeltaBase> = Vec::new();
    let past = history::releases(out, &spec.channel)?.into_iter().map(|past| past.manifest);
    for manifest in before.cloned().into_iter().chain(past) {
        let Ok(image) = manifest.image(manifest::SYSTEM_IMAGE) else { continue };
        let is_new = bases.iter().all(|base| base.sha256 != image.sha256);
        if is_new && let Some(release) = Reusable::of(&manifest, out) {
            bases.push(DeltaBase { release, sha256: image.sha256.clone() });
        }
        // Nothing is taken from an older release in the place of the one before, which robots have.
        if bases.is_empty() || bases.len() == DELTA_BASES {
            break;
        }
    }
    Ok(bases)
}

/// Path of the manifest below the root of the tree: what is to be rolled out is not offered to every robot.
fn path_of(to: OfferedTo, spec: &Spec, serial: u64) -> String {
    match to {
        OfferedTo::NobodyYet => history::path(&spec.channel, serial),
        OfferedTo::Everybody => manifest::manifest_path(&spec.channel),
    }
}

/// The layout of the product's disk, if it has two systems. It is a file of the release, since agents of before would
/// refuse a manifest that has it.
fn two_systems(spec: &Spec) -> Option<&Layout> {
    let has_two = |layout: &&Layout| layout.partitions.iter().any(|partition| partition.role == Role::System2);
    spec.layout.as_ref().filter(has_two)
}

fn created(spec: &Spec) -> Result<u64> {
    spec.created_unix_s.map_or_else(now, Ok)
}
