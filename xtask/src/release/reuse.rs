//! What a release can take over from the one before: frames in packs that servers, caches and mirrors have already.

use std::collections::HashMap;
use std::path::Path;

use reflash::digest::Digest;
use reflash::index::{Index, Pack, StoredNo};
use reflash::manifest::{Manifest, SYSTEM_IMAGE, object_path};

/// A pack of which less than this share is still in use is left behind, and what is in use of it is stored anew: a first
/// flash reads around what is not in use, and packs would never go out of use otherwise. Percent.
const MIN_USED_PERCENT: u64 = 50;

/// The stored frames of a release.
pub struct Reusable {
    index: Index,
    by_digest: HashMap<Digest, StoredNo>,
}

/// A frame that is there already.
pub struct Found {
    /// Position in the list that was asked for.
    pub which: usize,
    /// The pack it is in.
    pub pack: Pack,
    /// Where, bytes.
    pub offset_bytes: u64,
    /// Compressed length, bytes.
    pub length: u32,
}

impl Reusable {
    /// Those of `release` in the tree `root`; none when its objects are no longer there.
    pub fn of(release: &Manifest, root: &Path) -> Option<Self> {
        let object = std::fs::read(root.join(object_path(&release.image(SYSTEM_IMAGE).ok()?.index.blake3))).ok()?;
        let index = Index::from_object(&object).ok()?;
        let is_there = |pack: &Pack| {
            let path = root.join(object_path(&pack.digest));
            path.metadata().is_ok_and(|metadata| metadata.len() == pack.size_bytes)
        };
        if !index.packs().iter().all(is_there) {
            return None;
        }
        let by_digest = (0..index.stored_count()).map(|stored| (*index.digest(stored), stored)).collect();
        Some(Self { index, by_digest })
    }

    /// The wanted frames that are there, in the order of packs and places in them.
    pub fn take(&self, wanted: &[Digest], frame_bytes: u32) -> Vec<Found> {
        if self.index.frame_bytes() != frame_bytes {
            return Vec::new();
        }
        let place = |(which, digest): (usize, &Digest)| {
            let place = self.index.location(*self.by_digest.get(digest)?);
            Some((place.pack, place.range, which))
        };
        let mut found: Vec<_> = wanted.iter().enumerate().filter_map(place).collect();
        found.sort_unstable_by_key(|(pack, range, _)| (*pack, range.start));
        let mut used_bytes = vec![0; self.index.packs().len()];
        found.iter().for_each(|(pack, range, _)| used_bytes[*pack as usize] += range.end - range.start);
        let is_used = |pack: u32| {
            used_bytes[pack as usize] * 100 >= self.index.packs()[pack as usize].size_bytes * MIN_USED_PERCENT
        };
        let kept = found.into_iter().filter(|(pack, ..)| is_used(*pack));
        kept.map(|(pack, range, which)| Found {
            which,
            pack: self.index.packs()[pack as usize],
            offset_bytes: range.start,
            length: (range.end - range.start) as u32,
        })
        .collect()
    }
}
