//! Signed releases whose numbers are made to contradict each other, through the whole of a recovery. What contradicts
//! itself is refused before the first write, what is installed is what was signed, and the disk, which is honest here,
//! is never called failing.

use std::collections::HashMap;

use arbitrary::{Arbitrary, Unstructured};
use reflash::chain::chain;
use reflash::flash::write::WriteError;
use reflash::jobs::recovery::{self, Identity, Policy, RecoveryError, RecoveryJob, Resources};
use reflash::record::journal::Journal;
use reflash::release::deltas::{Delta, Deltas};
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::{ChunkContent, Index};
use reflash::release::manifest::{DeltaObjects, FORMAT, Image, Manifest, Object, object_path};
use reflash::release::weak_hashes::WeakHashes;

use super::manifest::Signer;
use super::memory::{Objects, Partition, block};
use crate::raw_index::RawIndex;

const CHUNK: usize = 16 * 1024;
const MOST_BLOCKS: usize = 40;

#[derive(Arbitrary, Debug)]
struct Case {
    /// Blocks of the image, of which there are so many. Lists of a fixed length, because lists of any length are mostly
    /// empty when chance makes them.
    block_count: u8,
    blocks: [u8; 12],
    /// Chunks that are zeros, and those that are like the first one, by their bits.
    zero_chunks: u8,
    like_the_first: u8,
    partition: [u8; 8],
    longer: u8,
    /// One change shows more than many, of which the first is refused: so many are made, and of the other faults at
    /// most one.
    change_count: u8,
    other_fault: u8,
    changes: [Change; 3],
    /// Bytes of the encoded index that are flipped, before it is compressed and signed.
    flips: Vec<(u16, u8)>,
    wrapping: Wrapping,
    weak_hashes: Option<Vec<u8>>,
    hash_flips: Vec<(u16, u8)>,
    deltas: Vec<(u8, u8, u16, u64)>,
    delta_bytes: Vec<u8>,
    /// What stands in the manifest instead of the size of the image.
    image_bytes: Option<Number>,
    /// Members of groups of so many, each the stored chunk; the group's bytes are what stands in place of deltas, or a
    /// frame.
    groups: Vec<u8>,
    per_group: u8,
}

/// A number, with those that overflow as likely as small ones.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Number {
    Small(u8),
    Medium(u16),
    NearU32(u8),
    NearU64(u8),
    Any(u64),
    /// That much more or less than what is there.
    By(i8),
}

impl Number {
    fn of(self, old: u64) -> u64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Medium(number) => number.into(),
            Self::NearU32(less) => u64::from(u32::MAX) - u64::from(less),
            Self::NearU64(less) => u64::MAX - u64::from(less),
            Self::Any(number) => number,
            Self::By(difference) => old.wrapping_add_signed(difference.into()),
        }
    }
}

/// One change of the index. Places count round the list that they are in.
#[derive(Arbitrary, Debug)]
enum Change {
    ImageBytes(Number),
    ChunkBytes(Number),
    Count(u8, Number),
    PackBytes(u8, Number),
    PackDigest(u8, u8),
    AddPack(u8, Number),
    ExtentFirst(u8, Number),
    ExtentPack(u8, Number),
    ExtentOffset(u8, Number),
    AddExtent(u8, Number, Number, Number),
    RemoveExtent(u8),
    SwapExtents(u8, u8),
    /// An extent that is cut in two. The second part is where it was, which is harmless, or somewhere else.
    SplitExtent(u8, Option<Number>),
    Chunk(u8, Number),
    ZeroChunk(u8),
    AddChunk(Number),
    RemoveChunk(u8),
    Length(u8, Number),
    Digest(u8, u8),
    AddStored(u8, Number),
    RemoveStored(u8),
    /// The content of a chunk becomes so many bytes, with the right digest.
    ContentBytes(u8, u16),
    /// A bit of what is stored is flipped.
    PackBit(u16, u8),
}

#[derive(Arbitrary, Debug)]
enum Wrapping {
    Frame,
    Trailing(u8),
    Twice,
    Cut(u8),
    Raw,
}

