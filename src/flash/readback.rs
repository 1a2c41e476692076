//! What the medium holds, read past the page cache and compared chunk by chunk with an index.
//!
//! The comparison is not yet a proof: only [`crate::flash::verify`] turns it into one.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::flash::plan::Comparison;
use crate::flash::target::BlockTarget;
use crate::flash::threads::{self, lock};
use crate::record::progress::Done;
use crate::release::digest::{Digest, is_zero};
use crate::release::index::{ChunkContent, ChunkNo, Index};
use crate::sys::block::AlignedBuf;

/// Bytes that one thread reads at a time: large enough for full speed with direct I/O.
pub(super) const READ_BYTES: u32 = 1024 * 1024;

/// The most threads that read in parallel, as far as the machine has cores.
pub(super) const MAX_READERS: usize = 8;

/// The most errors of a device that are kept, to show what kind of fault it is. A dead disk has one for each chunk.
pub(super) const MAX_READ_ERRORS: usize = 10;

/// The result of reading what the medium holds and comparing it with an index.
#[derive(Debug)]
pub struct Scan<'i> {
    index: &'i Index,
    comparison: Comparison,
    /// Ranges that the device could not read, each with the device's error, for the report: the first ten.
    pub read_errors: Vec<(Range<u64>, String)>,
}

impl<'i> Scan<'i> {
    /// Reads every chunk of the image on several threads. `done` counts the bytes that were read.
    ///
    /// A chunk that cannot be read counts as wrong: writing it again is how a disk heals a bad sector.
    #[must_use]
    pub fn of(index: &'i Index, target: &dyn BlockTarget, done: &Done) -> Self {
        let comparer = Comparer::new(index, &Comparison::nothing_right(index));
        comparer.compare_all(target, &groups(index, 0..index.chunk_count()), MAX_READERS, done);
        comparer.into_scan()
    }

    /// Reads only these chunks. The others count as wrong.
    #[must_use]
    pub fn of_chunks(
        index: &'i Index,
        chunks: impl Iterator<Item = ChunkNo>,
        target: &dyn BlockTarget,
        done: &Done,
    ) -> Self {
        let comparer = Comparer::new(index, &Comparison::nothing_right(index));
        comparer.compare_all(target, &groups(index, chunks), MAX_READERS, done);
        comparer.into_scan()
    }

    /// Takes the result of a comparison that was made of what was read before.
    pub(super) fn new(index: &'i Index, comparison: Comparison, read_errors: Vec<(Range<u64>, String)>) -> Self {
        Self { index, comparison, read_errors }
    }

    /// Returns which chunks are right.
    #[must_use]
    pub fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// Returns which chunks are right, without the index they were compared with.
    #[must_use]
    pub fn into_comparison(self) -> Comparison {
        self.comparison
    }

    /// Returns the byte ranges of the partition that are wrong.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<Range<u64>> {
        self.comparison.damaged_ranges(self.index)
    }
}

/// Reads back what is being written, a part at a time.
#[derive(Debug)]
pub struct ReadBack<'i> {
    comparer: Comparer<'i>,
    /// For each chunk, whether it is written in this run and not read back since.
    pending: Vec<AtomicBool>,
}

impl<'i> ReadBack<'i> {
    /// Starts the read-back of a write that skips the chunks that are right in `before`. That comparison must have been
    /// read in the same run.
    #[must_use]
    pub fn new(index: &'i Index, before: &Comparison) -> Self {
        // Chunk 0 is blanked and put back even if it had been right.
        let pending = (0..index.chunk_count()).map(|chunk| AtomicBool::new(chunk == 0 || !before.is_right(chunk)));
        Self { pending: pending.collect(), comparer: Comparer::new(index, before) }
    }

    /// Starts the read-back of a partition to which nothing was written.
    #[must_use]
    pub fn of_nothing(index: &'i Index, before: &Comparison) -> Self {
        let pending = (0..index.chunk_count()).map(|_| AtomicBool::new(false)).collect();
        Self { pending, comparer: Comparer::new(index, before) }
    }

    /// Reads chunks that were written and flushed. It does so on one thread, because writing goes on meanwhile.
    pub fn read(&self, target: &dyn BlockTarget, chunks: &[ChunkNo], done: &Done) {
        self.comparer.compare_all(target, &groups(self.comparer.index, chunks.iter().copied()), 1, done);
        chunks.iter().for_each(|chunk| self.pending[*chunk as usize].store(false, Ordering::Relaxed));
    }

    /// Whether one of these chunks, which were read, should be zeros and is not.
    #[must_use]
    pub fn has_wrong_zeros(&self, chunks: &[ChunkNo]) -> bool {
        let is_wrong = |chunk: &ChunkNo| !self.comparer.right[*chunk as usize].load(Ordering::Relaxed);
        let is_zero = |chunk: &ChunkNo| self.comparer.index.chunk_content(*chunk) == ChunkContent::Zero;
        chunks.iter().any(|chunk| is_zero(chunk) && is_wrong(chunk))
    }

