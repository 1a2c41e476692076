//! Groups of chunks for a first flash; the format is in the agent's `groups`.
//!
//! A group of the release before is taken over as long as it still has fewer bytes than the frames of what is left of
//! it. What is in none of them is grouped anew, in the order of the image: neighbours are often of one file.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result};
use rayon::prelude::{IntoParallelRefIterator, ParallelIterator};
use reflash::release::digest::{Digest, HalfDigest};
use reflash::release::groups::{ChunkGroup, Groups};
use reflash::release::index::{ChunkContent, ChunkNo, Index, Pack, StoredChunkNo};
use reflash::release::manifest::Object;

use crate::objects::{Objects, PACK_BYTES};
use crate::reuse::{MIN_USED_PERCENT, Reusable};

/// Content of a group. Of a Debian image, groups of 1, 4 and 8 MiB compress to 77, 73 and 71 % of its single chunks; a
/// power cut costs those that were being written, and each decoder has one in memory.
const CONTENT_BYTES: u32 = 8 * 1024 * 1024;
/// The least members of a group: chunks of 512 KiB and more compress well by themselves.
const MIN_MEMBERS: u32 = 8;
/// The least share of their chunks that groups must spare, percent: they take room on servers beside them.
const MIN_SAVED_PERCENT: u64 = 5;
/// How much more groups are compressed than chunks: level 19 in place of 12 spares 5 % of a chunk and 10 % of a group,
/// at a tenth of the speed.
const LEVELS_ABOVE_CHUNKS: i32 = 7;
const MAX_LEVEL: i32 = 19;
/// Groups that are compressed before they are written.
const BATCH: usize = 16;
/// Groups that are tried out first.
const SAMPLE: usize = 8;

/// Members of a group, each with the place in the image that it is read from.
type Members = Vec<(StoredChunkNo, ChunkNo)>;

/// The groups of an image.
pub struct Grouped {
    pub table: Object,
    /// Bytes that a first flash downloads less than chunk by chunk.
    pub spared_bytes: u64,
}

/// A group that is not in a pack yet.
struct Made {
    members: Vec<Option<StoredChunkNo>>,
    bytes: Vec<u8>,
}

/// Makes the groups of `index`, if they are worth their while. `content` reads a chunk of the image, and `level` is
/// that of its chunks.
pub fn make(
    before: Option<&Reusable>,
    index: &Index,
    content: impl Fn(ChunkNo) -> Result<Vec<u8>> + Sync,
    level: i32,
    objects: &Objects,
) -> Result<Option<Grouped>> {
    let per_group = CONTENT_BYTES / index.chunk_bytes();
    let lacking = first_places(index);
    if per_group < MIN_MEMBERS || lacking.len() < MIN_MEMBERS as usize {
        return Ok(None);
    }
    let (mut groups, mut lacking) = match before.filter(|before| before.index.chunk_bytes() == index.chunk_bytes()) {
        Some(before) => taken_over(before, index, lacking),
        None => (Groups::default(), lacking),
    };
    let mut new: Members = lacking.drain().map(|(_, member)| member).collect();
    new.sort_unstable_by_key(|(_, chunk)| *chunk);
    let level = (level + LEVELS_ABOVE_CHUNKS).min(MAX_LEVEL);
    let compress = |members: &&[(StoredChunkNo, ChunkNo)]| -> Result<Made> {
        let content = members.iter().map(|(_, chunk)| content(*chunk)).collect::<Result<Vec<_>>>()?.concat();
        let bytes = zstd::bulk::compress(&content, level).context("compress a group")?;
        Ok(Made { members: members.iter().map(|(stored, _)| Some(*stored)).collect(), bytes })
    };
    let mut parts: Vec<&[(StoredChunkNo, ChunkNo)]> = new.chunks(per_group as usize).collect();
    // A few of them show whether it is worth to compress all, which takes minutes.
    let sample: Vec<_> = parts.iter().step_by(parts.len().div_ceil(SAMPLE).max(1)).collect();
    let sampled = sample.par_iter().map(|members| compress(members)).collect::<Result<Vec<_>>>()?;
    let spared: u64 = sampled.iter().map(|made| spared_frames(index, &made.members)).sum();
    let made_bytes: u64 = sampled.iter().map(|made| made.bytes.len() as u64).sum();
    if spared.saturating_sub(made_bytes) * 100 < spared * MIN_SAVED_PERCENT {
        parts.clear();
    }
    let mut packs = GroupPacks { objects, groups: &mut groups, content: Vec::new(), pending: Vec::new() };
    for batch in parts.chunks(BATCH) {
        for made in batch.par_iter().map(compress).collect::<Result<Vec<_>>>()? {
            if (made.bytes.len() as u64) < spared_frames(index, &made.members) {
                packs.append(made)?;
            }
        }
    }
    packs.close()?;
    if groups.is_empty() {
        return Ok(None);
    }
    let table = zstd::bulk::compress(&groups.encode(), MAX_LEVEL).context("compress the table of groups")?;
    Groups::from_object(&table, index).context("read the table of groups")?;
    let spared = |group: ChunkGroup<'_>| spared_frames(index, group.members) - (group.range.end - group.range.start);
    let spared_bytes = (0..groups.len()).map(|number| spared(groups.get(number))).sum();
    Ok(Some(Grouped { table: objects.put(&table)?, spared_bytes }))
}

