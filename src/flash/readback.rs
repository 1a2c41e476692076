//! What the medium holds, read past the page cache and compared chunk by chunk with an index.
//!
//! Comparing is not yet a proof: only [`crate::flash::verify`] makes one of it.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::flash::plan::{Blocks, Comparison};
use crate::flash::target::BlockTarget;
use crate::record::progress::Done;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest, is_zero};
use crate::release::index::{ChunkContent, ChunkNo, Index};
use crate::release::weak_hashes::{MAX_BLOCKS, WeakHash};
use crate::sys::block::AlignedBuf;

/// Bytes one thread reads at a time: large enough for full speed with direct I/O.
const READ_BYTES: u64 = 1024 * 1024;

/// What the medium holds, compared with an index.
#[derive(Debug)]
pub struct Scan<'i> {
    index: &'i Index,
    comparison: Comparison,
    /// Ranges that the device could not read, with its error, for the report.
    pub read_errors: Vec<(Range<u64>, String)>,
}

impl<'i> Scan<'i> {
    /// Reads every chunk of the image on several threads. `done` counts what was read.
    ///
    /// A chunk that cannot be read counts as wrong: writing it again is how a disk heals a bad sector.
    #[must_use]
    pub fn of(index: &'i Index, target: &dyn BlockTarget, done: &Done) -> Self {
        let comparison = Comparing::new(index, &Comparison::nothing_right(index));
        comparison.run(target, &groups(index, 0..index.chunk_count()), READERS, done);
        comparison.into_reading()
    }

    /// The same, and hashes what is not right and what lies behind the image up to `search_bytes`: blocks of it may
    /// belong elsewhere. At most [`MAX_BLOCKS`] are hashed.
    #[must_use]
    pub fn searching(index: &'i Index, search_bytes: u64, target: &dyn BlockTarget, done: &Done) -> (Self, Blocks) {
        let search_bytes = search_bytes.max(index.image_bytes()).min(target.size_bytes());
        let blocks = (search_bytes as usize / BLOCK_SIZE_BYTES).min(MAX_BLOCKS);
        let mut comparison = Comparing::new(index, &Comparison::nothing_right(index));
        comparison.weak_hashes = (0..blocks).map(|_| AtomicU64::new(WeakHash::NONE.bits())).collect();
        comparison.run(target, &groups(index, 0..index.chunk_count()), READERS, done);
        comparison.hash_behind(target, done);
        let weak_hashes = std::mem::take(&mut comparison.weak_hashes).into_iter();
        let blocks = Blocks::new(weak_hashes.map(|weak_hash| WeakHash::from_bits(weak_hash.into_inner())).collect());
        (comparison.into_reading(), blocks)
    }

    /// What was found.
    #[must_use]
    pub fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// The same, without what it was compared with.
    #[must_use]
    pub fn into_comparison(self) -> Comparison {
        self.comparison
    }

    /// Byte ranges that are wrong.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<Range<u64>> {
        self.comparison.damaged_ranges(self.index)
    }
}

/// Reads back what is being written, a part at a time.
#[derive(Debug)]
pub struct ReadBack<'i> {
    comparison: Comparing<'i>,
    /// By chunk: written in this run and not read back since.
    pending: Vec<AtomicBool>,
}

impl<'i> ReadBack<'i> {
    /// For a write that leaves alone what is right in `before`; that was read in this same run.
    #[must_use]
    pub fn new(index: &'i Index, before: &Comparison) -> Self {
        // Chunk 0 is blanked and put back even if it had been right.
        let pending = (0..index.chunk_count()).map(|chunk| AtomicBool::new(chunk == 0 || !before.is_right(chunk)));
        Self { pending: pending.collect(), comparison: Comparing::new(index, before) }
    }

    /// For a partition to which nothing was written.
    #[must_use]
    pub fn of_nothing(index: &'i Index, before: &Comparison) -> Self {
        let pending = (0..index.chunk_count()).map(|_| AtomicBool::new(false)).collect();
        Self { pending, comparison: Comparing::new(index, before) }
    }

    /// Reads chunks that were written and flushed. With one thread: writing goes on meanwhile.
    pub fn read(&self, target: &dyn BlockTarget, chunks: &[ChunkNo], done: &Done) {
        self.comparison.run(target, &groups(self.comparison.index, chunks.iter().copied()), 1, done);
        chunks.iter().for_each(|chunk| self.pending[*chunk as usize].store(false, Ordering::Relaxed));
    }

    /// What [`finish`](Self::finish) is going to read.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let pending = self.pending.iter().filter(|pending| pending.load(Ordering::Relaxed)).count() as u64;
        pending * u64::from(self.comparison.index.chunk_bytes())
    }

    /// Reads what is left, on several threads.
    #[must_use]
    pub fn finish(self, target: &dyn BlockTarget, done: &Done) -> Scan<'i> {
        let pending =
            (0..).zip(&self.pending).filter(|(_, pending)| pending.load(Ordering::Relaxed)).map(|(chunk, _)| chunk);
        self.comparison.run(target, &groups(self.comparison.index, pending), READERS, done);
        self.comparison.into_reading()
    }
}

/// More threads than cores: while one waits for the device, another hashes.
const READERS: usize = usize::MAX;

#[derive(Debug)]
struct Comparing<'i> {
    index: &'i Index,
    digest_of_zeros: Digest,
    right: Vec<AtomicBool>,
    /// WeakHashes of the blocks that are not right, [`WeakHash::NONE`] of those that are; empty when they are not wanted.
    weak_hashes: Vec<AtomicU64>,
    read_errors: Mutex<Vec<(Range<u64>, String)>>,
}

