//! How a roll-out and its releases get into a store.

use std::path::Path;

use anyhow::{Context, Result, bail};
use reflash::release::manifest::{Manifest, TrustedKeys};
use reflash::release::rollout::release_path;

use crate::keygen;
use crate::publish::{Store, StorePlace, other_release, send_all};
use crate::release::check;
use crate::release::rollout::{ChannelPlace, TreePlace, copy, load, manifest_of};
use crate::step::step;

/// Sends a release, which is in the tree, to the store, if there is one: its objects, then its manifest in the history.
pub(super) fn send(store: Option<&Store>, tree: &Path, manifest: &Manifest) -> Result<()> {
    let Some(store) = store else { return Ok(()) };
    let path = release_path(&manifest.channel, manifest.serial);
    let read = |path: &str| std::fs::read(tree.join(path)).with_context(|| format!("read {path} of the tree"));
    let (json, signature_path) = (read(&path)?, format!("{path}.minisig"));
    // A roll-out names one manifest by its digest: another one in its place would stop all robots that are in.
    if let Some(there) = store.get(&path)?.filter(|there| *there != json) {
        let version = serde_json::from_slice::<Manifest>(&there).map_or("unknown".to_owned(), |there| there.version);
        bail!("{}", other_release(manifest.serial, &version));
    }
    let mut objects = check::objects(tree, manifest)?;
    objects.sort_unstable_by_key(ToString::to_string);
    objects.dedup();
    let text = format!("send {} objects of serial {} to {}", objects.len(), manifest.serial, store.describe());
    step(&text, || send_all(tree, &objects, store))?;
    StorePlace(store).write(&signature_path, &read(&signature_path)?)?;
    StorePlace(store).write(&path, &json)
}

/// Sends the roll-out of a tree and all releases that it names.
pub(super) fn publish(tree: &Path, channel: &str, keys: &TrustedKeys, store: &Store) -> Result<()> {
    let (from, to) = (TreePlace(tree.to_owned()), StorePlace(store));
    let own = load(&from, channel, keys)?.with_context(|| format!("{} has no roll-out", tree.display()))?;
    for release in &own.rollout.releases {
        let (manifest, _) = manifest_of(&from, channel, Some(release.serial), keys)?;
        send(Some(store), tree, &manifest)?;
    }
    copy(&from, &to, channel, keys)
}

/// The line of a public key that a roll-out names.
pub(super) fn key_line(path: &Path) -> Result<String> {
    let text = keygen::load_public(path)?;
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    line.map(str::to_owned).with_context(|| format!("{} has no key", path.display()))
}
