use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::RngSeed;
use proptest::{collection, sample};

use super::{Batch, Blocks, Comparison, FittingDeltas, FoundBlocks, Plan, Reuse, ZERO_SOURCE};
use crate::release::deltas::{Delta, Deltas, fingerprint};
use crate::release::digest::Digest;
use crate::release::index::{Builder, ChunkContent, Index, MAX_CHUNKS, MIN_CHUNK_BYTES, Pack};
use crate::release::weak_hashes::{MAX_BLOCKS, WeakHash, WeakHashes};

/// Blocks of a chunk.
const PER: usize = MIN_CHUNK_BYTES as usize / 4096;

/// An image whose chunks have these contents (`None` zero); equal numbers are equal chunks of 10,000 stored bytes.
pub(crate) fn index(chunks: &[Option<u32>]) -> Index {
    let chunk_bytes = u64::from(MIN_CHUNK_BYTES);
    let mut builder = Builder::new(chunks.len() as u64 * chunk_bytes, MIN_CHUNK_BYTES).unwrap();
    let count = chunks.iter().flatten().max().map_or(0, |last| last + 1);
    for number in 0..count {
        builder.store(Digest::of(&number.to_le_bytes()), 10_000);
    }
    for chunk in chunks {
        builder.push_chunk(chunk.map_or(ChunkContent::Zero, ChunkContent::Stored));
    }
    if count > 0 {
        let pack = Pack { digest: Digest::of(b"pack"), size_bytes: u64::from(count) * 10_000 };
        builder.push_extent(0, pack, 0);
    }
    builder.finish().unwrap()
}

#[test]
fn right_chunks_cost_nothing() {
    let index = index(&[Some(0), None, Some(1), Some(0)]);
    let plan = Plan::new(&index, &Comparison::new(&index, vec![true; 4]), Reuse::default());
    assert!(plan.is_empty() && plan.requests.is_empty());
    assert_eq!(plan.totals.right_bytes, index.image_bytes());
}

#[test]
fn a_shared_chunk_is_fetched_once_and_written_where_it_is_wrong() {
    let index = index(&[Some(0), None, Some(1), Some(0), Some(0)]);
    let plan = Plan::new(&index, &Comparison::new(&index, vec![false, false, true, true, false]), Reuse::default());
    assert_eq!(plan.zero, [1]);
    assert_eq!(plan.requests.len(), 1);
    assert_eq!((plan.requests[0].range.clone(), &plan.requests[0].stored[..]), (0..10_000, &[0][..]));
    assert_eq!(plan.destinations(0).collect::<Vec<_>>(), [0, 4]);
    assert_eq!(plan.destinations(1).count(), 0);
    let chunk = u64::from(MIN_CHUNK_BYTES);
    let totals = plan.totals;
    assert_eq!((totals.right_bytes, totals.zero_bytes, totals.write_bytes), (2 * chunk, chunk, 2 * chunk));
    assert_eq!(totals.download_bytes, 10_000);
}

#[test]
fn damage_is_named_as_joined_ranges() {
    let index = index(&[Some(0), Some(1), None, Some(2)]);
    let comparison = Comparison::new(&index, vec![true, false, false, true]);
    let chunk = u64::from(MIN_CHUNK_BYTES);
    assert_eq!(comparison.damaged_ranges(&index), vec![chunk..3 * chunk; 1]);
}

/// A number stands for the content of a block; 0 is zeros.
fn weak_hash(block: u32) -> WeakHash {
    if block == 0 { WeakHash::NONE } else { WeakHash::of(&block.to_le_bytes()) }
}

/// An image of such blocks, with what the partition holds.
struct Case {
    index: Index,
    image: Vec<u32>,
    weak_hashes: WeakHashes,
    partition: Vec<u32>,
}

impl Case {
    fn new(image: Vec<u32>, partition: Vec<u32>) -> Self {
        let mut known: HashMap<&[u32], u32> = HashMap::new();
        let mut weak_hashes = WeakHashes::builder(MIN_CHUNK_BYTES);
        let chunks: Vec<_> = image
            .chunks(PER)
            .map(|chunk| {
                let next = u32::try_from(known.len()).unwrap();
                let new = !known.contains_key(chunk);
                let number = *known.entry(chunk).or_insert(next);
                if new {
                    weak_hashes.push(&chunk.iter().map(|block| weak_hash(*block)).collect::<Vec<_>>());
                }
                Some(number)
            })
            .collect();
        Self { index: index(&chunks), image, weak_hashes, partition }
    }