    /// Returns the number of bytes that [`finish`](Self::finish) is going to read.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let pending = self.pending.iter().filter(|pending| pending.load(Ordering::Relaxed)).count() as u64;
        pending * u64::from(self.comparer.index.chunk_bytes())
    }

    /// Reads the chunks that are still pending, on several threads.
    #[must_use]
    pub fn finish(self, target: &dyn BlockTarget, done: &Done) -> Scan<'i> {
        let pending =
            (0..).zip(&self.pending).filter(|(_, pending)| pending.load(Ordering::Relaxed)).map(|(chunk, _)| chunk);
        self.comparer.compare_all(target, &groups(self.comparer.index, pending), MAX_READERS, done);
        self.comparer.into_scan()
    }
}

/// The state that the reading threads share.
#[derive(Debug)]
struct Comparer<'i> {
    index: &'i Index,
    digest_of_zeros: Digest,
    /// For each chunk, whether it is right.
    right: Vec<AtomicBool>,
    read_errors: Mutex<Vec<(Range<u64>, String)>>,
}

impl<'i> Comparer<'i> {
    fn new(index: &'i Index, before: &Comparison) -> Self {
        let right = (0..index.chunk_count()).map(|chunk| AtomicBool::new(before.is_right(chunk))).collect();
        let digest_of_zeros = Digest::of(&vec![0; index.chunk_bytes() as usize]);
        Self { index, digest_of_zeros, right, read_errors: Mutex::default() }
    }

    fn into_scan(self) -> Scan<'i> {
        let right = self.right.into_iter().map(AtomicBool::into_inner).collect();
        let read_errors = self.read_errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        Scan { index: self.index, comparison: Comparison::new(self.index, right), read_errors }
    }

    fn compare_all(&self, target: &dyn BlockTarget, groups: &[Range<ChunkNo>], max_threads: usize, done: &Done) {
        in_parallel(groups, max_threads, group_bytes(self.index) as usize, |group, buffer| {
            self.compare(group, target, buffer);
            let bytes = self.index.chunk_range(group.end - 1).end - self.index.chunk_range(group.start).start;
            done.disk(bytes);
        });
    }

    fn compare(&self, group: &Range<ChunkNo>, target: &dyn BlockTarget, buffer: &mut AlignedBuf) {
        let start = self.index.chunk_range(group.start).start;
        let content = &mut buffer[..group.clone().map(|chunk| self.index.chunk_len(chunk)).sum()];
        // When the partition is shorter than the image, the chunks beyond its end are wrong. The size check names the
        // cause.
        let fits = start + content.len() as u64 <= target.size_bytes();
        if fits && target.read_at(start, content).is_ok() {
            for (chunk, content) in group.clone().zip(content.chunks(self.index.chunk_bytes() as usize)) {
                self.compare_chunk(chunk, content);
            }
            return;
        }
        // One bad sector must not condemn the neighbours of its chunk: the chunks are read one by one.
        for chunk in group.clone() {
            let range = self.index.chunk_range(chunk);
            let content = &mut buffer[..self.index.chunk_len(chunk)];
            match target.read_at(range.start, content) {
                Ok(()) => self.compare_chunk(chunk, content),
                Err(error) => {
                    self.right[chunk as usize].store(false, Ordering::Relaxed);
                    let mut errors = lock(&self.read_errors);
                    if errors.len() < MAX_READ_ERRORS {
                        errors.push((range, error.to_string()));
                    }
                }
            }
        }
    }

    fn compare_chunk(&self, chunk: ChunkNo, content: &[u8]) {
        // Hashing a blank partition would be a waste: the digest of a chunk of zeros is known.
        let is_blank = content.len() == self.index.chunk_bytes() as usize && is_zero(content);
        let is_right = match self.index.chunk_content(chunk) {
            ChunkContent::Stored(stored) if is_blank => *self.index.digest(stored) == self.digest_of_zeros,
            _ => self.index.matches(chunk, content),
        };
        self.right[chunk as usize].store(is_right, Ordering::Relaxed);
    }
}

/// Hands the jobs out to threads, each with a buffer of its own.
pub(super) fn in_parallel<T: Sync>(
    jobs: &[T],
    max_threads: usize,
    buffer_bytes: usize,
    work: impl Fn(&T, &mut AlignedBuf) + Sync,
) {
    let next = AtomicUsize::new(0);
    let work_off_jobs = || {
        let mut buffer = AlignedBuf::zeroed(buffer_bytes);
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(job, &mut buffer);
        }
    };
    let threads = threads::count(max_threads.min(jobs.len()));
    if threads == 1 {
        return work_off_jobs();
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            threads::spawn(scope, "compare", work_off_jobs);
        }
    });
}

fn group_bytes(index: &Index) -> u32 {
    READ_BYTES.max(index.chunk_bytes())
}

/// Joins neighbouring chunks into runs of at most [`group_bytes`].
fn groups(index: &Index, chunks: impl Iterator<Item = ChunkNo>) -> Vec<Range<ChunkNo>> {
    let per_group = group_bytes(index) / index.chunk_bytes();
    let mut groups: Vec<Range<ChunkNo>> = Vec::new();
    for chunk in chunks {
        match groups.last_mut() {
            Some(last) if last.end == chunk && last.end - last.start < per_group => last.end += 1,
            _ => groups.push(chunk..chunk + 1),
        }
    }
    groups
}
