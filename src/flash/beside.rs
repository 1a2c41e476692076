//! A target beside another system: what the other one holds is found and copied as if it lay behind the image.
//!
//! The planner looks for blocks of an image anywhere on its target, since an older and larger image may have left some
//! behind the new one. So a release for one system is assembled from what the other one holds without another planner,
//! and without another writer: only this type knows that there are two partitions.

use std::io;
use std::ops::Range;

use super::target::BlockTarget;

/// The system that is written, with what the other system holds behind its image.
pub struct Beside<'a> {
    target: &'a dyn BlockTarget,
    other: &'a dyn BlockTarget,
    image_bytes: u64,
    other_bytes: u64,
}

impl<'a> Beside<'a> {
    /// Puts the first `other_bytes` of `other`, as far as it has them, behind an image of `image_bytes` on `target`.
    #[must_use]
    pub fn new(target: &'a dyn BlockTarget, image_bytes: u64, other: &'a dyn BlockTarget, other_bytes: u64) -> Self {
        let image_bytes = image_bytes.min(target.size_bytes());
        Self { target, other, image_bytes, other_bytes: other_bytes.min(other.size_bytes()) }
    }

    /// Refuses what is not within the image: nothing else of either system is ever written.
    fn within_image(&self, end: Option<u64>) -> io::Result<()> {
        match end {
            Some(end) if end <= self.image_bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::PermissionDenied, "only the image of this system is written")),
        }
    }
}

impl BlockTarget for Beside<'_> {
    fn name(&self) -> &str {
        self.target.name()
    }

    fn identity(&self) -> String {
        self.target.identity()
    }

    fn size_bytes(&self) -> u64 {
        self.image_bytes + self.other_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size_bytes()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let here = usize::try_from(self.image_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let (own, others) = buffer.split_at_mut(here);
        if !own.is_empty() {
            self.target.read_at(offset, own)?;
        }
        if others.is_empty() {
            return Ok(());
        }
        self.other.read_at((offset + here as u64) - self.image_bytes, others)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.within_image(offset.checked_add(content.len() as u64))?;
        self.target.write_at(offset, content)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.within_image(Some(range.end))?;
        self.target.zero(range)
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.within_image(Some(range.end))?;
        self.target.discard(range)
    }

    fn flush(&self) -> io::Result<()> {
        self.target.flush()
    }
}