    fn comparison(&self) -> Comparison {
        let right = self.image.chunks(PER).zip(self.partition.chunks(PER)).map(|(image, there)| image == there);
        let mut right: Vec<bool> = right.collect();
        right.resize(self.index.chunk_count() as usize, false);
        Comparison::new(&self.index, right)
    }

    fn plan(&self, max_blocks: usize) -> Plan {
        self.plan_with(None, max_blocks)
    }

    fn plan_with(&self, deltas: Option<u32>, max_blocks: usize) -> Plan {
        let (comparison, blocks) = (self.comparison(), self.blocks());
        let deltas = deltas.map(|seed| FittingDeltas::new(self.deltas(seed), &comparison, &blocks));
        let found = Some(FoundBlocks { weak_hashes: self.weak_hashes.clone(), blocks });
        Plan::with_buffer(&self.index, &comparison, Reuse { found, deltas, kept: None }, max_blocks)
    }

    fn blocks(&self) -> Blocks {
        Blocks::new(self.partition.iter().map(|block| weak_hash(*block)).collect())
    }

    /// The content of a batch's chunks: what deltas make needs every block that they ask for as it was.
    fn made_by_deltas(&self, batch: &Batch<'_>, content: &[u32]) -> Vec<u32> {
        let (mut made, mut at) = (Vec::new(), 0);
        for piece in batch.pieces() {
            let read = &content[at..at + piece.sources.len()];
            at += piece.sources.len();
            if piece.delta.is_none() {
                made.extend_from_slice(read);
                continue;
            }
            let before = piece.sources.iter().map(|source| self.partition[*source as usize]);
            assert!(before.eq(read.iter().copied()), "a delta reads what was overwritten");
            let of_image = piece.chunks.iter().flat_map(|chunk| &self.image[*chunk as usize * PER..][..PER]);
            made.extend(of_image.copied());
        }
        made
    }

    /// Deltas for a third of the chunks, in runs, each of which needs blocks from around its place and from elsewhere.
    fn deltas(&self, seed: u32) -> Deltas {
        let pack = Pack { digest: Digest::of(b"deltas"), size_bytes: 1 };
        let mut table = Deltas::new(pack);
        let per = u32::try_from(PER).unwrap();
        let (chunks, blocks) = (self.index.chunk_count(), u32::try_from(self.partition.len()).unwrap());
        let mut chunk = 1;
        let mut random = seed;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below.max(1)
        };
        while chunk < chunks {
            let end = (chunk + 1 + next(8)).min(chunks);
            let run: Vec<u32> = (chunk..end).collect();
            chunk = end + next(20);
            let mut sources = Vec::new();
            for _ in 0..next(4) {
                let start = 1 + next(blocks);
                sources.push(start..(start + 1 + next(40)).min(blocks).max(start + 1));
            }
            sources.retain(|range| range.end <= blocks);
            let own = (run[0] * per).min(blocks)..(end * per).min(blocks);
            if !own.is_empty() {
                sources.push(own);
            }
            let there = sources.iter().flat_map(Clone::clone).map(|block| weak_hash(self.partition[block as usize]));
            let base = fingerprint(there);
            table.push(Delta { chunks: &run, sources: &sources, base, length: 1, digest: [0; 16] });
        }
        table
    }

    /// Carries the plan out as the writer may: the reader runs `ahead` batches before the writes, and fetched chunks
    /// are written as early as allowed.
    fn carry_out(&self, plan: &Plan, ahead: usize) -> Vec<u32> {
        let mut medium = self.partition.clone();
        medium.resize(medium.len().max(self.image.len()), 0);
        medium[0] = 0; // The superblock is blanked first.
        let chunk = |number: u32| number as usize * PER..(number as usize + 1) * PER;
        let write_free = |medium: &mut Vec<u32>, read: u32| {
            let fetched = plan.destinations.iter().map(|(_, chunk)| chunk);
            for number in fetched.chain(&plan.zero).filter(|number| plan.moves.free_after(**number) <= read) {
                medium[chunk(*number)].copy_from_slice(&self.image[chunk(*number)]);
            }
        };
        write_free(&mut medium, 0);
        let mut saved: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut assembled = Vec::new();
        let mut written = 0;
        for (number, batch) in (0..).zip(plan.moves.batches()) {
            for (block, until) in batch.saves {
                saved.insert(*block, (medium[*block as usize], *until));
            }
            let mut content: Vec<u32> = batch
                .sources
                .iter()
                .map(|source| match (*source, saved.get(source)) {
                    (ZERO_SOURCE, _) => 0,
                    (_, Some((content, _))) => *content,
                    (source, None) => medium[source as usize],
                })
                .collect();
            saved.retain(|_, (_, until)| *until > number);
            if batch.pieces().any(|piece| piece.delta.is_some()) {
                content = self.made_by_deltas(&batch, &content);
            }
            assembled.push((batch, content));
            write_free(&mut medium, number + 1);
            while assembled.len() - written > ahead {
                let (batch, content) = &assembled[written];
                for (number, content) in batch.chunks.iter().zip(content.chunks(PER)) {
                    medium[chunk(*number)].copy_from_slice(content);
                }
                written += 1;
            }
        }
        for (batch, content) in &assembled[written..] {
            for (number, content) in batch.chunks.iter().zip(content.chunks(PER)) {
                medium[chunk(*number)].copy_from_slice(content);
            }
        }
        write_free(&mut medium, u32::MAX);
        if self.comparison().is_right(0) {
            medium[0] = self.image[0]; // It was kept in memory.
        }
        medium.truncate(self.image.len());
        medium
    }
}

