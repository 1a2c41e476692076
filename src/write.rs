//! Carries out a plan: fetch, decode, check, write. What comes out is [`Written`], not yet proven by read-back.
//!
//! Frame 0 holds the superblock. It is blanked before anything else changes and written last, after a flush, so
//! that a half-written system never looks like one, whoever looks.

mod pipeline;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bootenv::Recovering;
use crate::digest::{BLOCK_SIZE_BYTES, Digest, is_zero};
use crate::fetch::{FetchError, Source};
use crate::index::{FrameContent, Index};
use crate::plan::{Plan, Survey, coalesce};
use crate::sys::block::AlignedBuf;
use crate::target::BlockTarget;
use pipeline::{Decoded, fetch_again, pipeline};

/// The plan was carried out and flushed. Only [`crate::verify`] can make more of it.
#[derive(Debug)]
pub struct Written<'i> {
    pub(crate) index: &'i Index,
    /// What was known to be right before, and what was written now: the frames to read back.
    pub(crate) before: Survey,
    /// Bytes written, for the report.
    pub bytes: u64,
}

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No source delivers it.
    #[error("cannot download pack {pack}, bytes {start} to {end}")]
    Fetch {
        /// Digest of the pack.
        pack: Digest,
        /// First byte.
        start: u64,
        /// End.
        end: u64,
        /// Why.
        source: FetchError,
    },
    /// The image does not fit.
    #[error(
        "the image needs {image_bytes} bytes and {target} has {target_bytes}; the release is for a larger partition"
    )]
    TooLarge {
        /// Size of the image.
        image_bytes: u64,
        /// Device.
        target: String,
        /// Its size.
        target_bytes: u64,
    },
    /// The device failed.
    #[error("cannot {doing} {target} at byte {offset} (sector {})", offset / 512)]
    Target {
        /// What was being done.
        doing: &'static str,
        /// Device.
        target: String,
        /// Byte offset on it.
        offset: u64,
        /// What it says.
        source: io::Error,
    },
    /// zstd could not be set up.
    #[error("cannot start decompression")]
    Decompressor(#[source] io::Error),
}

impl WriteError {
    /// Whether the cause can pass by itself, so that trying again later makes sense.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::TooLarge { .. } | Self::Target { .. } | Self::Decompressor(_) => false,
        }
    }
}

/// Refuses an image that does not fit, before anything is written.
///
/// # Errors
/// [`WriteError::TooLarge`] with both sizes.
pub fn check_size(image_bytes: u64, target: &dyn BlockTarget) -> Result<(), WriteError> {
    let target_bytes = target.size_bytes();
    if image_bytes > target_bytes {
        return Err(WriteError::TooLarge { image_bytes, target: target.name().to_owned(), target_bytes });
    }
    Ok(())
}

/// Makes the target equal to the image as far as the plan goes, and flushes it. `done_bytes` counts what was
/// written and zeroed. The permit proves that a cut from here on leads back into recovery.
///
/// # Errors
/// [`WriteError`]; the target then holds some of the frames and no superblock, and running again goes on from there.
pub fn apply<'i>(
    index: &'i Index,
    survey: Survey,
    plan: &Plan,
    source: &dyn Source,
    target: &dyn BlockTarget,
    _permit: &Recovering,
    done_bytes: &AtomicU64,
) -> Result<Written<'i>, WriteError> {
    check_size(index.image_bytes(), target)?;
    if plan.is_empty() {
        return Ok(Written { index, before: survey, bytes: 0 });
    }
    let mut writer = Writer { index, plan, target, done_bytes, head: None };
    writer.withhold_head(&survey)?;
    for frame in &plan.zero {
        if *frame != 0 {
            let range = index.frame_range(*frame);
            target.zero(range.clone()).map_err(|source| writer.error("zero", range.start, source))?;
            done_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        }
    }
    let damaged = pipeline(index, &plan.requests, source, &mut writer)?;
    for request in coalesce(index, &damaged) {
        fetch_again(index, &request, source, &mut writer)?;
    }
    writer.finish()?;
    Ok(Written { index, before: survey, bytes: plan.totals.write_bytes + plan.totals.zero_bytes })
}

/// Puts checked frames where they belong and keeps the head back.
struct Writer<'a> {
    index: &'a Index,
    plan: &'a Plan,
    target: &'a dyn BlockTarget,
    done_bytes: &'a AtomicU64,
    head: Option<AlignedBuf>,
}

impl Writer<'_> {
    /// Takes the superblock off the medium before anything else changes. A head that is right already is kept in
    /// memory and put back at the end.
    fn withhold_head(&mut self, survey: &Survey) -> Result<(), WriteError> {
        let range = self.index.frame_range(0);
        let mut head = AlignedBuf::zeroed((range.end - range.start) as usize);
        match self.target.read_at(0, &mut head[..]) {
            Ok(()) if survey.is_right(0) => self.head = Some(head),
            // Already blank: a run that was cut. Do not write the block again on every attempt.
            Ok(()) if is_zero(&head[..BLOCK_SIZE_BYTES]) => return Ok(()),
            // Unreadable, and about to be written: that is how a disk heals a bad sector.
            _ => {}
        }
        let blank = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
        self.target.write_at(0, &blank[..]).map_err(|source| self.error("blank the superblock of", 0, source))?;
        self.target.flush().map_err(|source| self.error("flush", 0, source))
    }

    fn write(&mut self, frame: &Decoded) -> Result<(), WriteError> {
        for destination in self.plan.destinations(frame.stored) {
            let range = self.index.frame_range(destination);
            let content = &frame.content[..frame.len];
            if destination == 0 {
                let mut head = AlignedBuf::zeroed(frame.len);
                head.copy_from_slice(content);
                self.head = Some(head);
            } else {
                self.put(range.start, content)?;
            }
        }
        Ok(())
    }

    /// Flush, head, flush.
    fn finish(&mut self) -> Result<(), WriteError> {
        self.target.flush().map_err(|source| self.error("flush", 0, source))?;
        if let Some(head) = self.head.take() {
            self.put(0, &head[..])?;
        } else if self.index.frame_content(0) == FrameContent::Zero {
            let range = self.index.frame_range(0);
            self.target.zero(range.clone()).map_err(|source| self.error("zero", 0, source))?;
        }
        self.target.flush().map_err(|source| self.error("flush", 0, source))
    }

    fn put(&self, offset: u64, content: &[u8]) -> Result<(), WriteError> {
        self.target.write_at(offset, content).map_err(|source| self.error("write to", offset, source))?;
        self.done_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn error(&self, doing: &'static str, offset: u64, source: io::Error) -> WriteError {
        WriteError::Target { doing, target: self.target.identity(), offset, source }
    }
}