/// The release before it is signed.
struct Draft {
    index: RawIndex,
    /// Compressed chunks.
    stored: Vec<Vec<u8>>,
    image: Vec<u8>,
    pack_bits: Vec<(u16, u8)>,
}

impl Case {
    /// Leaves most faults out, so that what is behind the first check is reached too.
    fn thinned(mut self) -> Self {
        let fault = self.other_fault % 8;
        if fault != 1 {
            self.wrapping = Wrapping::Frame;
        }
        if fault != 2 {
            self.flips.clear();
        }
        if fault != 3 {
            self.image_bytes = None;
        }
        self
    }
}

pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary(&mut Unstructured::new(data)).map(Case::thinned) else { return };
    let mut draft = Draft::new(&image(&case));
    case.changes.iter().take([0, 1, 1, 3][usize::from(case.change_count % 4)]).for_each(|change| draft.change(change));
    let before = partition(&case);
    let expected = expectation(&case, &draft, before.len() as u64);
    let (objects, index) = sign(&case, draft);
    for reads_back in [true, false] {
        recover(&objects, index.as_ref(), &before, reads_back, expected);
    }
}

/// What must come of a release, as far as that can be said without asking the code under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Its numbers contradict each other: nothing is written.
    Refused,
    /// Everything in it is right.
    Installed,
    /// Neither is known.
    Anything,
}

fn expectation(case: &Case, draft: &Draft, partition_bytes: u64) -> Expected {
    let is_one_frame = matches!(case.wrapping, Wrapping::Frame | Wrapping::Cut(0));
    let image_bytes = draft.index.image_bytes;
    let is_same_size = case.image_bytes.is_none_or(|number| number.of(image_bytes) == image_bytes);
    if !case.flips.is_empty() {
        // The encoded bytes are not those of the draft.
        return Expected::Anything;
    }
    if !is_one_frame || !is_same_size || !is_consistent(&draft.index) {
        return Expected::Refused;
    }
    match draft.pack_bits.is_empty() && image_bytes <= partition_bytes && draft.has_right_content() {
        true => Expected::Installed,
        false => Expected::Anything,
    }
}

/// Whether the numbers of an index fit each other: `docs/release-format.md` once more, in other words.
fn is_consistent(index: &RawIndex) -> bool {
    let RawIndex { chunk_bytes, image_bytes, packs, extents, chunks, lengths, digests, counts } = index;
    let lens = [chunks.len(), lengths.len(), extents.len(), packs.len()];
    let counts_fit = counts.iter().zip(lens).all(|(count, len)| count.is_none_or(|count| count as usize == len));
    let sizes_fit = matches!(chunk_bytes.trailing_zeros(), 14..=22)
        && chunk_bytes.is_power_of_two()
        && *image_bytes > 0
        && image_bytes.is_multiple_of(4096)
        && image_bytes.div_ceil(u64::from(*chunk_bytes)) == chunks.len() as u64;
    let is_used = |stored: usize| chunks.contains(&(stored as u32));
    let chunks_fit = chunks.iter().all(|chunk| *chunk == u32::MAX || (*chunk as usize) < lengths.len())
        && (0..lengths.len()).all(is_used)
        && lengths.len() == digests.len();
    let are_distinct = all_differ(digests.iter()) && all_differ(packs.iter().map(|(digest, _)| digest));
    if !counts_fit || !sizes_fit || !chunks_fit || !are_distinct {
        return false;
    }
    let is_short = !image_bytes.is_multiple_of(u64::from(*chunk_bytes));
    let last = chunks[chunks.len() - 1];
    if is_short && last != u32::MAX && chunks.iter().filter(|chunk| **chunk == last).count() > 1 {
        return false;
    }
    let limit = chunk_bytes + chunk_bytes / 128 + 1024;
    let Some(places) = places(index).filter(|_| lengths.iter().all(|length| (1..=limit).contains(length))) else {
        return false;
    };
    let ends_fit = places.iter().all(|(pack, range)| range.end <= u128::from(packs[*pack].1));
    let all_apart = places.iter().enumerate().all(|(at, (pack, range))| {
        places[..at].iter().all(|(other, taken)| other != pack || taken.end <= range.start || range.end <= taken.start)
    });
    ends_fit && all_apart && (0..packs.len()).all(|pack| places.iter().any(|(named, _)| *named == pack))
}

