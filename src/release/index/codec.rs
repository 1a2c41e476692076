//! The bytes of an index: the header that says how much follows, then the sections.

use std::io::Read;

use super::{Extent, Index, IndexError, MAX_CHUNKS, Pack, VERSION, check_sizes, count, inconsistent};
use crate::release::cursor::Cursor;
use crate::release::digest::{BLOCK_SIZE_U32, Digest};
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHIX";
const HEADER_BYTES: usize = 48;
const PACK_BYTES: u64 = 40;
const EXTENT_BYTES: u64 = 16;
const CHUNK_BYTES: u64 = 4;
const STORED_BYTES: u64 = 36;

/// Size of the largest index, before compression: every chunk is stored, in an extent and a pack of its own.
const MAX_ENCODED_BYTES: u64 =
    HEADER_BYTES as u64 + MAX_CHUNKS * (PACK_BYTES + EXTENT_BYTES + CHUNK_BYTES + STORED_BYTES);

/// Size of the largest object of an index, bytes. Digests do not compress, and zstd adds at most one byte for 256.
pub const MAX_OBJECT_BYTES: u64 = MAX_ENCODED_BYTES + MAX_ENCODED_BYTES / 128 + 1024;

impl Index {
    /// Reads the object of an index.
    ///
    /// # Errors
    /// [`IndexError`] says why the object is refused.
    pub fn from_object(object: &[u8]) -> Result<Self, IndexError> {
        let mut content = zstd_frame::open(object, MAX_ENCODED_BYTES).map_err(IndexError::Compressed)?;
        let mut bytes = Vec::new();
        content.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(IndexError::Compressed)?;
        // The header says how much may follow. No more than that is decompressed, plus one byte that shows an excess.
        let expected = Header::read(&bytes)?.expected_bytes();
        content.take(expected - HEADER_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(IndexError::Compressed)?;
        Self::decode(&bytes)
    }

    /// Reads an index whose digest has been checked. Every number is checked nevertheless.
    ///
    /// # Errors
    /// [`IndexError`] says why the bytes are refused.
    ///
    /// # Examples
    /// An image of two chunks of 16 KiB, the first all zeros and the second stored in a pack:
    /// ```
    /// use reflash::release::digest::Digest;
    /// use reflash::release::index::{Builder, ChunkContent, Index, Pack};
    ///
    /// # fn main() -> Result<(), reflash::release::index::IndexError> {
    /// let mut builder = Builder::new(32 * 1024, 16 * 1024)?;
    /// let stored = builder.store(Digest::of(&[7; 16 * 1024]), 90);
    /// builder.push_chunk(ChunkContent::Zero);
    /// builder.push_chunk(ChunkContent::Stored(stored));
    /// builder.push_extent(stored, Pack { digest: Digest::of(b"the pack"), size_bytes: 90 }, 0);
    ///
    /// let index = Index::decode(&builder.finish()?.encode())?;
    /// assert_eq!(index.chunk_content(0), ChunkContent::Zero);
    /// assert!(index.matches(1, &[7; 16 * 1024]));
    /// assert_eq!(index.location(stored).range, 0..90);
    /// # Ok(())
    /// # }
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let header = Header::read(bytes)?;
        let (found, expected) = (bytes.len(), header.expected_bytes());
        if found as u64 != expected {
            return Err(IndexError::Size { found, expected });
        }
        header.sections(bytes).ok_or(IndexError::Size { found, expected })?.checked()
    }

