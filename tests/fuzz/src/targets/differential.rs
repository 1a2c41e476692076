//! A valid index against any partition and a source that may lie: compare, plan, write, read back. What comes out is
//! the image with nothing behind it touched, or an error that has a cause and leaves no superblock.

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

use arbitrary::{Arbitrary, Unstructured};
use reflash::boot::env::WritePermit;
use reflash::chain::chain;
use reflash::flash::plan::{Blocks, Comparison, FittingDeltas, FoundBlocks, Plan, Reuse};
use reflash::flash::survey::{Survey, content_of};
use reflash::flash::verify::{self, Verified};
use reflash::flash::write::{Work, apply};
use reflash::record::progress::Done;
use reflash::release::add_copy::DifferenceBuilder;
use reflash::release::deltas::{Delta, Deltas, fingerprint};
use reflash::release::digest::{Digest, HalfDigest};
use reflash::release::frames::{self, FrameDigests};
use reflash::release::groups::Groups;
use reflash::release::index::outline::Outline;
use reflash::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};
use reflash::release::manifest::{FrameObjects, Object, object_path};
use reflash::release::weak_hashes::WeakHashes;

use super::memory::{Objects, Partition, block};

const CHUNK: usize = MIN_CHUNK_BYTES as usize;
const BLOCK: usize = 4096;
/// Blocks of the largest image: ten chunks of each kind are enough for everything that can happen.
const MOST_BLOCKS: usize = 160;

#[derive(Arbitrary, Debug)]
struct Case {
    /// Blocks of the image.
    image: Vec<u8>,
    /// Blocks of the partition before, then runs of the image's blocks: from, to, count.
    partition: Vec<u8>,
    copies: Vec<(u8, u8, u8)>,
    longer: u8,
    /// For each stored chunk, whether an extent or a pack begins with it.
    splits: Vec<u8>,
    gap: u8,
    /// Bits of weak hashes that are wrong.
    wrong_hashes: Vec<(u16, u8)>,
    with_hashes: bool,
    /// 0: no deltas; 1: deltas; 2: deltas of which every other one is damaged. The rest says where they are made from.
    deltas: u8,
    buffer_blocks: u8,
    lies: Vec<(u8, u8)>,
    lies_for_ever: bool,
    hasty: u8,
    unreadable: u8,
    read_behind: bool,
    /// 0: no groups; 1: groups; 2: groups of which every other one is damaged. The rest says how many members they
    /// have.
    groups: u8,
    /// 0: no digests of frames; 1: known ones; 2: ones that are known when something is fetched once more; 3: damaged
    /// ones.
    frames: u8,
}

/// A release in memory.
struct Made {
    index: Index,
    weak_hashes: Vec<u8>,
    objects: HashMap<String, Vec<u8>>,
}

pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(data)) else { return };
    if case.image.is_empty() || case.image.len() > MOST_BLOCKS {
        return;
    }
    let image: Vec<u8> = case.image.iter().flat_map(|number| block(*number)).collect();
    let before = partition_before(&case, &image);
    let mut made = make(&case, &image);
    assert_eq!(Index::decode(&made.index.encode()).unwrap(), made.index);
    for (place, bits) in &case.wrong_hashes {
        if let Some(byte) = made.weak_hashes.get_mut(24 + usize::from(*place)) {
            *byte ^= bits;
        }
    }
    // Bits behind a short last chunk are a contradiction, and refused.
    let Ok(weak_hashes) = WeakHashes::decode(made.weak_hashes.clone(), &made.index) else { return };

    let unreadable = (case.unreadable > 200).then(|| u64::from(case.unreadable - 200) * BLOCK as u64);
    let target = Partition { unreadable, ..Partition::new(before.clone()) };
    let done = Done::default();
    let sizes = (made.index.chunk_bytes(), made.index.image_bytes());
    let survey = Survey::of(sizes, before.len() as u64, &target, &done).unwrap();
    check_outline(&made.index, &survey);
    let (scan, blocks) = survey.compare(&made.index);
    let comparison = scan.into_comparison();
    check_comparison(&made.index, &comparison, &before, &image, unreadable.is_some());

    let deltas = deltas(&case, &mut made, &before, &image, &comparison, &blocks);
    let found = case.with_hashes.then_some(FoundBlocks { weak_hashes: weak_hashes.clone(), blocks: blocks.clone() });
    let room = usize::from(case.buffer_blocks % 64);
    let plan = Plan::with_small_buffer(&made.index, &comparison, Reuse { found, deltas, kept: None }, room);
    let mut plan = match groups(&case, &mut made, &image) {
        Some(groups) => plan.with_groups(&made.index, groups),
        None => plan,
    };
    plan.frames = frames(case.frames % 4, &mut made);
    assert_eq!(plan.totals.right_bytes + plan.totals.changed_bytes(), made.index.image_bytes());
    assert!(plan.moves.peak_blocks <= room);

    let source = Objects {
        objects: made.objects,
        lies: case.lies,
        lies_for_ever: case.lies_for_ever,
        hasty: AtomicU32::new(u32::from(case.hasty)),
        ..Objects::default()
    };
    let work = Work { plan: &plan, source: &source, target: &target, done: &done, read_behind: case.read_behind };
    let result = apply(&made.index, &comparison, work, &WritePermit::without_environment());
    let after = target.content();
    match result {
        Ok(written) => {
            assert!(after[..image.len()] == image[..], "written, and the partition is not the image");
            assert!(after[image.len()..] == before[image.len()..], "something behind the image was written");
            if unreadable.is_none() {
                let scan = verify::read_back(written, &target, &done);
                assert!(Verified::from_scan(scan).is_ok(), "written, and reads back wrong");
            }
        }
        Err(error) => {
            let text = chain(&error);
            let has_cause = case.lies_for_ever || case.hasty > 0 || unreadable.is_some() || before.len() < image.len();
            assert!(has_cause, "failed without a cause: {text}");
            if before.len() >= image.len() && !plan.is_empty() {
                assert!(after[..BLOCK].iter().all(|byte| *byte == 0), "a half-written system has a superblock: {text}");
            }
        }
    }
}

fn partition_before(case: &Case, image: &[u8]) -> Vec<u8> {
    let blocks = case.image.len();
    let own = case.partition.iter().take(blocks + 40);
    let mut before: Vec<u8> = own.flat_map(|number| block(*number)).collect();
    before.resize(before.len().max((blocks + usize::from(case.longer % 24)) * BLOCK), 0);
    for (from, to, count) in &case.copies {
        for place in 0..usize::from(*count) {
            let from = (usize::from(*from) + place) % blocks * BLOCK;
            let to = (usize::from(*to) + place) * BLOCK;
            if let Some(there) = before.get_mut(to..to + BLOCK) {
                there.copy_from_slice(&image[from..from + BLOCK]);
            }
        }
    }
    before
}

fn make(case: &Case, image: &[u8]) -> Made {
    let mut builder = Builder::new(image.len() as u64, MIN_CHUNK_BYTES).unwrap();
    let mut weak_hashes = WeakHashes::builder(MIN_CHUNK_BYTES);
    let mut known: HashMap<&[u8], u32> = HashMap::new();
    // Packs begin with bytes of no chunk, so that no two are alike.
    let mut packs: Vec<Vec<u8>> = vec![vec![9; usize::from(case.gap)]];
    let mut extents = vec![(0, 0, u64::from(case.gap))];
    for content in image.chunks(CHUNK) {
        if content.iter().all(|byte| *byte == 0) {
            builder.push_chunk(ChunkContent::Zero);
            continue;
        }
        let stored = *known.entry(content).or_insert_with(|| {
            let bytes = zstd::bulk::compress(content, 1).unwrap();
            let stored = builder.store(Digest::of(content), bytes.len() as u32);
            if let Some(split) = case.splits.get(stored as usize).filter(|split| stored > 0 && *split % 3 == 0) {
                if split % 2 == 0 {
                    packs.push([&stored.to_le_bytes()[..], &vec![1; usize::from(*split)]].concat());
                } else {
                    packs.last_mut().unwrap().extend(vec![2; usize::from(*split) * 90]);
                }
                extents.push((stored, packs.len() - 1, packs.last().unwrap().len() as u64));
            }
            packs.last_mut().unwrap().extend_from_slice(&bytes);
            weak_hashes.push(&WeakHashes::of_chunk(content));
            stored
        });
        builder.push_chunk(ChunkContent::Stored(stored));
    }
    let mut objects = HashMap::new();
    for (first, pack, offset_bytes) in extents.into_iter().filter(|_| !known.is_empty()) {
        let bytes = &packs[pack];
        let pack = Pack { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 };
        objects.insert(object_path(&pack.digest), bytes.clone());
        builder.push_extent(first, pack, offset_bytes);
    }
    Made { index: builder.finish().unwrap(), weak_hashes: weak_hashes.encode(), objects }
}