impl<'i> Comparing<'i> {
    fn new(index: &'i Index, before: &Comparison) -> Self {
        let right = (0..index.chunk_count()).map(|chunk| AtomicBool::new(before.is_right(chunk))).collect();
        let digest_of_zeros = Digest::of(&vec![0; index.chunk_bytes() as usize]);
        Self { index, digest_of_zeros, right, weak_hashes: Vec::new(), read_errors: Mutex::default() }
    }

    fn into_reading(self) -> Scan<'i> {
        let right = self.right.into_iter().map(AtomicBool::into_inner).collect();
        let read_errors = self.read_errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        Scan { index: self.index, comparison: Comparison::new(self.index, right), read_errors }
    }

    fn run(&self, target: &dyn BlockTarget, groups: &[Range<ChunkNo>], most_threads: usize, done: &Done) {
        in_parallel(groups, most_threads, group_bytes(self.index), |group, buffer| {
            self.compare(group, target, buffer);
            let bytes = self.index.chunk_range(group.end - 1).end - self.index.chunk_range(group.start).start;
            done.disk(bytes);
        });
    }

    fn compare(&self, group: &Range<ChunkNo>, target: &dyn BlockTarget, buffer: &mut AlignedBuf) {
        let start = self.index.chunk_range(group.start).start;
        let end = self.index.chunk_range(group.end - 1).end;
        // A partition shorter than the image: what lies beyond is wrong, and the size check names the cause.
        if end <= target.size_bytes() && target.read_at(start, &mut buffer[..(end - start) as usize]).is_ok() {
            for chunk in group.clone() {
                let range = self.index.chunk_range(chunk);
                self.judge(chunk, &buffer[(range.start - start) as usize..(range.end - start) as usize]);
            }
            return;
        }
        // One bad sector must not condemn its neighbours: chunk by chunk.
        for chunk in group.clone() {
            let range = self.index.chunk_range(chunk);
            let content = &mut buffer[..(range.end - range.start) as usize];
            match target.read_at(range.start, content) {
                Ok(()) => self.judge(chunk, content),
                Err(error) => {
                    self.right[chunk as usize].store(false, Ordering::Relaxed);
                    let mut errors = self.read_errors.lock().unwrap_or_else(PoisonError::into_inner);
                    errors.push((range, error.to_string()));
                }
            }
        }
    }

    fn judge(&self, chunk: ChunkNo, content: &[u8]) {
        // A blank partition is not worth hashing: what a chunk of zeros has for a digest is known.
        let blank = content.len() as u64 == u64::from(self.index.chunk_bytes()) && is_zero(content);
        let right = match self.index.chunk_content(chunk) {
            ChunkContent::Stored(stored) if blank => *self.index.digest(stored) == self.digest_of_zeros,
            _ => self.index.matches(chunk, content),
        };
        self.right[chunk as usize].store(right, Ordering::Relaxed);
        if !right && !blank {
            self.hash(self.index.chunk_range(chunk).start, content);
        }
    }

    fn hash(&self, offset: u64, content: &[u8]) {
        let weak_hashes = self.weak_hashes.iter().skip(offset as usize / BLOCK_SIZE_BYTES);
        for (weak_hash, block) in weak_hashes.zip(content.chunks(BLOCK_SIZE_BYTES)) {
            weak_hash.store(WeakHash::of(block).bits(), Ordering::Relaxed);
        }
    }

    /// What lies behind the image.
    fn hash_behind(&self, target: &dyn BlockTarget, done: &Done) {
        let end = (self.weak_hashes.len() * BLOCK_SIZE_BYTES) as u64;
        let steps = (self.index.image_bytes()..end).step_by(READ_BYTES as usize);
        let pieces: Vec<Range<u64>> = steps.map(|start| start..(start + READ_BYTES).min(end)).collect();
        in_parallel(&pieces, READERS, READ_BYTES, |piece, buffer| {
            let content = &mut buffer[..(piece.end - piece.start) as usize];
            // What cannot be read there is of no use, and nobody needs it.
            if target.read_at(piece.start, content).is_ok() {
                self.hash(piece.start, content);
            }
            done.disk(piece.end - piece.start);
        });
    }
}

/// Hands the jobs out to threads, each with a buffer of its own.
fn in_parallel<T: Sync>(jobs: &[T], most_threads: usize, buffer_bytes: u64, work: impl Fn(&T, &mut AlignedBuf) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let one = || {
        let mut buffer = AlignedBuf::zeroed(buffer_bytes as usize);
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(job, &mut buffer);
        }
    };
    let threads = (cores + 2).min(8).min(most_threads).min(jobs.len());
    if threads <= 1 {
        return one();
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(one);
        }
    });
}

fn group_bytes(index: &Index) -> u64 {
    READ_BYTES.max(u64::from(index.chunk_bytes()))
}

/// Runs of neighbouring chunks of at most [`group_bytes`].
fn groups(index: &Index, chunks: impl Iterator<Item = ChunkNo>) -> Vec<Range<ChunkNo>> {
    let per_group = (group_bytes(index) / u64::from(index.chunk_bytes())) as u32;
    let mut groups: Vec<Range<ChunkNo>> = Vec::new();
    for chunk in chunks {
        match groups.last_mut() {
            Some(last) if last.end == chunk && last.end - last.start < per_group => last.end += 1,
            _ => groups.push(chunk..chunk + 1),
        }
    }
    groups
}
