//! Deltas from the release before; the format is in the agent's `deltas`.
//!
//! Neighbouring chunks that changed are made together, of the blocks that the release before has in their place, of the
//! very blocks that moved, and of blocks with like content.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use reflash::release::add_copy::{DifferenceBuilder, apply};
use reflash::release::deltas::{self, BlockNo, Delta, Deltas, MAX_SOURCE_BLOCKS, fingerprint};
use reflash::release::digest::{BLOCK_SIZE_BYTES, BLOCK_SIZE_U32, Digest};
use reflash::release::index::{ChunkContent, ChunkNo, Index, Pack, StoredChunkNo, outline};
use reflash::release::manifest::DeltaObjects;
use reflash::release::weak_hashes::{MAX_BLOCKS, WeakHash, WeakHashes};

use crate::difference::difference;
use crate::objects::Objects;
use crate::reuse::Reusable;
use crate::similar::Samples;

/// zstd level of deltas and their table: made once, fetched by every robot.
const LEVEL: i32 = 19;
/// Bytes that one delta makes: neighbours compress together, and a cut costs what was not finished.
const CONTENT_BYTES: u32 = 512 * 1024;
/// The least share of the download that deltas must save, percent: otherwise robots are better off without another
/// object to fetch.
const MIN_SAVED_PERCENT: u64 = 10;
/// The blocks that robots look at.
#[expect(clippy::cast_possible_truncation, reason = "two million")]
const MOST_BLOCKS: BlockNo = MAX_BLOCKS as BlockNo;
/// A delta takes at the least one byte in so many from what is there.
const LEAST_USED: usize = 64;
/// What a block counts for being in the place of the content that is made, in samples of like content.
const IN_PLACE: u32 = 2;
/// What a block counts for being equal to one that is made.
const EQUAL: u32 = 1000;

/// A run of chunks that are made together.
struct Run {
    chunks: Range<ChunkNo>,
    /// Whether every block of them is somewhere in the release before.
    moved: bool,
}

/// A delta that was made, with its bytes.
struct Made {
    chunks: Vec<ChunkNo>,
    sources: Vec<Range<BlockNo>>,
    base: u64,
    bytes: Vec<u8>,
}

/// Makes the deltas from `before`, whose image has the SHA-256 `from`, to `index`, if they are worth their while.
/// `content` reads a chunk of the new image.
pub fn make(
    before: &Reusable,
    from: &str,
    index: &Index,
    content: impl Fn(ChunkNo) -> Result<Vec<u8>> + Sync,
    objects: &Objects,
) -> Result<Option<DeltaObjects>> {
    if before.index.chunk_bytes() != index.chunk_bytes() {
        return Ok(None);
    }
    let changed = changed(&before.index, index);
    if changed.is_empty() {
        return Ok(None);
    }
    let old = Old::of(before)?;
    let is_moved = |chunk: &ChunkNo| -> Result<(ChunkNo, bool)> {
        let moved = blocks(&content(*chunk)?).all(|block| block == WeakHash::NONE || old.equal.contains_key(&block));
        Ok((*chunk, moved))
    };
    let changed: Vec<(ChunkNo, bool)> = changed.par_iter().map(is_moved).collect::<Result<_>>()?;
    let whole_bytes = |chunks: &[ChunkNo]| -> u64 {
        let stored = chunks.iter().filter_map(|chunk| match index.chunk_content(*chunk) {
            ChunkContent::Stored(stored) => Some(index.location(stored).range),
            ChunkContent::Zero => None,
        });
        stored.map(|range| range.end - range.start).sum()
    };
    let one = |run: &Run| -> Result<Option<Made>> {
        let made = old.make(run, &content).with_context(|| format!("make chunks {:?} by a delta", run.chunks))?;
        Ok(made.filter(|made| (made.bytes.len() as u64) < whole_bytes(&made.chunks)))
    };
    let runs = runs(&changed, (CONTENT_BYTES / index.chunk_bytes()).max(1));
    let made: Vec<Made> = runs.par_iter().filter_map(|run| one(run).transpose()).collect::<Result<_>>()?;

    let bytes: Vec<u8> = made.iter().flat_map(|made| &made.bytes).copied().collect();
    let spared: u64 = made.iter().map(|made| whole_bytes(&made.chunks)).sum();
    let all = whole_bytes(&changed.iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>());
    if made.is_empty() || spared.saturating_sub(bytes.len() as u64) * 100 < all * MIN_SAVED_PERCENT {
        return Ok(None);
    }
    let digests = changed_digests(&before.index, index);
    let digests = zstd::bulk::compress(&outline::changed::encode(&digests), LEVEL).context("compress digests")?;
    let digests = Some(objects.put(&digests)?);
    let pack = objects.put(&bytes)?;
    let mut table = Deltas::new(Pack { digest: pack.blake3, size_bytes: pack.size_bytes });
    for Made { chunks, sources, base, bytes } in &made {
        let length = u32::try_from(bytes.len())?;
        table.push(Delta { chunks, sources, base: *base, length, digest: Digest::of(bytes).half() });
    }
    let table = zstd::bulk::compress(&table.encode(), LEVEL).context("compress the table of deltas")?;
    Ok(Some(DeltaObjects { from: from.to_owned(), digests, table: objects.put(&table)?, pack }))
}

