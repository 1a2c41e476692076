//! The chunks that a release takes over from the one before, in packs that servers, caches and mirrors have already.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::{ChunkContent, ChunkNo, Index, Pack, StoredChunkNo};
use reflash::release::manifest::{Manifest, Object, SYSTEM_IMAGE, object_path};

/// A pack of which less than this share is still in use, percent, is left behind, and its chunks in use are stored
/// anew: a first flash reads around what is not in use, and packs would never go out of use otherwise.
pub const MIN_USED_PERCENT: u64 = 50;

/// A release whose objects are all there.
pub struct Reusable {
    pub index: Index,
    /// The groups of the release, if they are all there.
    pub groups: Groups,
    by_digest: HashMap<Digest, StoredChunkNo>,
    root: PathBuf,
}

/// A chunk that is there already.
pub struct Found {
    /// The position in the list that was asked for.
    pub which: usize,
    /// The pack that holds the chunk.
    pub pack: Pack,
    /// The offset of the chunk in the pack, bytes.
    pub offset_bytes: u64,
    /// The compressed length, bytes.
    pub length: u32,
}

impl Reusable {
    /// Opens `release` in the tree `root`; `None` when its objects are no longer there, or one is damaged: it would be
    /// damaged in this release too, and in each one after it.
    pub fn of(release: &Manifest, root: &Path) -> Option<Self> {
        let image = release.image(SYSTEM_IMAGE).ok()?;
        let read = |object: &Object| std::fs::read(root.join(object_path(&object.blake3))).ok();
        let index = Index::from_object(&read(&image.index)?).ok()?;
        let is_there = |pack: &Pack| {
            let path = root.join(object_path(&pack.digest));
            let is_whole = std::fs::read(&path).is_ok_and(|found| Digest::of(&found) == pack.digest);
            if !is_whole {
                eprintln!("  nothing is taken from the release before: {} is gone or damaged", path.display());
            }
            is_whole
        };
        if !index.packs().iter().all(is_there) {
            return None;
        }
        let groups = image.groups.as_ref().and_then(|object| Groups::from_object(&read(object)?, &index).ok());
        let groups = groups.filter(|groups| groups.packs().iter().all(is_there)).unwrap_or_default();
        let by_digest = (0..index.stored_count()).map(|stored| (*index.digest(stored), stored)).collect();
        Some(Self { index, groups, by_digest, root: root.to_owned() })
    }

    /// Reads the content of a chunk of the image.
    pub fn chunk(&self, chunk: ChunkNo) -> Result<Vec<u8>> {
        let range = self.index.chunk_range(chunk);
        let length = usize::try_from(range.end - range.start)?;
        let ChunkContent::Stored(stored) = self.index.chunk_content(chunk) else { return Ok(vec![0; length]) };
        let place = self.index.location(stored);
        let path = self.root.join(object_path(&self.index.packs()[place.pack as usize].digest));
        let mut bytes = vec![0; usize::try_from(place.range.end - place.range.start)?];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut bytes, place.range.start))
            .with_context(|| format!("read {}", path.display()))?;
        let content = zstd::bulk::decompress(&bytes, length).with_context(|| format!("decompress chunk {chunk}"))?;
        ensure!(self.index.matches(chunk, &content), "{} is damaged at {}", path.display(), place.range.start);
        Ok(content)
    }

    /// The wanted chunks that are there, in the order of packs and places in them.
    pub fn take(&self, wanted: &[Digest], chunk_bytes: u32) -> Vec<Found> {
        if self.index.chunk_bytes() != chunk_bytes {
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
            // The index gives the length as 32 bits.
            length: u32::try_from(range.end - range.start).unwrap_or(u32::MAX),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Spec, build, check, keygen};
    use reflash::release::manifest::TrustedKeys;
    use std::fs;

    /// A disk lost blocks of a pack that the release before has, and the file kept its length.
    #[test]
    fn a_damaged_pack_of_the_release_before_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
        let keys = keygen::generate(&dir.path().join("keys"), None).unwrap();
        let key = keygen::load_secret(&keys.secret).unwrap();
        let mut trusted = TrustedKeys::default();
        trusted.add("k", &keygen::load_public(&keys.public).unwrap()).unwrap();
        let mut content: Vec<u8> = (0..64 * 4096_u32).map(|at| u8::try_from((at / 7 * 3) % 251).unwrap()).collect();
        let mut spec = Spec {
            product: "p".into(),
            hardware: vec!["*".into()],
            channel: "stable".into(),
            version: "1".into(),
            serial: None,
            image: image.clone(),
            ostree: None,
            files: Vec::new(),
            layout: None,
            chunk_bytes: Some(16384),
            level: 1,
            created_unix_s: Some(1_700_000_000),
            allow: Vec::new(),
        };
        fs::write(&image, &content).unwrap();
        build(&spec, &key, &tree).unwrap();
        let largest = || {
            let objects = fs::read_dir(tree.join("objects")).unwrap().map(|entry| entry.unwrap().path());
            objects.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
        };
        let pack = largest();
        let length = pack.metadata().unwrap().len();
        let whole = fs::read(&pack).unwrap();
        let mut lost = whole.clone();
        let middle = lost.len() / 2;
        lost[middle..middle + 100].fill(0);
        fs::write(&pack, &lost).unwrap();
        // The next release has another last chunk, and all others as before.
        content[63 * 4096] ^= 1;
        fs::write(&image, &content).unwrap();
        spec.version = "2".into();
        build(&spec, &key, &tree).unwrap();
        check::check(&tree, "stable", &trusted).unwrap();
        // A release that needs the very object writes it anew.
        content[63 * 4096] ^= 1;
        fs::write(&image, &content).unwrap();
        (spec.version, spec.channel) = ("1".into(), "testing".into());
        build(&spec, &key, &tree).unwrap();
        check::check(&tree, "testing", &trusted).unwrap();
        assert_eq!((fs::read(&pack).unwrap() == whole, pack.metadata().unwrap().len()), (true, length));
    }
}