/// An image of blocks, some of them zeros and some of them equal, and a partition with much of it: shifted, pieces
/// copied over others, shorter or longer than the image.
fn moved() -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    let image = (1..1000_usize).prop_flat_map(|chunks| {
        let blocks = u32::try_from(chunks).unwrap() * 3;
        collection::vec(0..blocks, chunks * PER)
    });
    let copies = collection::vec((any::<sample::Index>(), any::<sample::Index>(), 0..300_usize), 0..30);
    (image, 0..400_usize, copies, -50..250_isize).prop_map(|(image, shift, copies, longer)| {
        let mut partition = image.clone();
        partition.rotate_right(shift % image.len());
        for (from, to, len) in copies {
            let piece: Vec<u32> = partition[from.index(image.len())..].iter().take(len).copied().collect();
            partition[to.index(image.len())..].iter_mut().zip(piece).for_each(|(block, new)| *block = new);
        }
        partition.resize(image.len().saturating_add_signed(longer).max(1), 7);
        (image, partition)
    })
}

#[test]
fn whatever_moved_where_the_result_is_the_image() {
    let moved_bytes = Cell::new(0);
    // The same cases in every run.
    let config = ProptestConfig {
        cases: 120,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((image, partition) in moved())| {
        let case = Case::new(image, partition);
        for max_blocks in [0, 3, 100, 100_000] {
            let plan = case.plan(max_blocks);
            prop_assert!(plan.moves.peak_blocks <= max_blocks);
            prop_assert_eq!(plan.totals.right_bytes + plan.totals.changed_bytes(), case.index.image_bytes());
            for ahead in [0, 1, 1000] {
                prop_assert!(case.carry_out(&plan, ahead) == case.image, "buffer {}, ahead {}", max_blocks, ahead);
            }
            moved_bytes.set(moved_bytes.get() + plan.totals.move_bytes);
        }
    });
    assert!(moved_bytes.get() > 0);
}

/// Deltas need what lies anywhere, moves too, and all of it is overwritten in the meantime.
#[test]
fn whatever_deltas_need_is_there_when_they_are_applied() {
    let (made, moved_too) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig {
        cases: 120,
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((image, partition) in moved(), seed in any::<u32>())| {
        let case = Case::new(image, partition);
        for max_blocks in [0, 30, 100_000] {
            let plan = case.plan_with(Some(seed), max_blocks);
            prop_assert!(plan.moves.peak_blocks <= max_blocks);
            prop_assert_eq!(plan.totals.right_bytes + plan.totals.changed_bytes(), case.index.image_bytes());
            for ahead in [0, 1, 1000] {
                prop_assert!(case.carry_out(&plan, ahead) == case.image, "buffer {}, ahead {}", max_blocks, ahead);
            }
            made.set(made.get() + plan.delta_requests.iter().map(|request| request.numbers.len()).sum::<usize>());
            moved_too.set(moved_too.get() + plan.totals.move_bytes);
        }
    });
    assert!(made.get() > 1000 && moved_too.get() > 0, "{} {}", made.get(), moved_too.get());
}