/// The digests that a robot which has the release before does not know: those of stored chunks in whose first place it
/// has something else.
fn changed_digests(before: &Index, index: &Index) -> Vec<(StoredChunkNo, Digest)> {
    let mut seen = vec![false; index.stored_count() as usize];
    let mut found = Vec::new();
    for chunk in 0..index.chunk_count() {
        let ChunkContent::Stored(stored) = index.chunk_content(chunk) else { continue };
        if std::mem::replace(&mut seen[stored as usize], true) {
            continue;
        }
        if !has_same(before, chunk, index.digest(stored)) {
            found.push((stored, *index.digest(stored)));
        }
    }
    found.sort_unstable_by_key(|(stored, _)| *stored);
    found
}

/// Whether the release before has the content with this digest in the place of a chunk.
fn has_same(before: &Index, chunk: ChunkNo, digest: &Digest) -> bool {
    chunk < before.chunk_count()
        && matches!(before.chunk_content(chunk), ChunkContent::Stored(old) if before.digest(old) == digest)
}

/// The chunks in whose place the release before has something else, or nothing.
fn changed(before: &Index, index: &Index) -> Vec<ChunkNo> {
    let is_changed = |chunk: &ChunkNo| {
        let ChunkContent::Stored(stored) = index.chunk_content(*chunk) else { return false };
        !has_same(before, *chunk, index.digest(stored))
    };
    // The first chunk is never made by a delta.
    (1..index.chunk_count()).filter(is_changed).collect()
}

/// Joins neighbours of one kind.
fn runs(changed: &[(ChunkNo, bool)], at_most: u32) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (chunk, moved) in changed {
        match runs.last_mut() {
            Some(Run { chunks, moved: same })
                if chunks.end == *chunk && same == moved && chunks.end - chunks.start < at_most =>
            {
                chunks.end += 1;
            }
            _ => runs.push(Run { chunks: *chunk..chunk + 1, moved: *moved }),
        }
    }
    runs
}

fn blocks(content: &[u8]) -> impl Iterator<Item = WeakHash> {
    content.chunks(BLOCK_SIZE_BYTES).map(WeakHash::of)
}

/// The image of the release before, as far as robots look at their partitions.
struct Old<'a> {
    before: &'a Reusable,
    per_chunk: u32,
    /// The first block with each weak hash.
    equal: HashMap<WeakHash, BlockNo>,
    samples: Samples,
}