fn all_differ<T: Ord>(list: impl Iterator<Item = T>) -> bool {
    let list: Vec<T> = list.collect();
    let count = list.len();
    list.into_iter().collect::<std::collections::BTreeSet<T>>().len() == count
}

/// The pack and the bytes of each stored chunk; `None` where the extents are out of order or name no pack.
fn places(index: &RawIndex) -> Option<Vec<(usize, std::ops::Range<u128>)>> {
    let mut places = Vec::new();
    for (at, (first, pack, offset)) in index.extents.iter().enumerate() {
        let end = index.extents.get(at + 1).map_or(index.lengths.len(), |next| next.0 as usize);
        let first = *first as usize;
        if first != places.len() || first >= end || end > index.lengths.len() || *pack as usize >= index.packs.len() {
            return None;
        }
        let mut start = u128::from(*offset);
        for length in &index.lengths[first..end] {
            places.push((*pack as usize, start..start + u128::from(*length)));
            start += u128::from(*length);
        }
    }
    (places.len() == index.lengths.len()).then_some(places)
}

/// Numbers of the blocks of the image.
fn image(case: &Case) -> Vec<u8> {
    let of_chunk = |chunk: usize, block: usize| match (
        case.zero_chunks >> (chunk % 8) & 1,
        case.like_the_first >> (chunk % 8) & 1,
    ) {
        (1, _) => 0,
        (0, 1) => case.blocks[block],
        _ => case.blocks[(chunk * 4 + block) % 12].wrapping_add(chunk as u8),
    };
    (0..1 + usize::from(case.block_count) % MOST_BLOCKS).map(|at| of_chunk(at / 4, at % 4)).collect()
}

fn partition(case: &Case) -> Vec<u8> {
    let len = image(case).len() + usize::from(case.longer % 8);
    (0..len).flat_map(|at| block(case.partition[at % 8].wrapping_add(at as u8))).collect()
}

impl Draft {
    fn new(blocks: &[u8]) -> Self {
        let image: Vec<u8> = blocks.iter().flat_map(|number| block(*number)).collect();
        let mut stored: Vec<Vec<u8>> = Vec::new();
        let mut known: HashMap<&[u8], u32> = HashMap::new();
        let mut index = RawIndex { chunk_bytes: CHUNK as u32, image_bytes: image.len() as u64, ..RawIndex::default() };
        for content in image.chunks(CHUNK) {
            let number = match content.iter().all(|byte| *byte == 0) {
                true => u32::MAX,
                false => *known.entry(content).or_insert_with(|| {
                    let bytes = zstd::bulk::compress(content, 1).unwrap();
                    index.lengths.push(bytes.len() as u32);
                    index.digests.push(Digest::of(content).0);
                    stored.push(bytes);
                    stored.len() as u32 - 1
                }),
            };
            index.chunks.push(number);
        }
        if !stored.is_empty() {
            let bytes = stored.concat();
            index.packs.push((Digest::of(&bytes).0, bytes.len() as u64));
            index.extents.push((0, 0, 0));
        }
        Self { index, stored, image, pack_bits: Vec::new() }
    }

