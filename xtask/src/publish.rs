//! Publishing: one channel of a release tree goes into an S3-compatible store.
//!
//! The order lets robots ask at any time: first the objects, which no manifest names yet, then signature and manifest.
//! What is there already is not sent again, so that a publication that was cut is simply repeated.

mod place;
mod store;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use reflash::release::digest::Digest;
use reflash::release::manifest::{Manifest, TrustedKeys, manifest_path, object_path};

use crate::offered;
use crate::paths::Paths;
use crate::project::needed;
use crate::release::pair::replace_signed;
use crate::release::place::ChannelPlace;
use crate::release::{Allow, DEFAULT_CHANNEL, check, history, succession};
use crate::step::step;
use crate::trusted;
pub(crate) use place::StorePlace;
pub use store::{Store, StoreLocation};

/// Uploads under way at a time: a pack is up to 64 MiB and held in memory.
const UPLOADS: usize = 4;
/// Objects are named by their digest and never change.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The key is taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    /// Place in the store: s3://BUCKET/PREFIX.
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    pub to: Option<String>,
    /// Root of the tree. Default: release, where everything built goes.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Channel to publish. Default: stable.
    #[arg(long)]
    pub channel: Option<String>,
    /// Public key that the robots trust, to check the release with; repeat for several. Default: keys/reflash.pub.
    #[arg(long, value_name = "FILE.pub")]
    pub public: Vec<PathBuf>,
    /// Allow what is mostly a mistake that robots cannot undo: future-date, serial-jump, fewer-hardware,
    /// no-layout; repeat for several.
    #[arg(long, value_name = "WHAT")]
    allow: Vec<Allow>,
    /// URL of the store; default: that of AWS in the region.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region of the store; most others than AWS take any. Default: us-east-1.
    #[arg(long)]
    pub region: Option<String>,
}

/// Publishes as the command line says.
///
/// # Errors
/// As [`publish`], and when the location or the key is missing or malformed.
pub fn run(args: PublishArgs, paths: &Paths) -> Result<()> {
    let PublishArgs { to, dir, channel, public, allow, endpoint, region } = args;
    let dir = dir.unwrap_or_else(|| paths.dist().join("release"));
    let channel = channel.unwrap_or_else(|| DEFAULT_CHANNEL.to_owned());
    let public = if public.is_empty() { vec![PathBuf::from("keys/reflash.pub")] } else { public };
    let keys = trusted::of(&public).context("give the key that robots trust with --public")?;
    let store = Store::with_credentials_of_environment(location(to, endpoint, region)?)?;
    eprintln!("{}", publish(&dir, &channel, &keys, &allow, &store)?);
    eprintln!("  for robots, if everybody may read it: urls = [\"{}\"]", store.describe());
    Ok(())
}

/// The place in a store that options and project file give.
///
/// # Errors
/// When there is none, or it is not a place in a store.
pub fn location(to: Option<String>, endpoint: Option<String>, region: Option<String>) -> Result<StoreLocation> {
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    StoreLocation::parse(&needed(to, "--to", "publish.to")?, endpoint, region)
}

/// Result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Serial of the release.
    pub serial: u64,
    /// Objects that were sent.
    pub sent_objects: usize,
    /// Bytes of these objects.
    pub sent_bytes: u64,
    /// Objects that the store had already.
    pub kept_objects: usize,
    /// Whether manifest and signature were sent; false when the store had them already.
    pub manifest_sent: bool,
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { serial, sent_objects, sent_bytes, kept_objects, manifest_sent } = self;
        write!(f, "  serial {serial}: {sent_objects} objects sent ({sent_bytes} bytes), {kept_objects} were there")?;
        f.write_str(if *manifest_sent { "; robots are offered it now" } else { "; it was offered already" })
    }
}