impl<'a> Old<'a> {
    fn of(before: &'a Reusable) -> Result<Self> {
        let index = &before.index;
        let per_chunk = index.blocks_per_chunk();
        let chunks = index.chunk_count().min(MOST_BLOCKS / per_chunk);
        let image_bytes = index.image_bytes().min((MAX_BLOCKS * BLOCK_SIZE_BYTES) as u64);
        let hashed = (0..chunks).into_par_iter().map(|chunk| Ok(blocks(&before.chunk(chunk)?).collect()));
        let hashed: Vec<Vec<WeakHash>> = hashed.collect::<Result<_>>()?;
        let mut equal = HashMap::new();
        // Block 0 is blanked before anything is moved.
        for (block, hash) in (0..).zip(hashed.concat()).skip(1).filter(|(_, hash)| *hash != WeakHash::NONE) {
            equal.entry(hash).or_insert(block);
        }
        let samples = Samples::of(image_bytes, chunks, |chunk| {
            let content =
                if index.chunk_content(chunk) == ChunkContent::Zero { Vec::new() } else { before.chunk(chunk)? };
            anyhow::Ok((content, chunk * per_chunk))
        })?;
        Ok(Self { before, per_chunk, equal, samples })
    }

    fn make(&self, run: &Run, content: impl Fn(ChunkNo) -> Result<Vec<u8>>) -> Result<Option<Made>> {
        let new = run.chunks.clone().map(content).collect::<Result<Vec<_>>>()?.concat();
        let sources = if run.moved { self.moved_from(&new) } else { Some(self.like(&new, run)) };
        let Some(sources) = sources else { return Ok(None) };
        let old = self.read(&sources)?;
        let (difference, used) =
            if run.moved { (self.copied(&new, &sources), new.len()) } else { difference(&old, &new) };
        // What is new altogether is fetched whole: it would be compressed once more, and for minutes. What is nearly
        // nothing takes none.
        if used < new.len() / LEAST_USED && zstd::bulk::compress(&new, 1)?.len() > new.len() / 8 {
            return Ok(None);
        }
        let bytes = zstd::bulk::compress(&difference, LEVEL).context("compress a delta")?;
        let mut again = vec![0; new.len()];
        // A difference of more parts than it may have is no delta, and its chunks are fetched whole.
        let Ok(opened) = deltas::open(&bytes, new.len()) else { return Ok(None) };
        apply(&old, &opened, &mut again)?;
        ensure!(again == new, "the delta does not make its chunks");
        let base = fingerprint(WeakHashes::of_chunk(&old).into_iter());
        Ok(Some(Made { chunks: run.chunks.clone().collect(), sources, base, bytes }))
    }

    /// The blocks that equal those of `new`, in their order, unless they are too many ranges for one delta.
    fn moved_from(&self, new: &[u8]) -> Option<Vec<Range<BlockNo>>> {
        let mut found: Vec<BlockNo> = blocks(new).filter_map(|hash| self.equal.get(&hash)).copied().collect();
        found.sort_unstable();
        found.dedup();
        (found.len() <= MAX_SOURCE_BLOCKS as usize).then(|| ranges(found))
    }

    /// The difference that takes every block from `sources`.
    fn copied(&self, new: &[u8], sources: &[Range<BlockNo>]) -> Vec<u8> {
        let position = |wanted: BlockNo| -> i64 {
            let before: u32 = sources.iter().map(|range| range.end.min(wanted).saturating_sub(range.start)).sum();
            i64::from(before) * i64::from(BLOCK_SIZE_U32)
        };
        let mut difference = DifferenceBuilder::default();
        let mut at = 0;
        // Each instruction ends with the way to where the next one begins.
        let mut pending: Option<(Vec<u8>, Vec<u8>)> = None;
        for (content, hash) in new.chunks(BLOCK_SIZE_BYTES).zip(blocks(new)) {
            let (sums, copies, from) = match self.equal.get(&hash) {
                Some(block) => (vec![0; content.len()], Vec::new(), Some(position(*block))),
                None => (Vec::new(), content.to_vec(), None),
            };
            if let Some((sums, copies)) = pending.take() {
                let here = at + i64::try_from(sums.len()).unwrap_or(i64::MAX);
                let next = from.unwrap_or(here);
                difference.push(&sums, &copies, next - here);
                at = next;
            } else if let Some(from) = from {
                difference.push(&[], &[], from);
                at = from;
            }
            pending = Some((sums, copies));
        }
        if let Some((sums, copies)) = pending {
            difference.push(&sums, &copies, 0);
        }
        difference.finish()
    }

