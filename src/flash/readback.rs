//! What the medium holds, read past the page cache and compared frame by frame with an index.
//!
//! Comparing is not yet a proof: only [`crate::flash::verify`] makes one of it.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::flash::plan::{Blocks, Survey};
use crate::flash::target::BlockTarget;
use crate::record::progress::Done;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest, is_zero};
use crate::release::hints::{Hint, MAX_BLOCKS};
use crate::release::index::{FrameContent, FrameNo, Index};
use crate::sys::block::AlignedBuf;

/// Bytes one thread reads at a time: large enough for full speed with direct I/O.
const READ_BYTES: u64 = 1024 * 1024;

/// What the medium holds, compared with an index.
#[derive(Debug)]
pub struct Reading<'i> {
    index: &'i Index,
    survey: Survey,
    /// Ranges that the device could not read, with its error, for the report.
    pub read_errors: Vec<(Range<u64>, String)>,
}

impl<'i> Reading<'i> {
    /// Reads every frame of the image on several threads. `done` counts what was read.
    ///
    /// A frame that cannot be read counts as wrong: writing it again is how a disk heals a bad sector.
    #[must_use]
    pub fn of(index: &'i Index, target: &dyn BlockTarget, done: &Done) -> Self {
        let comparison = Comparison::new(index, &Survey::nothing_right(index));
        comparison.run(target, &groups(index, 0..index.frame_count()), READERS, done);
        comparison.into_reading()
    }

    /// The same, and hashes what is not right and what lies behind the image up to `search_bytes`: blocks of it may
    /// belong elsewhere. At most [`MAX_BLOCKS`] are hashed.
    #[must_use]
    pub fn searching(index: &'i Index, search_bytes: u64, target: &dyn BlockTarget, done: &Done) -> (Self, Blocks) {
        let search_bytes = search_bytes.max(index.image_bytes()).min(target.size_bytes());
        let blocks = (search_bytes as usize / BLOCK_SIZE_BYTES).min(MAX_BLOCKS);
        let mut comparison = Comparison::new(index, &Survey::nothing_right(index));
        comparison.hints = (0..blocks).map(|_| AtomicU64::new(Hint::NONE.bits())).collect();
        comparison.run(target, &groups(index, 0..index.frame_count()), READERS, done);
        comparison.hash_behind(target, done);
        let hints = std::mem::take(&mut comparison.hints).into_iter();
        let blocks = Blocks::new(hints.map(|hint| Hint::from_bits(hint.into_inner())).collect());
        (comparison.into_reading(), blocks)
    }

    /// What was found.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The same, without what it was compared with.
    #[must_use]
    pub fn into_survey(self) -> Survey {
        self.survey
    }

    /// Byte ranges that are wrong.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<Range<u64>> {
        self.survey.damaged_ranges(self.index)
    }
}

/// Reads back what is being written, a part at a time.
#[derive(Debug)]
pub struct ReadBack<'i> {
    comparison: Comparison<'i>,
    /// By frame: written in this run and not read back since.
    owed: Vec<AtomicBool>,
}

impl<'i> ReadBack<'i> {
    /// For a write that leaves alone what is right in `before`; that was read in this same run.
    #[must_use]
    pub fn new(index: &'i Index, before: &Survey) -> Self {
        // Frame 0 is blanked and put back even if it had been right.
        let owed = (0..index.frame_count()).map(|frame| AtomicBool::new(frame == 0 || !before.is_right(frame)));
        Self { owed: owed.collect(), comparison: Comparison::new(index, before) }
    }

    /// For a partition to which nothing was written.
    #[must_use]
    pub fn of_nothing(index: &'i Index, before: &Survey) -> Self {
        let owed = (0..index.frame_count()).map(|_| AtomicBool::new(false)).collect();
        Self { owed, comparison: Comparison::new(index, before) }
    }

    /// Reads frames that were written and flushed. With one thread: writing goes on meanwhile.
    pub fn read(&self, target: &dyn BlockTarget, frames: &[FrameNo], done: &Done) {
        self.comparison.run(target, &groups(self.comparison.index, frames.iter().copied()), 1, done);
        frames.iter().for_each(|frame| self.owed[*frame as usize].store(false, Ordering::Relaxed));
    }

    /// What [`finish`](Self::finish) is going to read.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        let owed = self.owed.iter().filter(|owed| owed.load(Ordering::Relaxed)).count() as u64;
        owed * u64::from(self.comparison.index.frame_bytes())
    }

    /// Reads what is left, on several threads.
    #[must_use]
    pub fn finish(self, target: &dyn BlockTarget, done: &Done) -> Reading<'i> {
        let owed = (0..).zip(&self.owed).filter(|(_, owed)| owed.load(Ordering::Relaxed)).map(|(frame, _)| frame);
        self.comparison.run(target, &groups(self.comparison.index, owed), READERS, done);
        self.comparison.into_reading()
    }
}