#[test]
fn a_shift_needs_a_small_buffer_in_the_right_direction_and_no_download() {
    let blocks = 100_000_u32;
    let image: Vec<u32> = (1..=blocks).collect();
    for shift in [-3_i32, -1000, 3, 1000] {
        // What came to lie beyond the partition's end is lost, and its first block.
        let at = |position: i32| image.get(usize::try_from(position).ok()?).copied();
        let partition: Vec<u32> = (0..blocks.cast_signed()).map(|position| at(position - shift).unwrap_or(0)).collect();
        let case = Case::new(image.clone(), partition);
        let plan = case.plan(2000);
        let lost = (u64::from(shift.unsigned_abs()) + 2 * PER as u64 + 1) * 4096;
        assert!(plan.totals.write_bytes <= lost, "shift {shift}: {:?}", plan.totals);
        assert!(plan.moves.peak_blocks <= 1000 + PER, "shift {shift}: {}", plan.moves.peak_blocks);
        assert!(case.carry_out(&plan, 3) == case.image);
    }
}

#[test]
fn where_the_buffer_ends_the_rest_is_fetched() {
    // Two halves exchanged: in either direction half of it would have to be kept.
    let image: Vec<u32> = (1..=40_000).collect();
    let mut partition = image.clone();
    partition.rotate_left(20_000);
    let case = Case::new(image, partition);
    let all = case.plan(100_000).totals;
    assert!(all.write_bytes <= 8 * 4096 * PER as u64, "{all:?}");
    let some = case.plan(5_000);
    let kept = some.totals.move_bytes / 4096;
    assert!((20_000..=30_000).contains(&kept) && some.moves.peak_blocks == 5_000, "{kept}");
    assert!(case.carry_out(&some, 2) == case.image);
}

#[test]
fn equal_blocks_are_taken_from_where_the_ones_before_came_from() {
    // Every block of the new place stands twice on the partition; one long run is one transfer.
    let run: Vec<u32> = (1..).take(4 * PER).collect();
    let mut partition = vec![0; 20 * PER];
    for (at, block) in run.iter().enumerate() {
        partition[PER + 2 * at] = *block;
    }
    partition[12 * PER + 1..][..run.len()].copy_from_slice(&run);
    partition[PER] = 999; // The run's first block is only in the long piece.
    let mut image = vec![0; 20 * PER];
    image[17 * PER - run.len() + PER..][..run.len()].copy_from_slice(&run);
    let case = Case::new(image, partition);
    let plan = case.plan(1000);
    let sources: Vec<u32> = plan.moves.batches().flat_map(|batch| batch.sources).copied().collect();
    let start = u32::try_from(12 * PER + 1).unwrap();
    let run = (start..).take(4 * PER);
    assert!(sources.windows(4 * PER).any(|window| window.iter().copied().eq(run.clone())), "{sources:?}");
}

#[test]
fn a_content_in_more_places_than_are_listed_is_fetched_once_for_the_rest() {
    // 16 blocks in a chunk, and the same content in every chunk of the largest image.
    let chunk_bytes = 64 * 1024;
    let chunks = u32::try_from(MAX_CHUNKS).unwrap();
    let mut builder = Builder::new(MAX_CHUNKS * u64::from(chunk_bytes), chunk_bytes).unwrap();
    builder.store(Digest::of(b"everywhere"), 10_000);
    (0..chunks).for_each(|_| builder.push_chunk(ChunkContent::Stored(0)));
    builder.push_extent(0, Pack { digest: Digest::of(b"pack"), size_bytes: 10_000 }, 0);
    let index = builder.finish().unwrap();
    let of_chunk: Vec<WeakHash> = (1..17).map(weak_hash).collect();
    let mut weak_hashes = WeakHashes::builder(chunk_bytes);
    weak_hashes.push(&of_chunk);
    // It is there behind the image, and nowhere in it.
    let mut blocks = vec![WeakHash::NONE; 16 * chunks as usize];
    blocks.extend(&of_chunk);
    let found = Some(FoundBlocks { weak_hashes, blocks: Blocks::new(blocks) });
    let plan = Plan::new(&index, &Comparison::nothing_right(&index), Reuse { found, ..Reuse::default() });
    let listed: usize = plan.moves.batches().map(|batch| batch.sources.len()).sum();
    assert_eq!((listed, plan.totals.download_bytes), (MAX_BLOCKS, 10_000));
    assert_eq!(plan.destinations(0).count(), chunks as usize - MAX_BLOCKS / 16);
}
