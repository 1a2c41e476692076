//! Decision of what is deleted. Pure: a listing and the kept releases in, paths out.

use std::collections::{BTreeMap, BTreeSet};

use reflash::release::manifest::Manifest;

use super::tree::Stored;

/// A release that a tree knows.
pub struct KnownRelease {
    /// Path of the manifest.
    pub path: String,
    /// Channel of the release.
    pub channel: String,
    /// Serial of the release.
    pub serial: u64,
    /// Whether the channel offers it.
    pub offered: bool,
    /// The manifest itself.
    pub manifest: Manifest,
    /// Paths of all its objects.
    pub objects: Vec<String>,
}

impl KnownRelease {
    /// The release whose manifest lies at `path`.
    pub fn of(path: &str, manifest: Manifest) -> Self {
        let channel = path.split('/').next().unwrap_or_default().to_owned();
        let offered = !path.contains("/history/");
        Self { path: path.to_owned(), channel, serial: manifest.serial, offered, manifest, objects: Vec::new() }
    }
}

/// Files of a tree that are deleted, and what stays.
#[derive(Debug)]
pub struct Pruning {
    /// Files that no kept release needs.
    pub remove: Vec<Stored>,
    /// Files that no kept release needs, and that were written too lately.
    pub young: Vec<Stored>,
    /// Files of the tree that a release may need: all that are judged.
    pub files: usize,
    /// Kept releases, for people.
    pub kept: Vec<String>,
}

/// The manifests of each channel, the kept ones of its history too.
pub fn channels(listing: &[Stored]) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in listing.iter().map(|stored| stored.path.as_str()) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            [channel, "manifest.json"] => found.entry(channel).or_default().push(path),
            [channel, "history", name] if serial_of(name).is_some_and(|(_, rest)| rest == ".json") => {
                found.entry(channel).or_default().push(path);
            }
            _ => {}
        }
    }
    found
}

/// Judges every file that the builder may have written; what a person put there is no business of ours.
pub fn plan(listing: &[Stored], kept: &[KnownRelease], min_age_s: u64) -> Pruning {
    let needed: BTreeSet<&str> = kept.iter().flat_map(|release| &release.objects).map(String::as_str).collect();
    let serials: BTreeSet<(&str, u64)> =
        kept.iter().map(|release| (release.channel.as_str(), release.serial)).collect();
    let mut found = Pruning { remove: Vec::new(), young: Vec::new(), files: 0, kept: Vec::new() };
    for stored in listing {
        let parts: Vec<&str> = stored.path.split('/').collect();
        let is_needed = match parts[..] {
            ["objects", name] if is_object(name) => needed.contains(stored.path.as_str()),
            // A release that was cut while an object was written.
            ["objects", name] if name.strip_suffix(".new").is_some_and(is_object) => false,
            [channel, "history", name] => match serial_of(name) {
                Some((serial, _)) => serials.contains(&(channel, serial)),
                None => continue,
            },
            _ => continue,
        };
        found.files += 1;
        if !is_needed {
            let list = if stored.age_s >= min_age_s { &mut found.remove } else { &mut found.young };
            list.push(stored.clone());
        }
    }
    let mut seen = BTreeSet::new();
    let mut named = kept.iter().filter(|release| seen.insert((&release.channel, release.serial)));
    found.kept = named.by_ref().map(|release| format!("{} {}", release.channel, release.serial)).collect();
    found
}

/// Serial and ending of a file of a history.
fn serial_of(name: &str) -> Option<(u64, &str)> {
    let (serial, _) = name.split_once('.')?;
    let rest = &name[serial.len()..];
    matches!(rest, ".json" | ".json.minisig").then_some(())?;
    Some((serial.parse().ok()?, rest))
}

fn is_object(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
