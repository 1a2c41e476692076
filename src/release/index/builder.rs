//! Makes an index, chunk by chunk.

use super::{ChunkContent, Extent, Index, IndexError, Pack, StoredChunkNo, ZERO_CHUNK, check_sizes, count};
use crate::release::digest::Digest;

/// Collects an image's chunks in order and becomes its [`Index`].
#[derive(Debug)]
pub struct Builder {
    index: Index,
}

impl Builder {
    /// Starts the index of an image of `image_bytes` with chunks of `chunk_bytes`.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] for sizes that the format does not allow.
    pub fn new(image_bytes: u64, chunk_bytes: u32) -> Result<Self, IndexError> {
        check_sizes(image_bytes, chunk_bytes)?;
        let empty = Index {
            chunk_bytes,
            image_bytes,
            packs: Vec::new(),
            chunks: Vec::new(),
            digests: Vec::new(),
            extents: Vec::new(),
            lengths: Vec::new(),
            marks: Vec::new(),
        };
        Ok(Self { index: empty })
    }

    /// Registers a stored chunk and returns its number.
    pub fn store(&mut self, digest: Digest, compressed_bytes: u32) -> StoredChunkNo {
        let number = count(&self.index.digests);
        self.index.digests.push(digest);
        self.index.lengths.push(compressed_bytes);
        number
    }

    /// Appends the next chunk of the image.
    pub fn push_chunk(&mut self, content: ChunkContent) {
        self.index.chunks.push(match content {
            ChunkContent::Zero => ZERO_CHUNK,
            ChunkContent::Stored(number) => number,
        });
    }

    /// Places the stored chunks from `first` on back to back in `pack`, from `offset_bytes` on.
    pub fn push_extent(&mut self, first: StoredChunkNo, pack: Pack, offset_bytes: u64) {
        let known = (0..).zip(&self.index.packs).find(|(_, other)| **other == pack);
        let number = known.map_or_else(|| count(&self.index.packs), |(number, _)| number);
        if known.is_none() {
            self.index.packs.push(pack);
        }
        self.index.extents.push(Extent { first, pack: number, offset_bytes });
    }

    /// Checks the collected chunks and returns the index.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`] for what would be refused in a decoded index too.
    pub fn finish(self) -> Result<Index, IndexError> {
        self.index.checked()
    }
}
