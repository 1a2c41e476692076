//! What a release can take over from the one before: frames in packs that servers, caches and mirrors have already.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::digest::Digest;
use reflash::release::hints::{Hint, Hints};
use reflash::release::index::{FrameContent, FrameNo, Index, Pack, StoredNo};
use reflash::release::manifest::{Manifest, Object, SYSTEM_IMAGE, object_path};

/// A pack of which less than this share is still in use is left behind, and what is in use of it is stored anew: a first
/// flash reads around what is not in use, and packs would never go out of use otherwise. Percent.
const MIN_USED_PERCENT: u64 = 50;

/// A release whose objects are all there.
pub struct Reusable {
    pub index: Index,
    by_digest: HashMap<Digest, StoredNo>,
    /// Hints of all blocks; none if it has no object of them.
    pub blocks: HashSet<Hint>,
    root: PathBuf,
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
        let image = release.image(SYSTEM_IMAGE).ok()?;
        let read = |object: &Object| std::fs::read(root.join(object_path(&object.blake3))).ok();
        let index = Index::from_object(&read(&image.index)?).ok()?;
        let is_there = |pack: &Pack| {
            let path = root.join(object_path(&pack.digest));
            path.metadata().is_ok_and(|metadata| metadata.len() == pack.size_bytes)
        };
        if !index.packs().iter().all(is_there) {
            return None;
        }
        let by_digest = (0..index.stored_count()).map(|stored| (*index.digest(stored), stored)).collect();
        let hints = image.hints.as_ref().and_then(read).and_then(|object| Hints::decode(object, &index).ok());
        let of = |stored| hints.as_ref().and_then(|hints| hints.of(stored)).into_iter().flatten();
        let blocks = (0..index.stored_count()).flat_map(of).collect();
        Some(Self { index, by_digest, blocks, root: root.to_owned() })
    }

    /// The content of a frame of its image.
    pub fn frame(&self, frame: FrameNo) -> Result<Vec<u8>> {
        let range = self.index.frame_range(frame);
        let length = (range.end - range.start) as usize;
        let FrameContent::Stored(stored) = self.index.frame_content(frame) else { return Ok(vec![0; length]) };
        let place = self.index.location(stored);
        let path = self.root.join(object_path(&self.index.packs()[place.pack as usize].digest));
        let mut bytes = vec![0; (place.range.end - place.range.start) as usize];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut bytes, place.range.start))
            .with_context(|| format!("read {}", path.display()))?;
        let content = zstd::bulk::decompress(&bytes, length).with_context(|| format!("decompress frame {frame}"))?;
        ensure!(self.index.matches(frame, &content), "{} is damaged at {}", path.display(), place.range.start);
        Ok(content)
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
