//! Reads the partition back, past the page cache, and compares every frame: the only way to [`Verified`].

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::index::{FrameNo, Index};
use crate::plan::Survey;
use crate::sys::block::AlignedBuf;
use crate::target::BlockTarget;
use crate::write::Written;

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

/// Every byte of the image was read back from the medium and is right. Only [`crate::boot`] takes it.
#[derive(Debug)]
pub struct Verified(());

impl<'i> Reading<'i> {
    /// Reads every frame of the image on several threads. `done_bytes` counts what was read.
    ///
    /// A frame that cannot be read counts as wrong: writing it again is how a disk heals a bad sector.
    #[must_use]
    pub fn of(index: &'i Index, target: &dyn BlockTarget, done_bytes: &AtomicU64) -> Self {
        let frames: Vec<FrameNo> = (0..index.frame_count()).collect();
        Self::of_frames(index, Survey::nothing_right(index), &frames, target, done_bytes)
    }

    /// Reads back what was written. Frames that were right before were read in this same run.
    #[must_use]
    pub fn back(written: Written<'i>, target: &dyn BlockTarget, done_bytes: &AtomicU64) -> Self {
        let index = written.index;
        // Frame 0 was blanked and put back even if it had been right.
        let frames: Vec<FrameNo> = match written.bytes {
            0 => Vec::new(),
            _ => (0..index.frame_count()).filter(|frame| *frame == 0 || !written.before.is_right(*frame)).collect(),
        };
        Self::of_frames(index, written.before, &frames, target, done_bytes)
    }

    /// The proof, or what is wrong.
    ///
    /// # Errors
    /// The survey to plan the next write with.
    pub fn into_verified(self) -> Result<Verified, Survey> {
        if self.survey.all_right() { Ok(Verified(())) } else { Err(self.survey) }
    }

    /// What was found.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Byte ranges that are wrong.
    #[must_use]
    pub fn damaged_ranges(&self) -> Vec<Range<u64>> {
        self.survey.damaged_ranges(self.index)
    }

    fn of_frames(
        index: &'i Index,
        before: Survey,
        frames: &[FrameNo],
        target: &dyn BlockTarget,
        done_bytes: &AtomicU64,
    ) -> Self {
        let groups = contiguous_groups(index, frames);
        let next = AtomicU32::new(0);
        let results: Mutex<Vec<(FrameNo, bool)>> = Mutex::new(Vec::with_capacity(frames.len()));
        let read_errors = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut buffer = AlignedBuf::zeroed(group_bytes(index) as usize);
                    loop {
                        let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed) as usize) else { return };
                        let found = compare(index, group, target, &mut buffer, &read_errors);
                        results.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                        let bytes = index.frame_range(group.end - 1).end - index.frame_range(group.start).start;
                        done_bytes.fetch_add(bytes, Ordering::Relaxed);
                    }
                });
            }
        });
        let mut right: Vec<bool> = (0..index.frame_count()).map(|frame| before.is_right(frame)).collect();
        for (frame, is_right) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            right[frame as usize] = is_right;
        }
        let read_errors = read_errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { index, survey: Survey::new(index, right), read_errors }
    }
}

fn group_bytes(index: &Index) -> u64 {
    READ_BYTES.max(u64::from(index.frame_bytes()))
}

/// Runs of neighbouring frames of at most [`group_bytes`].
fn contiguous_groups(index: &Index, frames: &[FrameNo]) -> Vec<Range<FrameNo>> {
    let per_group = (group_bytes(index) / u64::from(index.frame_bytes())) as u32;
    let mut groups: Vec<Range<FrameNo>> = Vec::new();
    for frame in frames {
        match groups.last_mut() {
            Some(last) if last.end == *frame && last.end - last.start < per_group => last.end += 1,
            _ => groups.push(*frame..frame + 1),
        }
    }
    groups
}

fn compare(
    index: &Index,
    group: &Range<FrameNo>,
    target: &dyn BlockTarget,
    buffer: &mut AlignedBuf,
    read_errors: &Mutex<Vec<(Range<u64>, String)>>,
) -> Vec<(FrameNo, bool)> {
    let start = index.frame_range(group.start).start;
    let end = index.frame_range(group.end - 1).end;
    // A partition shorter than the image: what lies beyond is wrong, and the size check names the cause.
    if end <= target.size_bytes() && target.read_at(start, &mut buffer[..(end - start) as usize]).is_ok() {
        let check = |frame: FrameNo| {
            let range = index.frame_range(frame);
            let content = &buffer[(range.start - start) as usize..(range.end - start) as usize];
            (frame, index.matches(frame, content))
        };
        return group.clone().map(check).collect();
    }
    // One bad sector must not condemn its neighbours: frame by frame.
    let mut found = Vec::new();
    for frame in group.clone() {
        let range = index.frame_range(frame);
        let content = &mut buffer[..(range.end - range.start) as usize];
        let right = match target.read_at(range.start, content) {
            Ok(()) => index.matches(frame, content),
            Err(error) => {
                read_errors.lock().unwrap_or_else(PoisonError::into_inner).push((range, error.to_string()));
                false
            }
        };
        found.push((frame, right));
    }
    found
}