/// What a robot puts together of the outline and its partition is the index.
fn check_outline(index: &Index, survey: &Survey) {
    let object = zstd::bulk::compress(&Outline::encode(index), 1).unwrap();
    let mut outline = Outline::from_object(&object).unwrap();
    outline.guess(|chunk| survey.digest(chunk));
    for page in outline.wrong_pages() {
        outline.learn(page.map(|stored| (stored, *index.digest(stored))));
    }
    let whole = outline.complete().unwrap();
    assert!(whole == *index && whole.to_object() == index.to_object());
    if survey.content() == Some(content_of(index)) {
        survey.to_index().unwrap();
    }
}

fn check_comparison(index: &Index, comparison: &Comparison, before: &[u8], image: &[u8], has_unreadable: bool) {
    for chunk in 0..index.chunk_count() {
        let range = index.chunk_range(chunk);
        let range = range.start as usize..range.end as usize;
        let same = before.get(range.clone()) == Some(&image[range]);
        assert!(same || !comparison.is_right(chunk), "chunk {chunk} is called right");
        assert!(comparison.is_right(chunk) || !same || has_unreadable, "chunk {chunk} is called wrong");
    }
}

/// Digests of the frames.
fn frames(kind: u8, made: &mut Made) -> FrameDigests {
    if kind == 0 || made.index.stored_count() == 0 {
        return FrameDigests::default();
    }
    let digest = |stored| {
        let place = made.index.location(stored);
        let pack = &made.objects[&object_path(&made.index.packs()[place.pack as usize].digest)];
        Digest::of(&pack[place.range.start as usize..place.range.end as usize]).half()
    };
    let mut digests: Vec<HalfDigest> = (0..made.index.stored_count()).map(digest).collect();
    let sums = frames::sums(&digests);
    let object = |bytes: &[u8]| Object { blake3: Digest::of(bytes), size_bytes: bytes.len() as u64 };
    let objects = FrameObjects { sums: object(&sums), digests: object(digests.as_flattened()) };
    let mut known = FrameDigests::new(Some(objects), &made.index);
    if kind == 1 {
        assert!(known.take_sums(&sums) && known.take_page(0, digests.as_flattened()));
    }
    if kind == 3 {
        digests[0][3] ^= 0x55;
    }
    made.objects.insert(object_path(&objects.sums.blake3), sums);
    made.objects.insert(object_path(&objects.digests.blake3), digests.into_flattened());
    known
}