/// The full chunks of the image by their digests, each with its first place.
fn first_places(index: &Index) -> HashMap<Digest, (StoredChunkNo, ChunkNo)> {
    let mut places = HashMap::new();
    for chunk in 0..index.chunk_count() {
        if let ChunkContent::Stored(stored) = index.chunk_content(chunk)
            && index.chunk_len(chunk) == index.chunk_bytes() as usize
        {
            places.entry(*index.digest(stored)).or_insert((stored, chunk));
        }
    }
    places
}

fn frame_bytes(index: &Index, stored: StoredChunkNo) -> u64 {
    let range = index.location(stored).range;
    range.end - range.start
}

/// Bytes of the frames that a group makes superfluous.
fn spared_frames(index: &Index, members: &[Option<StoredChunkNo>]) -> u64 {
    members.iter().flatten().map(|stored| frame_bytes(index, *stored)).sum()
}

/// The groups of the release before that are still worth their while, and what is in none of them.
fn taken_over(
    before: &Reusable,
    index: &Index,
    mut lacking: HashMap<Digest, (StoredChunkNo, ChunkNo)>,
) -> (Groups, HashMap<Digest, (StoredChunkNo, ChunkNo)>) {
    let old = &before.groups;
    let now = |stored: &Option<StoredChunkNo>| {
        stored.and_then(|stored| lacking.get(before.index.digest(stored))).map(|(stored, _)| *stored)
    };
    let mut live: Vec<(u32, Vec<Option<StoredChunkNo>>)> = Vec::new();
    let mut used_bytes = vec![0_u64; old.packs().len()];
    for number in 0..old.len() {
        let ChunkGroup { pack, range, members, .. } = old.get(number);
        let members: Vec<Option<StoredChunkNo>> = members.iter().map(now).collect();
        // Of more than half a group that is of no use, a first flash would grow from release to release.
        let is_live = members.iter().flatten().count() * 2 > members.len();
        if is_live && range.end - range.start < spared_frames(index, &members) {
            used_bytes[pack as usize] += range.end - range.start;
            live.push((number, members));
        }
    }
    let is_used =
        |pack: u32| used_bytes[pack as usize] * 100 >= old.packs()[pack as usize].size_bytes * MIN_USED_PERCENT;
    live.retain(|(number, _)| is_used(old.get(*number).pack));
    let mut groups = Groups::default();
    let mut last: Option<u32> = None;
    for (number, members) in &live {
        let ChunkGroup { pack, range, digest, .. } = old.get(*number);
        if last.replace(pack) != Some(pack) {
            groups.push_pack(old.packs()[pack as usize]);
        }
        groups.push_to_last(range, digest, members);
        for stored in members.iter().flatten() {
            lacking.remove(index.digest(*stored));
        }
    }
    (groups, lacking)
}

/// Collects groups to packs. One pack is held in memory, since its name is the digest of all of it.
struct GroupPacks<'a> {
    objects: &'a Objects,
    groups: &'a mut Groups,
    content: Vec<u8>,
    /// The groups of `content`: the place of each, its digest and its members.
    pending: Vec<(Range<u64>, HalfDigest, Vec<Option<StoredChunkNo>>)>,
}

impl GroupPacks<'_> {
    fn append(&mut self, Made { members, bytes }: Made) -> Result<()> {
        if (self.content.len() + bytes.len()) as u64 > PACK_BYTES {
            self.close()?;
        }
        let start = self.content.len() as u64;
        self.content.extend_from_slice(&bytes);
        self.pending.push((start..self.content.len() as u64, Digest::of(&bytes).half(), members));
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let object = self.objects.put(&self.content)?;
        self.groups.push_pack(Pack { digest: object.blake3, size_bytes: object.size_bytes });
        for (place, digest, members) in self.pending.drain(..) {
            self.groups.push_to_last(place, digest, &members);
        }
        self.content.clear();
        Ok(())
    }
}
