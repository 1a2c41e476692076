//! Making an index, frame by frame.

use super::{Extent, FrameContent, Index, IndexError, Pack, StoredNo, ZERO_FRAME, check_sizes};
use crate::release::digest::Digest;

/// Collects an image's frames in order and becomes its [`Index`].
#[derive(Debug)]
pub struct Builder {
    index: Index,
}

impl Builder {
    /// Starts the index of an image of `image_bytes` with frames of `frame_bytes`.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] for sizes that the format does not allow.
    pub fn new(image_bytes: u64, frame_bytes: u32) -> Result<Self, IndexError> {
        check_sizes(image_bytes, frame_bytes)?;
        let empty = Index {
            frame_bytes,
            image_bytes,
            packs: Vec::new(),
            frames: Vec::new(),
            digests: Vec::new(),
            extents: Vec::new(),
            lengths: Vec::new(),
            offsets: Vec::new(),
            pack_of: Vec::new(),
        };
        Ok(Self { index: empty })
    }

    /// Registers a stored frame and returns its number.
    pub fn store(&mut self, digest: Digest, compressed_bytes: u32) -> StoredNo {
        let number = self.index.digests.len() as StoredNo;
        self.index.digests.push(digest);
        self.index.lengths.push(compressed_bytes);
        number
    }

    /// Appends the next frame of the image.
    pub fn push_frame(&mut self, content: FrameContent) {
        self.index.frames.push(match content {
            FrameContent::Zero => ZERO_FRAME,
            FrameContent::Stored(number) => number,
        });
    }

    /// Says that the stored frames from `first` on lie back to back in `pack` from `offset_bytes` on.
    pub fn push_extent(&mut self, first: StoredNo, pack: Pack, offset_bytes: u64) {
        let known = self.index.packs.iter().position(|other| *other == pack);
        let number = known.unwrap_or_else(|| {
            self.index.packs.push(pack);
            self.index.packs.len() - 1
        });
        self.index.extents.push(Extent { first, pack: number as u32, offset_bytes });
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`], the same checks as for a decoded one.
    pub fn finish(self) -> Result<Index, IndexError> {
        self.index.checked()
    }
}