/// Publishes `channel` of the tree `root`, once all of it was checked as robots that trust `keys` would: a wrong
/// signature or object would stop the updates of a whole fleet.
///
/// # Errors
/// When the release is not right, when it would end the channel of the store in a way that `allow` does not name, or
/// when the store refuses. Then the store offers what it offered before.
pub fn publish(root: &Path, channel: &str, keys: &TrustedKeys, allow: &[Allow], store: &Store) -> Result<Published> {
    offered::require(root, channel)?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let manifest_path = manifest_path(channel);
    let signature_path = format!("{manifest_path}.minisig");
    let json = read(&root.join(&manifest_path))?;
    let signature = read(&root.join(&signature_path))?;
    let manifest = step("check the signature and every object", || check::check(root, channel, keys))
        .context("the release is not right, so nothing was sent")?;
    succession::check(None, &manifest, allow).context("nothing was sent")?;
    let offered = store.get(&manifest_path)?;
    let before = offered.as_deref().map(|offered| refuse_older(&manifest, &json, offered)).transpose();
    before
        .and_then(|before| succession::check(before.as_ref(), &manifest, allow))
        .with_context(|| format!("publish to {}", store.describe()))?;
    let mut objects = check::objects(root, &manifest)?;
    objects.sort_unstable_by_key(ToString::to_string);
    objects.dedup();
    let (sent_objects, sent_bytes) =
        step(&format!("send {} objects to {}", objects.len(), store.describe()), || send_all(root, &objects, store))?;
    let kept_objects = objects.len() - sent_objects;
    let manifest_sent =
        offered.as_deref() != Some(&json[..]) || store.get(&signature_path)?.as_ref() != Some(&signature);
    if manifest_sent {
        step("send signature and manifest", || {
            let place = StorePlace(store);
            let text = std::str::from_utf8(&signature).context("a signature is text")?;
            let replaced = replace_signed(&place, &manifest_path, text, &json)?
                && store.get(&manifest_path)?.as_deref() == Some(&json[..]);
            ensure!(replaced, "{manifest_path} has changed meanwhile: is somebody else publishing there?");
            // Last: the history is for `prune`, and nothing that robots ask for.
            let kept = history::path(channel, manifest.serial);
            place.write(&format!("{kept}.minisig"), &signature)?;
            place.write(&kept, &json)
        })?;
        // A `prune` of another computer may have deleted old objects that no manifest named until now.
        send_all(root, &objects, store).context("look for all objects once more")?;
    }
    Ok(Published { serial: manifest.serial, sent_objects, sent_bytes, kept_objects, manifest_sent })
}

/// Robots refuse a serial below the one they have, so that an older release in the place of a newer one would only stop
/// all updates; those that have another release of the same serial would never take this one. Returns the release that
/// is offered.
fn refuse_older(manifest: &Manifest, json: &[u8], offered_json: &[u8]) -> Result<Manifest> {
    let offered: Manifest = serde_json::from_slice(offered_json).context(
        "what is there is no manifest this version can read; look at it, and delete it if it may be replaced",
    )?;
    ensure!(
        offered.product == manifest.product,
        "a release of product {:?} is there, this one is of {:?}; take another prefix",
        offered.product,
        manifest.product
    );
    ensure!(
        offered.serial <= manifest.serial,
        "serial {} ({}) is there, this release has {}; make it anew with a higher --serial",
        offered.serial,
        offered.version,
        manifest.serial
    );
    ensure!(
        offered.serial < manifest.serial || offered_json == json,
        "{}",
        other_release(manifest.serial, &offered.version)
    );
    Ok(offered)
}

/// The message about a serial that another release has taken.
pub(crate) fn other_release(serial: u64, version: &str) -> String {
    format!(
        "another release with serial {serial} ({version}) is there, so that somebody else has published meanwhile; fetch \
         the tree from the store, and make the release again"
    )
}

/// Sends what is not there in its full size; the number of objects sent, and their bytes.
pub(crate) fn send_all(root: &Path, objects: &[Digest], store: &Store) -> Result<(usize, u64)> {
    let next = AtomicUsize::new(0);
    let (sent, sent_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failure = Mutex::new(None);
    let one = |digest: &Digest| -> Result<()> {
        let path = object_path(digest);
        let file = root.join(&path);
        let size = file.metadata().with_context(|| format!("look at {}", file.display()))?.len();
        // By size: a store takes an object whole, checked by its MD5, or not at all.
        if store.size_of(&path)? == Some(size) {
            return Ok(());
        }
        let content = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let found = Digest::of(&content);
        if found != *digest {
            bail!("{} is damaged: its digest is {found}; make the release again", file.display());
        }
        store.put(&path, &content, "application/octet-stream", IMMUTABLE)?;
        sent.fetch_add(1, Ordering::Relaxed);
        sent_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..UPLOADS {
            scope.spawn(|| {
                while let Some(digest) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if failed().is_some() {
                        return;
                    }
                    if let Err(error) = one(digest) {
                        failed().get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    if let Some(error) = failed().take() {
        return Err(error);
    }
    Ok((sent.into_inner(), sent_bytes.into_inner()))
}