    fn change(&mut self, change: &Change) {
        let index = &mut self.index;
        let u32_of = |number: &Number, old: u32| number.of(old.into()) as u32;
        match change {
            Change::ImageBytes(number) => index.image_bytes = number.of(index.image_bytes),
            Change::ChunkBytes(number) => index.chunk_bytes = u32_of(number, index.chunk_bytes),
            Change::Count(which, number) => index.counts[usize::from(which % 4)] = Some(u32_of(number, 3)),
            Change::PackBytes(at, number) => with(&mut index.packs, *at, |pack| pack.1 = number.of(pack.1)),
            Change::PackDigest(at, byte) => with(&mut index.packs, *at, |pack| pack.0[0] = *byte),
            Change::AddPack(byte, number) => index.packs.push(([*byte; 32], number.of(100))),
            Change::ExtentFirst(at, number) => {
                with(&mut index.extents, *at, |extent| extent.0 = u32_of(number, extent.0));
            }
            Change::ExtentPack(at, number) => {
                with(&mut index.extents, *at, |extent| extent.1 = u32_of(number, extent.1));
            }
            Change::ExtentOffset(at, number) => {
                with(&mut index.extents, *at, |extent| extent.2 = number.of(extent.2));
            }
            Change::AddExtent(at, first, pack, offset) => {
                let at = usize::from(*at) % (index.extents.len() + 1);
                index.extents.insert(at, (u32_of(first, 1), u32_of(pack, 0), offset.of(0)));
            }
            Change::RemoveExtent(at) => remove(&mut index.extents, *at),
            Change::SwapExtents(one, other) => swap(&mut index.extents, *one, *other),
            Change::SplitExtent(at, number) => split(index, *at, *number),
            Change::Chunk(at, number) => with(&mut index.chunks, *at, |chunk| *chunk = u32_of(number, *chunk)),
            Change::ZeroChunk(at) => with(&mut index.chunks, *at, |chunk| *chunk = u32::MAX),
            Change::AddChunk(number) => index.chunks.push(u32_of(number, 0)),
            Change::RemoveChunk(at) => remove(&mut index.chunks, *at),
            Change::Length(at, number) => with(&mut index.lengths, *at, |length| *length = u32_of(number, *length)),
            Change::Digest(at, byte) => with(&mut index.digests, *at, |digest| digest[0] = *byte),
            Change::AddStored(byte, length) => {
                index.lengths.push(u32_of(length, 10));
                index.digests.push([*byte; 32]);
            }
            Change::RemoveStored(at) => {
                remove(&mut index.lengths, *at);
                remove(&mut index.digests, *at);
            }
            Change::ContentBytes(at, len) => self.content_bytes(*at, usize::from(*len)),
            Change::PackBit(place, bit) => self.pack_bits.push((*place, *bit)),
        }
    }

    /// Whether what lies in the places of a consistent index is what its digests say, in the lengths of the places.
    fn has_right_content(&self) -> bool {
        let (index, bytes) = (&self.index, self.stored.concat());
        let Some(places) = places(index) else { return false };
        index.chunks.iter().enumerate().filter(|(_, stored)| **stored != u32::MAX).all(|(chunk, stored)| {
            let (_, range) = &places[*stored as usize];
            let frame = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let Some(frame) = frame.and_then(|(start, end)| bytes.get(start..end)) else { return false };
            // Whole frames as they were made only: what else decompresses is not for this oracle to say.
            let start = chunk as u64 * u64::from(index.chunk_bytes);
            let len = (index.image_bytes - start).min(u64::from(index.chunk_bytes)) as usize;
            self.stored.iter().any(|made| made == frame)
                && zstd::bulk::decompress(frame, len).is_ok_and(|content| {
                    content.len() == len && Digest::of(&content).0 == index.digests[*stored as usize]
                })
        })
    }

    fn content_bytes(&mut self, at: u8, len: usize) {
        if self.stored.is_empty() || self.stored.len() != self.index.lengths.len() {
            return;
        }
        let at = usize::from(at) % self.stored.len();
        let content = vec![7; len];
        self.stored[at] = zstd::bulk::compress(&content, 1).unwrap();
        self.index.lengths[at] = self.stored[at].len() as u32;
        self.index.digests[at] = Digest::of(&content).0;
        let bytes = self.stored.concat();
        if let Some(pack) = self.index.packs.first_mut() {
            *pack = (Digest::of(&bytes).0, bytes.len() as u64);
        }
    }
}

fn with<T>(list: &mut [T], at: u8, change: impl FnOnce(&mut T)) {
    let len = list.len();
    if len > 0 {
        change(&mut list[usize::from(at) % len]);
    }
}

fn remove<T>(list: &mut Vec<T>, at: u8) {
    if !list.is_empty() {
        list.remove(usize::from(at) % list.len());
    }
}

fn swap<T>(list: &mut [T], one: u8, other: u8) {
    if !list.is_empty() {
        list.swap(usize::from(one) % list.len(), usize::from(other) % list.len());
    }
}

