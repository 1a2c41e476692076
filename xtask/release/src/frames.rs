//! Digests of the frames of an image; the format is in the agent's `frames`.

use anyhow::{Context, Result};
use rayon::prelude::{IntoParallelIterator, ParallelIterator};
use reflash::release::digest::{Digest, HalfDigest};
use reflash::release::frames;
use reflash::release::index::{Index, StoredChunkNo};
use reflash::release::manifest::FrameObjects;

use crate::objects::Objects;

/// Stores the digests of all frames, those of packs that were there before too.
pub fn make(index: &Index, objects: &Objects) -> Result<FrameObjects> {
    let mut by_pack: Vec<Vec<StoredChunkNo>> = vec![Vec::new(); index.packs().len()];
    (0..index.stored_count()).for_each(|stored| by_pack[index.location(stored).pack as usize].push(stored));
    let mut digests = vec![HalfDigest::default(); index.stored_count() as usize];
    for (pack, stored) in index.packs().iter().zip(by_pack) {
        let content = objects.read(&pack.digest)?;
        let digest = |stored: StoredChunkNo| -> Result<(StoredChunkNo, HalfDigest)> {
            let place = index.location(stored).range;
            let frame = content.get(usize::try_from(place.start)?..usize::try_from(place.end)?);
            let frame = frame.with_context(|| format!("pack {} ends before byte {}", pack.digest, place.end))?;
            Ok((stored, Digest::of(frame).half()))
        };
        let found: Vec<_> = stored.into_par_iter().map(digest).collect::<Result<_>>()?;
        found.into_iter().for_each(|(stored, digest)| digests[stored as usize] = digest);
    }
    Ok(FrameObjects { sums: objects.put(&frames::sums(&digests))?, digests: objects.put(digests.as_flattened())? })
}
