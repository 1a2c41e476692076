//! Patches from the release before; the format is in the agent's `patches`.

use anyhow::{Context, Result, ensure};
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};
use reflash::release::index::{ChunkContent, ChunkNo, Index, Pack, StoredChunkNo};
use reflash::release::manifest;
use reflash::release::patches::{Patch, Patches, fingerprint};
use reflash::release::weak_hashes::WeakHashes;

use crate::objects::Objects;
use crate::reuse::Reusable;

/// zstd level of the table.
const TABLE_LEVEL: i32 = 19;
/// The least share of the download that patches must save, percent: otherwise robots are better off without another
/// object to fetch.
const MIN_SAVED_PERCENT: u64 = 10;
/// A chunk as its own predecessor's patch takes about this share of what it takes alone, where little has changed.
const GUESSED_PERCENT: u64 = 10;

/// First bytes of a trained dictionary (RFC 8878, section 5).
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// A chunk that differs from what is in its place.
struct Candidate {
    stored: StoredChunkNo,
    chunk: ChunkNo,
    /// Whether the chunk can be put together from what a robot has.
    movable: bool,
}

/// Makes the patches from `before` to `index`, if they are worth their while.
///
/// Chunks that can be moved cost a robot nothing but the weak hashes, `weak_hashes_bytes`. If the patches of all of
/// them are smaller, they are made too, and no weak hashes are needed; if the image was laid out anew, so that nearly
/// everything moves, they are not.
pub fn make(
    before: &Reusable,
    index: &Index,
    movable: impl Fn(StoredChunkNo) -> bool,
    content: impl Fn(ChunkNo) -> Result<Vec<u8>> + Sync,
    weak_hashes_bytes: u64,
    level: i32,
    objects: &Objects,
) -> Result<Option<manifest::PatchObjects>> {
    if before.index.chunk_bytes() != index.chunk_bytes() {
        return Ok(None);
    }
    let (moving, mut candidates): (Vec<Candidate>, Vec<Candidate>) =
        candidates(&before.index, index, movable).into_iter().partition(|candidate| candidate.movable);
    let whole = |candidates: &[Candidate]| -> u64 {
        candidates.iter().map(|one| index.location(one.stored).range).map(|range| range.end - range.start).sum()
    };
    let mut saved_bytes = whole(&candidates);
    let all_bytes = saved_bytes + weak_hashes_bytes;
    let mut made = compress(before, &candidates, &content, level)?;
    if whole(&moving) * GUESSED_PERCENT / 100 <= weak_hashes_bytes {
        let patches = compress(before, &moving, &content, level)?;
        if patches.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() <= weak_hashes_bytes {
            saved_bytes += weak_hashes_bytes;
            candidates.extend(moving);
            made.extend(patches);
        }
    }
    saved_bytes = saved_bytes.saturating_sub(made.iter().map(|(_, bytes)| bytes.len() as u64).sum());
    if saved_bytes * 100 < all_bytes * MIN_SAVED_PERCENT || made.is_empty() {
        return Ok(None);
    }
    made.sort_by_key(|(patch, _)| patch.stored);
    let bytes: Vec<u8> = made.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    let pack = objects.put(&bytes)?;
    let described = Pack { digest: pack.blake3, size_bytes: pack.size_bytes };
    let table = Patches::new(described, made.into_iter().map(|(patch, _)| patch).collect()).encode();
    let table = objects.put(&zstd::bulk::compress(&table, TABLE_LEVEL).context("compress the table of patches")?)?;
    Ok(Some(manifest::PatchObjects { table, pack }))
}

/// One candidate for each stored chunk: the first of its places where something else was before.
fn candidates(before: &Index, index: &Index, movable: impl Fn(StoredChunkNo) -> bool) -> Vec<Candidate> {
    let mut taken = vec![false; index.stored_count() as usize];
    let mut found = Vec::new();
    // The first chunk is never patched.
    for chunk in 1..index.chunk_count().min(before.chunk_count()) {
        let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { continue };
        let same = match before.chunk_content(chunk) {
            ChunkContent::Stored(old) => before.digest(old) == index.digest(stored),
            ChunkContent::Zero => false,
        };
        if !same && before.chunk_range(chunk) == index.chunk_range(chunk) && !taken[stored as usize] {
            taken[stored as usize] = true;
            found.push(Candidate { stored, chunk, movable: movable(stored) });
        }
    }
    found
}

fn compress(
    before: &Reusable,
    candidates: &[Candidate],
    content: &(impl Fn(ChunkNo) -> Result<Vec<u8>> + Sync),
    level: i32,
) -> Result<Vec<(Patch, Vec<u8>)>> {
    let one = |candidate: &Candidate| {
        let Candidate { stored, chunk, .. } = *candidate;
        let (old, new) = (before.chunk(chunk)?, content(chunk)?);
        // zstd takes such content for a trained dictionary, with tables that it can find wrong and a number that the
        // patch would ask for; a file with one may well begin a chunk.
        if old.starts_with(&DICTIONARY_MAGIC) {
            return Ok(None);
        }
        let bytes = zstd::bulk::Compressor::with_dictionary(level, &old)
            .and_then(|mut zstd| zstd.compress(&new))
            .context("compress a patch")?;
        let again =
            zstd::bulk::Decompressor::with_dictionary(&old).and_then(|mut zstd| zstd.decompress(&bytes, new.len()));
        ensure!(again.context("apply a patch")? == new, "the patch of chunk {chunk} does not make the chunk");
        let base = fingerprint(WeakHashes::of_chunk(&old).into_iter());
        Ok(Some((Patch { stored, chunk, length: u32::try_from(bytes.len())?, base }, bytes)))
    };
    candidates.par_iter().filter_map(|candidate| one(candidate).transpose()).collect()
}