fn split(index: &mut RawIndex, at: u8, number: Option<Number>) {
    if index.lengths.len() < 2 || index.extents.len() != 1 {
        return;
    }
    let at = 1 + usize::from(at) % (index.lengths.len() - 1);
    let before: u64 = index.lengths[..at].iter().map(|length| u64::from(*length)).sum();
    let there = index.extents[0].2.wrapping_add(before);
    index.extents.push((at as u32, 0, number.map_or(there, |number| number.of(there))));
}

/// Puts the objects and the signed manifest together. Also returns the index, if it can be read.
fn sign(case: &Case, draft: Draft) -> (HashMap<String, Vec<u8>>, Option<Index>) {
    let mut objects = HashMap::new();
    let mut put = |bytes: Vec<u8>| {
        let object = Object { blake3: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
        objects.insert(object_path(&object.blake3), bytes);
        object
    };
    let mut encoded = draft.index.encode();
    for (place, bits) in case.flips.iter().take(4) {
        let place = usize::from(*place) % encoded.len();
        encoded[place] ^= bits;
    }
    let index = Index::decode(&encoded).ok();
    let frame = zstd::bulk::compress(&encoded, 1).unwrap();
    let object = match &case.wrapping {
        Wrapping::Frame => frame,
        Wrapping::Trailing(byte) => [&frame[..], &[*byte]].concat(),
        Wrapping::Twice => [&frame[..], &frame].concat(),
        Wrapping::Cut(less) => frame[..frame.len().saturating_sub(usize::from(*less))].to_vec(),
        Wrapping::Raw => encoded,
    };
    let hashes = case.weak_hashes.is_some().then(|| {
        let mut weak_hashes = WeakHashes::builder(CHUNK as u32);
        // As many as there are contents; the numbers of the index may have moved on.
        draft.image.chunks(CHUNK).take(draft.index.lengths.len()).for_each(|chunk| {
            weak_hashes.push(&WeakHashes::of_chunk(chunk));
        });
        let mut bytes = weak_hashes.encode();
        for (place, bits) in &case.hash_flips {
            let place = usize::from(*place) % bytes.len();
            bytes[place] ^= bits;
        }
        bytes.extend_from_slice(case.weak_hashes.as_deref().unwrap_or_default());
        put(bytes)
    });
    let deltas = (!case.deltas.is_empty()).then(|| {
        let pack = put(case.delta_bytes.clone());
        let mut table = Deltas::new(reflash::release::index::Pack { digest: pack.blake3, size_bytes: pack.size_bytes });
        for (chunk, block, length, base) in &case.deltas {
            let block = u32::from(*block);
            table.push(Delta {
                chunks: &[u32::from(*chunk)],
                sources: &[block..block + 1],
                base: *base,
                length: u32::from(*length),
                digest: Digest::of(&case.delta_bytes).half(),
            });
        }
        let table = put(zstd::bulk::compress(&table.encode(), 1).unwrap());
        DeltaObjects { from: String::new(), digests: None, table, pack }
    });
    let groups = (!case.groups.is_empty()).then(|| {
        let mut bytes = Vec::new();
        let mut list = Vec::new();
        for members in case.groups.chunks(1 + usize::from(case.per_group % 8)) {
            let content: Vec<u8> = members.iter().flat_map(|member| vec![*member; CHUNK]).collect();
            let frame = zstd::bulk::compress(&content, 1).unwrap();
            let group = if case.per_group % 2 == 0 { &case.delta_bytes } else { &frame };
            let start = bytes.len() as u64;
            bytes.extend_from_slice(group);
            let members: Vec<_> = members.iter().map(|member| (*member < 200).then(|| u32::from(*member))).collect();
            list.push((start..bytes.len() as u64, Digest::of(group).half(), members));
        }
        let pack = put(bytes);
        let mut table = Groups::default();
        table.push_pack(reflash::release::index::Pack { digest: pack.blake3, size_bytes: pack.size_bytes });
        list.into_iter().for_each(|(range, digest, members)| table.push_to_last(range, digest, &members));
        put(zstd::bulk::compress(&table.encode(), 1).unwrap())
    });
    let described = Image {
        name: "system".to_owned(),
        size_bytes: case.image_bytes.map_or(draft.index.image_bytes, |number| number.of(draft.index.image_bytes)),
        sha256: String::new(),
        index: put(object),
        weak_hashes: hashes,
        parts: None,
        deltas: deltas.into_iter().collect(),
        groups,
        frames: None,
        ostree_commit: None,
        ostree_ref: None,
    };
    // The pack lies where the index looks for it, with bits flipped behind its digest.
    for (digest, _) in &draft.index.packs {
        let mut bytes = draft.stored.concat();
        for (place, bit) in draft.pack_bits.iter().filter(|_| !draft.stored.is_empty()) {
            let place = usize::from(*place) % bytes.len();
            bytes[place] ^= 1 << (bit % 8);
        }
        objects.insert(object_path(&Digest(*digest)), bytes);
    }
    let manifest = Manifest {
        format: FORMAT,
        product: "demo".to_owned(),
        hardware: vec!["unit-a".to_owned()],
        channel: "stable".to_owned(),
        version: "1".to_owned(),
        serial: 1,
        created_unix_s: 1_700_000_000,
        minimum_agent: "0.1.0".to_owned(),
        images: vec![described],
        layout: None,
        files: Vec::new(),
    };
    let json = serde_json::to_vec(&manifest).unwrap();
    objects.insert("stable/manifest.json.minisig".to_owned(), Signer::get().sign(&json).into_bytes());
    objects.insert("stable/manifest.json".to_owned(), json);
    (objects, index)
}

fn recover(
    objects: &HashMap<String, Vec<u8>>,
    index: Option<&Index>,
    before: &[u8],
    reads_back: bool,
    expected: Expected,
) {
    let source = Objects { objects: objects.clone(), ..Objects::default() };
    let target = Partition::new(before.to_vec());
    let journal = Journal::silent();
    let job = RecoveryJob {
        identity: Identity { product: "demo".into(), hardware: "unit-a".into(), channel: "stable".into() },
        policy: Policy::default(),
        resources: Resources::new(&Signer::get().keys, &source, &target),
        journal: &journal,
    };
    let result =
        if reads_back { recovery::run(&job, None).map(drop) } else { recovery::write_only(&job, None).map(drop) };
    let after = target.content();
    let writes = target.writes.load(std::sync::atomic::Ordering::Relaxed);
    match result {
        Ok(()) => {
            assert_ne!(expected, Expected::Refused, "a contradiction was installed");
            let index = index.expect("only an index that can be read is installed");
            let image_bytes = index.image_bytes() as usize;
            for chunk in 0..index.chunk_count() {
                let range = index.chunk_range(chunk);
                let content = &after[range.start as usize..range.end as usize];
                let right = match index.chunk_content(chunk) {
                    ChunkContent::Zero => content.iter().all(|byte| *byte == 0),
                    ChunkContent::Stored(stored) => Digest::of(content) == *index.digest(stored),
                };
                assert!(right, "installed, and chunk {chunk} is not what was signed");
            }
            assert!(after[image_bytes..] == before[image_bytes..], "something behind the image was written");
        }
        Err(error) => {
            let text = chain(&error);
            assert_ne!(expected, Expected::Installed, "a good release was refused: {text}");
            assert!(expected != Expected::Refused || writes == 0, "a contradiction was written: {text}");
            match &error {
                RecoveryError::ReadBack { .. } => panic!("an honest disk is called failing: {text}"),
                RecoveryError::Write(WriteError::NotDelivered { .. }) => panic!("an honest source is blamed: {text}"),
                RecoveryError::Write(WriteError::TooLarge { .. })
                | RecoveryError::Manifest(_)
                | RecoveryError::Index(_)
                | RecoveryError::SizesDiffer { .. }
                | RecoveryError::Fetch { .. } => assert_eq!(writes, 0, "refused, and written before: {text}"),
                _ => assert!(after[..4096].iter().all(|byte| *byte == 0), "a superblock is left: {text}"),
            }
            assert!(error.is_of_the_release() || error.is_retryable(), "neither release nor source: {text}");
        }
    }
}