    /// The blocks that are of the most use: those in the place of the content, equal ones, and those with samples of
    /// it.
    fn like(&self, new: &[u8], run: &Run) -> Vec<Range<BlockNo>> {
        // Behind a short last chunk nobody knows what a robot has.
        let whole = self.before.index.image_bytes() / u64::from(BLOCK_SIZE_U32);
        let end = u32::try_from(whole).unwrap_or(MOST_BLOCKS).min(MOST_BLOCKS);
        let mut votes: HashMap<BlockNo, u32> = HashMap::new();
        for block in run.chunks.start * self.per_chunk..run.chunks.end * self.per_chunk {
            *votes.entry(block).or_default() += IN_PLACE;
        }
        for equal in blocks(new).filter_map(|hash| self.equal.get(&hash)) {
            *votes.entry(*equal).or_default() += EQUAL;
        }
        self.samples.look_for(new, |block| *votes.entry(block).or_default() += 1);
        let mut ranked: Vec<(u32, BlockNo)> =
            votes.into_iter().filter(|(_, votes)| *votes > 1).map(|(block, votes)| (votes, block)).collect();
        ranked.sort_unstable_by_key(|(votes, block)| (u32::MAX - votes, *block));
        let mut chosen: Vec<BlockNo> = Vec::new();
        let mut is_chosen = std::collections::HashSet::new();
        for (_, block) in ranked {
            // What was cut off by the end of a block goes on in the next.
            for block in [block, block + 1, block.saturating_sub(1)] {
                if (1..end).contains(&block) && chosen.len() < MAX_SOURCE_BLOCKS as usize && is_chosen.insert(block) {
                    chosen.push(block);
                }
            }
        }
        chosen.sort_unstable();
        ranges(chosen)
    }

    fn read(&self, sources: &[Range<BlockNo>]) -> Result<Vec<u8>> {
        let mut old = Vec::new();
        let mut held: Option<(ChunkNo, Vec<u8>)> = None;
        for block in sources.iter().flat_map(Clone::clone) {
            let chunk = block / self.per_chunk;
            let (_, content) = match held.take() {
                Some(same) if same.0 == chunk => held.insert(same),
                _ => held.insert((chunk, self.before.chunk(chunk)?)),
            };
            let from = (block % self.per_chunk) as usize * BLOCK_SIZE_BYTES;
            let block = content.get(from..from + BLOCK_SIZE_BYTES);
            old.extend_from_slice(block.ok_or_else(|| anyhow!("a block beyond the image before is needed"))?);
        }
        Ok(old)
    }
}

/// Joins blocks, which ascend, to ranges.
fn ranges(blocks: Vec<BlockNo>) -> Vec<Range<BlockNo>> {
    let mut ranges: Vec<Range<BlockNo>> = Vec::new();
    for block in blocks {
        match ranges.last_mut() {
            Some(last) if last.end == block => last.end += 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::{ranges, runs};

    #[test]
    fn neighbours_of_one_kind_are_made_together() {
        let changed = [(1, false), (2, false), (3, false), (4, true), (6, true), (7, true)];
        let found: Vec<_> = runs(&changed, 2).into_iter().map(|run| (run.chunks, run.moved)).collect();
        assert_eq!(found, [(1..3, false), (3..4, false), (4..5, true), (6..8, true)]);
        assert_eq!(ranges(vec![1, 2, 5, 7, 8]), [1..3, 5..6, 7..9]);
    }
}