/// More threads than cores: while one waits for the device, another hashes.
const READERS: usize = usize::MAX;

#[derive(Debug)]
struct Comparison<'i> {
    index: &'i Index,
    digest_of_zeros: Digest,
    right: Vec<AtomicBool>,
    /// Hints of the blocks that are not right, [`Hint::NONE`] of those that are; empty when they are not wanted.
    hints: Vec<AtomicU64>,
    read_errors: Mutex<Vec<(Range<u64>, String)>>,
}

impl<'i> Comparison<'i> {
    fn new(index: &'i Index, before: &Survey) -> Self {
        let right = (0..index.frame_count()).map(|frame| AtomicBool::new(before.is_right(frame))).collect();
        let digest_of_zeros = Digest::of(&vec![0; index.frame_bytes() as usize]);
        Self { index, digest_of_zeros, right, hints: Vec::new(), read_errors: Mutex::default() }
    }

    fn into_reading(self) -> Reading<'i> {
        let right = self.right.into_iter().map(AtomicBool::into_inner).collect();
        let read_errors = self.read_errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        Reading { index: self.index, survey: Survey::new(self.index, right), read_errors }
    }

    fn run(&self, target: &dyn BlockTarget, groups: &[Range<FrameNo>], most_threads: usize, done: &Done) {
        in_parallel(groups, most_threads, group_bytes(self.index), |group, buffer| {
            self.compare(group, target, buffer);
            let bytes = self.index.frame_range(group.end - 1).end - self.index.frame_range(group.start).start;
            done.disk(bytes);
        });
    }

    fn compare(&self, group: &Range<FrameNo>, target: &dyn BlockTarget, buffer: &mut AlignedBuf) {
        let start = self.index.frame_range(group.start).start;
        let end = self.index.frame_range(group.end - 1).end;
        // A partition shorter than the image: what lies beyond is wrong, and the size check names the cause.
        if end <= target.size_bytes() && target.read_at(start, &mut buffer[..(end - start) as usize]).is_ok() {
            for frame in group.clone() {
                let range = self.index.frame_range(frame);
                self.judge(frame, &buffer[(range.start - start) as usize..(range.end - start) as usize]);
            }
            return;
        }
        // One bad sector must not condemn its neighbours: frame by frame.
        for frame in group.clone() {
            let range = self.index.frame_range(frame);
            let content = &mut buffer[..(range.end - range.start) as usize];
            match target.read_at(range.start, content) {
                Ok(()) => self.judge(frame, content),
                Err(error) => {
                    self.right[frame as usize].store(false, Ordering::Relaxed);
                    let mut errors = self.read_errors.lock().unwrap_or_else(PoisonError::into_inner);
                    errors.push((range, error.to_string()));
                }
            }
        }
    }

    fn judge(&self, frame: FrameNo, content: &[u8]) {
        // A blank partition is not worth hashing: what a frame of zeros has for a digest is known.
        let blank = content.len() as u64 == u64::from(self.index.frame_bytes()) && is_zero(content);
        let right = match self.index.frame_content(frame) {
            FrameContent::Stored(stored) if blank => *self.index.digest(stored) == self.digest_of_zeros,
            _ => self.index.matches(frame, content),
        };
        self.right[frame as usize].store(right, Ordering::Relaxed);
        if !right && !blank {
            self.hash(self.index.frame_range(frame).start, content);
        }
    }

    fn hash(&self, offset: u64, content: &[u8]) {
        let hints = self.hints.iter().skip(offset as usize / BLOCK_SIZE_BYTES);
        for (hint, block) in hints.zip(content.chunks(BLOCK_SIZE_BYTES)) {
            hint.store(Hint::of(block).bits(), Ordering::Relaxed);
        }
    }

    /// What lies behind the image.
    fn hash_behind(&self, target: &dyn BlockTarget, done: &Done) {
        let end = (self.hints.len() * BLOCK_SIZE_BYTES) as u64;
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
    READ_BYTES.max(u64::from(index.frame_bytes()))
}

/// Runs of neighbouring frames of at most [`group_bytes`].
fn groups(index: &Index, frames: impl Iterator<Item = FrameNo>) -> Vec<Range<FrameNo>> {
    let per_group = (group_bytes(index) / u64::from(index.frame_bytes())) as u32;
    let mut groups: Vec<Range<FrameNo>> = Vec::new();
    for frame in frames {
        match groups.last_mut() {
            Some(last) if last.end == frame && last.end - last.start < per_group => last.end += 1,
            _ => groups.push(frame..frame + 1),
        }
    }
    groups
}