/// Groups of the image's full chunks, and of chunks that it does not have, some of them damaged.
fn groups(case: &Case, made: &mut Made, image: &[u8]) -> Option<Groups> {
    let (kind, per_group) = (case.groups % 3, 1 + usize::from(case.groups / 3 % 7));
    if kind == 0 {
        return None;
    }
    let mut members: Vec<(Option<u32>, Vec<u8>)> = Vec::new();
    for (chunk, content) in (0..).zip(image.chunks(CHUNK)) {
        let ChunkContent::Stored(stored) = made.index.chunk_content(chunk) else { continue };
        if content.len() == CHUNK && members.iter().all(|(known, _)| *known != Some(stored)) {
            members.push((Some(stored), content.to_vec()));
        }
    }
    if case.groups > 128 {
        members.insert(members.len() / 2, (None, vec![9; CHUNK]));
    }
    let (mut groups, mut bytes, mut list) = (Groups::default(), Vec::new(), Vec::new());
    for (number, members) in members.chunks(per_group).enumerate() {
        let content: Vec<u8> = members.iter().flat_map(|(_, content)| content).copied().collect();
        let group = zstd::bulk::compress(&content, 1).unwrap();
        let start = bytes.len() as u64;
        bytes.extend_from_slice(&group);
        let digest = Digest::of(&group).half();
        if kind == 2 && number % 2 == 0 {
            bytes[start as usize + group.len() / 2] ^= 0x55;
        }
        list.push((start..bytes.len() as u64, digest, members.iter().map(|(stored, _)| *stored).collect::<Vec<_>>()));
    }
    bytes.push(0);
    let pack = Pack { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
    made.objects.insert(object_path(&pack.digest), bytes);
    groups.push_pack(pack);
    list.into_iter().for_each(|(range, digest, members)| groups.push_to_last(range, digest, &members));
    let object = zstd::bulk::compress(&groups.encode(), 3).unwrap();
    Some(Groups::from_object(&object, &made.index).unwrap())
}

/// Deltas that add to the bytes of what is really there, in the place of the chunks and somewhere else, some of them
/// damaged.
fn deltas(
    case: &Case,
    made: &mut Made,
    before: &[u8],
    image: &[u8],
    comparison: &Comparison,
    blocks: &Blocks,
) -> Option<FittingDeltas> {
    let (kind, step) = (case.deltas % 3, u32::from(case.deltas / 3));
    if kind == 0 {
        return None;
    }
    let is_stored = |chunk: &u32| matches!(made.index.chunk_content(*chunk), ChunkContent::Stored(_));
    let chunks: Vec<u32> = (1..made.index.chunk_count()).filter(is_stored).collect();
    let (mut bytes, mut list) = (Vec::new(), Vec::new());
    let there = (before.len() / BLOCK) as u32;
    for (number, chunks) in chunks.chunks(1 + step as usize % 4).enumerate() {
        let elsewhere = 1 + (step * 7 + chunks[0]) % there.max(2);
        let ranges = [elsewhere..elsewhere + 3, chunks[0] * 4..(chunks[0] + 1) * 4];
        let sources: Vec<_> = ranges.into_iter().filter(|range| range.end <= there).collect();
        let old: Vec<u8> = sources
            .iter()
            .flat_map(|range| &before[range.start as usize * BLOCK..range.end as usize * BLOCK])
            .copied()
            .collect();
        let places = chunks.iter().map(|chunk| made.index.chunk_range(*chunk));
        let new: Vec<u8> = places.flat_map(|range| &image[range.start as usize..range.end as usize]).copied().collect();
        let add = old.len().min(new.len());
        let sums: Vec<u8> = new.iter().zip(&old).map(|(new, old)| new.wrapping_sub(*old)).collect();
        let mut difference = DifferenceBuilder::default();
        difference.push(&sums, &new[add..], 0);
        let mut delta = zstd::bulk::compress(&difference.finish(), 1).unwrap();
        let digest = Digest::of(&delta).half();
        if kind == 2 && number % 2 == 0 {
            let middle = delta.len() / 2;
            delta[middle] ^= 0x55;
        }
        let base = fingerprint(WeakHashes::of_chunk(&old).into_iter());
        list.push((chunks.to_vec(), sources, base, delta.len() as u32, digest));
        bytes.extend_from_slice(&delta);
    }
    let pack = Pack { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
    made.objects.insert(object_path(&pack.digest), bytes);
    let mut table = Deltas::new(pack);
    for (chunks, sources, base, length, digest) in &list {
        table.push(Delta { chunks, sources, base: *base, length: *length, digest: *digest });
    }
    let object = zstd::bulk::compress(&table.encode(), 3).unwrap();
    let table = Deltas::from_object(&object, pack, &made.index).unwrap();
    Some(FittingDeltas::new(table, comparison, blocks))
}
