//! Adds frames and parts below what is kept, in long writes.

use std::io;

use super::header::KeptPart;
use crate::flash::plan::FramePlace;
use crate::flash::target::{AlignedBuf, BlockTarget};
use crate::release::digest::{BLOCK_SIZE_BYTES as BLOCK, Digest};
use crate::release::index::StoredChunkNo;

/// Bytes that are written at a time, unless one frame is larger.
const WRITE_BYTES: usize = 1024 * 1024;

/// The reason why something could not be kept.
#[derive(Debug)]
pub(super) enum AppendError {
    /// The room is used up.
    Full,
    /// The device failed.
    Device(io::Error),
}

/// The lower end of what is kept, which moves down.
pub(super) struct Appender<'a> {
    target: &'a dyn BlockTarget,
    /// Offset below which nothing may be written: there the images lie.
    floor: u64,
    /// Lowest offset that was written.
    pub(super) low: u64,
    buffer: AlignedBuf,
    filled: usize,
    /// Frames in the buffer, by offsets in it.
    waiting: Vec<FramePlace>,
    /// Frames that were handed to the device, each with the stored chunk of the release that is kept.
    pub(super) entries: Vec<FramePlace>,
}

impl<'a> Appender<'a> {
    /// Starts below `low`. There are at most `count` frames, and each has at most `frame_bytes`.
    pub(super) fn new(target: &'a dyn BlockTarget, floor: u64, low: u64, count: usize, frame_bytes: usize) -> Self {
        let buffer = AlignedBuf::zeroed(WRITE_BYTES.max(frame_bytes).next_multiple_of(BLOCK));
        Self { target, floor, low, buffer, filled: 0, waiting: Vec::new(), entries: Vec::with_capacity(count) }
    }

    /// Adds the frame of a stored chunk. It may wait in memory until [`flush`](Self::flush).
    pub(super) fn frame(&mut self, stored: StoredChunkNo, frame: &[u8]) -> Result<(), AppendError> {
        if self.filled + frame.len() > self.buffer.len() {
            self.flush()?;
        }
        let length = u32::try_from(frame.len()).map_err(|_| AppendError::Full)?;
        let place = self.buffer.get_mut(self.filled..self.filled + frame.len()).ok_or(AppendError::Full)?;
        place.copy_from_slice(frame);
        self.waiting.push(FramePlace { stored, length, offset: self.filled as u64 });
        self.filled += frame.len();
        Ok(())
    }

    /// Adds a part of any length.
    pub(super) fn part(&mut self, content: &[u8]) -> Result<KeptPart, AppendError> {
        self.flush()?;
        let offset = self.move_down(content.len())?;
        for (piece, at) in content.chunks(self.buffer.len()).zip((offset..).step_by(self.buffer.len())) {
            let padded = piece.len().next_multiple_of(BLOCK);
            self.buffer[..piece.len()].copy_from_slice(piece);
            self.buffer[piece.len()..padded].fill(0);
            self.target.write_at(at, &self.buffer[..padded]).map_err(AppendError::Device)?;
        }
        Ok(KeptPart { offset, copy: 0, length: content.len() as u64, digest: Digest::of(content) })
    }

    /// Adds the second copy of a part: no single bad sector takes both.
    pub(super) fn copy(&mut self, part: KeptPart, content: &[u8]) -> Result<KeptPart, AppendError> {
        Ok(KeptPart { copy: self.part(content)?.offset, ..part })
    }

    /// Hands the frames that wait in memory to the device. They are durable after its own flush.
    pub(super) fn flush(&mut self) -> Result<(), AppendError> {
        if self.filled == 0 {
            return Ok(());
        }
        let offset = self.move_down(self.filled)?;
        let padded = self.filled.next_multiple_of(BLOCK);
        self.buffer[self.filled..padded].fill(0);
        self.target.write_at(offset, &self.buffer[..padded]).map_err(AppendError::Device)?;
        self.filled = 0;
        let placed = self.waiting.drain(..).map(|entry| FramePlace { offset: offset + entry.offset, ..entry });
        self.entries.extend(placed);
        Ok(())
    }

    fn move_down(&mut self, length: usize) -> Result<u64, AppendError> {
        let padded = length.next_multiple_of(BLOCK) as u64;
        let offset = self.low.checked_sub(padded).filter(|offset| *offset >= self.floor).ok_or(AppendError::Full)?;
        self.low = offset;
        Ok(offset)
    }
}
