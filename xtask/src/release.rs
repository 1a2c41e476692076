//! `cargo xtask release`: a system image becomes a signed release tree of static files.
//!
//! The tree is described in `docs/release-format.md`. Objects are written first and the manifest last, each under a
//! temporary name: a server may serve the tree while it is being written.

pub mod check;
mod objects;

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use minisign::SecretKey;
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};
use reflash::digest::{BLOCK_SIZE_BYTES, BlockHash, Digest, block_hash, hex, is_zero};
use reflash::index::{Builder, FrameContent, Index, StoredNo};
use reflash::layout::Layout;
use reflash::manifest::{self, Manifest};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

use crate::release::objects::{Objects, PackWriter, write_whole};
use crate::step::step;

/// What a release is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Product it is for.
    pub product: String,
    /// Hardware names, exact or prefix with `*`.
    pub hardware: Vec<String>,
    /// Channel to publish in.
    pub channel: String,
    /// Version for people.
    pub version: String,
    /// Serial; `None` takes the next after the channel's present one.
    pub serial: Option<u64>,
    /// Image of the system partition.
    pub image: PathBuf,
    /// OSTree commit and branch in the image.
    pub ostree: Option<(String, String)>,
    /// Further files: name in the release, path here.
    pub files: Vec<(String, PathBuf)>,
    /// Layout of the product's disk.
    pub layout: Option<Layout>,
    /// Frame size, bytes: a power of two from 16 KiB to 4 MiB.
    pub frame_bytes: u32,
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Seconds since 1970; `None` takes `SOURCE_DATE_EPOCH`, or else the clock.
    pub created_unix_s: Option<u64>,
}

/// Default frame size, bytes.
pub const DEFAULT_FRAME_BYTES: u32 = 64 * 1024;
/// Default zstd level: a release is compressed once and downloaded by a fleet.
pub const DEFAULT_LEVEL: i32 = 12;

/// Frames compressed in parallel before they are appended in order.
const BATCH_FRAMES: usize = 256;

/// What was released.
#[derive(Debug)]
pub struct Released {
    /// The manifest.
    pub manifest: Manifest,
    /// Path of the manifest.
    pub path: PathBuf,
    /// Bytes a first flash downloads for the system image.
    pub packed_bytes: u64,
}

/// Writes the release into the tree `out` and signs it.
///
/// # Errors
/// When the image or a file cannot be read, a value is out of range, or the serial does not grow.
pub fn build(spec: &Spec, key: &SecretKey, out: &Path) -> Result<Released> {
    let objects = Objects::open(out)?;
    let path = out.join(manifest::manifest_path(&spec.channel));
    let serial = next_serial(&path, spec.serial)?;
    let image = step("cut, hash and compress the image", || pack_image(spec, &objects))?;
    let files = spec.files.iter().map(|(name, path)| {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(manifest::File { name: name.clone(), object: objects.put(&content)? })
    });
    let manifest = Manifest {
        format: manifest::FORMAT,
        product: spec.product.clone(),
        hardware: spec.hardware.clone(),
        channel: spec.channel.clone(),
        version: spec.version.clone(),
        serial,
        created_unix_s: created(spec)?,
        minimum_agent: "0.1.0".to_owned(),
        images: vec![image.described],
        layout: spec.layout.clone(),
        files: files.collect::<Result<_>>()?,
    };
    step("sign the manifest", || publish(&manifest, key, &path))?;
    Ok(Released { manifest, path, packed_bytes: image.packed_bytes })
}

fn publish(manifest: &Manifest, key: &SecretKey, path: &Path) -> Result<()> {
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

/// The serial after the one published, or the wished one if it does not go back.
fn next_serial(published: &Path, wished: Option<u64>) -> Result<u64> {
    let before: Option<Manifest> = match std::fs::read(published) {
        Ok(json) => Some(serde_json::from_slice(&json).with_context(|| format!("read {}", published.display()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", published.display())),
    };
    let before = before.map_or(0, |manifest| manifest.serial);
    match wished {
        Some(wished) if wished < before => {
            bail!("serial {wished} is below the published {before}: robots would refuse the release")
        }
        Some(wished) => Ok(wished),
        None => Ok(before + 1),
    }
}

fn created(spec: &Spec) -> Result<u64> {
    if let Some(created) = spec.created_unix_s {
        return Ok(created);
    }
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH={epoch:?} is not a number of seconds"));
    }
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

struct PackedImage {
    described: manifest::Image,
    packed_bytes: u64,
}

/// A frame on its way into a pack.
struct Frame {
    digest: Digest,
    blocks: Vec<BlockHash>,
    compressed: Vec<u8>,
}

fn pack_image(spec: &Spec, objects: &Objects) -> Result<PackedImage> {
    let path = &spec.image;
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size_bytes = file.metadata()?.len();
    ensure!(
        size_bytes.is_multiple_of(BLOCK_SIZE_BYTES as u64),
        "{} has {size_bytes} bytes, not a multiple of {BLOCK_SIZE_BYTES}",
        path.display()
    );
    let mut reader = std::io::BufReader::with_capacity(1 << 20, file);
    let mut builder = Builder::new(size_bytes, spec.frame_bytes)?;
    let mut sha256 = Sha256::new();
    let mut known: HashMap<Digest, StoredNo> = HashMap::new();
    let mut packs = PackWriter::new(objects);
    let mut left = size_bytes;
    while left > 0 {
        let mut batch = Vec::with_capacity(BATCH_FRAMES);
        while left > 0 && batch.len() < BATCH_FRAMES {
            let mut content = vec![0; left.min(u64::from(spec.frame_bytes)) as usize];
            reader.read_exact(&mut content).with_context(|| format!("read {}", path.display()))?;
            sha256.update(&content);
            left -= content.len() as u64;
            batch.push(content);
        }
        let frames: Vec<Option<Frame>> =
            batch.par_iter().map(|content| compress(content, spec.level)).collect::<Result<_>>()?;
        for frame in frames {
            let Some(frame) = frame else {
                builder.push_frame(FrameContent::Zero);
                continue;
            };
            let stored = match known.get(&frame.digest) {
                Some(stored) => *stored,
                None => {
                    let stored = builder.store(frame.digest, &frame.blocks, u32::try_from(frame.compressed.len())?);
                    packs.append(stored, &frame.compressed, &mut builder)?;
                    known.insert(frame.digest, stored);
                    stored
                }
            };
            builder.push_frame(FrameContent::Stored(stored));
        }
    }
    let packed_bytes = packs.finish(&mut builder)?;
    let index: Index = builder.finish()?;
    let described = manifest::Image {
        name: manifest::SYSTEM_IMAGE.to_owned(),
        size_bytes,
        sha256: hex(&sha256.finalize()),
        index: objects.put(&index.encode())?,
        ostree_commit: spec.ostree.as_ref().map(|(commit, _)| commit.clone()),
        ostree_ref: spec.ostree.as_ref().map(|(_, branch)| branch.clone()),
    };
    Ok(PackedImage { described, packed_bytes })
}

fn compress(content: &[u8], level: i32) -> Result<Option<Frame>> {
    if is_zero(content) {
        return Ok(None);
    }
    Ok(Some(Frame {
        digest: Digest::of(content),
        blocks: content.chunks(BLOCK_SIZE_BYTES).map(block_hash).collect(),
        compressed: zstd::bulk::compress(content, level).context("compress a frame")?,
    }))
}
