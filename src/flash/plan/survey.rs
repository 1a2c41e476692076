//! What is on the partition, as far as it was read.

use std::ops::Range;

use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::hints::{Hint, Hints};
use crate::release::index::{FrameContent, FrameNo, Index};

/// For each frame, whether the partition already holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey(Vec<bool>);

impl Survey {
    /// A partition of which nothing is known: every frame is written.
    #[must_use]
    pub fn nothing_right(index: &Index) -> Self {
        Self(vec![false; index.frame_count() as usize])
    }

    /// Takes one flag per frame.
    ///
    /// # Panics
    /// When the number of flags is not the number of frames: they were made for another index.
    #[must_use]
    pub fn new(index: &Index, right: Vec<bool>) -> Self {
        assert_eq!(right.len(), index.frame_count() as usize, "a survey belongs to one index");
        Self(right)
    }

    /// Whether a frame is right.
    #[must_use]
    pub fn is_right(&self, frame: FrameNo) -> bool {
        self.0[frame as usize]
    }

    /// Whether all are.
    #[must_use]
    pub fn all_right(&self) -> bool {
        self.0.iter().all(|right| *right)
    }

    /// Byte ranges of the partition that are not right, neighbours joined.
    #[must_use]
    pub fn damaged_ranges(&self, index: &Index) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for frame in (0..index.frame_count()).filter(|frame| !self.is_right(*frame)) {
            let range = index.frame_range(frame);
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

/// Hints of the partition's blocks, from its beginning on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks(Vec<Hint>);

impl Blocks {
    /// One hint per block of 4096 bytes; [`Hint::NONE`] for those of zeros, unreadable ones and those of frames that
    /// are right.
    #[must_use]
    pub fn new(hints: Vec<Hint>) -> Self {
        Self(hints)
    }

    /// Whether there is anything that could be of use: a blank partition needs no search.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.iter().all(|hint| *hint == Hint::NONE)
    }

    /// Adds the blocks of frames that are right: they were not hashed, as their hints are known.
    #[must_use]
    pub fn completed(mut self, index: &Index, hints: &Hints, survey: &Survey) -> Self {
        let per_frame = index.frame_bytes() as usize / BLOCK_SIZE_BYTES;
        for frame in (0..index.frame_count()).filter(|frame| survey.is_right(*frame)) {
            if let FrameContent::Stored(stored) = index.frame_content(frame)
                && let Some(known) = hints.of(stored)
            {
                let start = frame as usize * per_frame;
                self.0.iter_mut().skip(start).zip(known).for_each(|(hint, known)| *hint = known);
            }
        }
        self
    }

    /// The hints of `count` blocks from block `from` on, if there are so many.
    pub(crate) fn range(&self, from: usize, count: usize) -> Option<impl Iterator<Item = Hint>> {
        Some(self.0.get(from..from + count)?.iter().copied())
    }

    pub(super) fn as_slice(&self) -> &[Hint] {
        &self.0
    }
}