    /// Encodes the index, before compression. The same index gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let u32s = |out: &mut Vec<u8>, values: &[u32]| {
            values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        };
        out.extend_from_slice(MAGIC);
        u32s(&mut out, &[VERSION, self.chunk_bytes]);
        out.extend_from_slice(&self.image_bytes.to_le_bytes());
        u32s(&mut out, &[BLOCK_SIZE_U32]);
        u32s(&mut out, &[self.chunk_count(), self.stored_count(), count(&self.extents), count(&self.packs), 0]);
        for pack in &self.packs {
            out.extend_from_slice(&pack.digest.0);
            out.extend_from_slice(&pack.size_bytes.to_le_bytes());
        }
        for extent in &self.extents {
            u32s(&mut out, &[extent.first, extent.pack]);
            out.extend_from_slice(&extent.offset_bytes.to_le_bytes());
        }
        u32s(&mut out, &self.chunks);
        u32s(&mut out, &self.lengths);
        self.digests.iter().for_each(|digest| out.extend_from_slice(&digest.0));
        out
    }
}

/// The first 48 bytes of an index.
struct Header {
    chunk_bytes: u32,
    image_bytes: u64,
    chunks: u32,
    stored: u32,
    extents: u32,
    packs: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, IndexError> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(*MAGIC) {
            return Err(IndexError::Magic);
        }
        let cut = || IndexError::Size { found: bytes.len(), expected: HEADER_BYTES as u64 };
        let mut next = || cursor.u32().ok_or_else(cut);
        let (version, chunk_bytes) = (next()?, next()?);
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let image_bytes = cursor.u64().ok_or_else(cut)?;
        let mut next = || cursor.u32().ok_or_else(cut);
        let (block_bytes, chunks, stored) = (next()?, next()?, next()?);
        let (extents, packs, reserved) = (next()?, next()?, next()?);
        if block_bytes != BLOCK_SIZE_U32 || reserved != 0 {
            return inconsistent("block size is not 4096, or the reserved field is not 0");
        }
        check_sizes(image_bytes, chunk_bytes)?;
        let header = Self { chunk_bytes, image_bytes, chunks, stored, extents, packs };
        header.check_counts()?;
        Ok(header)
    }

    /// Checks the counts against each other, so that what follows has a bound before any of it is decompressed.
    fn check_counts(&self) -> Result<(), IndexError> {
        let Self { chunks, stored, extents, packs, .. } = self;
        let expected = self.image_bytes.div_ceil(u64::from(self.chunk_bytes));
        if u64::from(*chunks) != expected {
            return inconsistent(&format!("{chunks} chunks, and the sizes ask for {expected}"));
        }
        if stored > chunks || extents > stored || packs > extents {
            return inconsistent(&format!(
                "{packs} packs, {extents} extents and {stored} stored chunks for {chunks} chunks: each is in the next"
            ));
        }
        Ok(())
    }

    /// Size of the whole index: at most 2^32 x 96 bytes, which does not overflow in 64 bits.
    fn expected_bytes(&self) -> u64 {
        let entries = [
            (self.packs, PACK_BYTES),
            (self.extents, EXTENT_BYTES),
            (self.chunks, CHUNK_BYTES),
            (self.stored, STORED_BYTES),
        ];
        HEADER_BYTES as u64 + entries.iter().map(|(count, bytes)| u64::from(*count) * bytes).sum::<u64>()
    }

    /// Reads what follows the header; `None` when the bytes end too early.
    fn sections(&self, bytes: &[u8]) -> Option<Index> {
        let mut cursor = Cursor::new(bytes);
        cursor.array::<HEADER_BYTES>()?;
        let pack = |cursor: &mut Cursor<'_>| Some(Pack { digest: Digest(cursor.array()?), size_bytes: cursor.u64()? });
        let extent = |cursor: &mut Cursor<'_>| {
            Some(Extent { first: cursor.u32()?, pack: cursor.u32()?, offset_bytes: cursor.u64()? })
        };
        Some(Index {
            chunk_bytes: self.chunk_bytes,
            image_bytes: self.image_bytes,
            packs: cursor.list(self.packs, pack)?,
            extents: cursor.list(self.extents, extent)?,
            chunks: cursor.list(self.chunks, Cursor::u32)?,
            lengths: cursor.list(self.stored, Cursor::u32)?,
            digests: cursor.list(self.stored, |cursor| cursor.array().map(Digest))?,
            offsets: Vec::new(),
            pack_of: Vec::new(),
        })
    }
}
