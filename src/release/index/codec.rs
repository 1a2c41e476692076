//! The bytes of an index: the header that says how much follows, then the sections.

use std::io::{ErrorKind, Read};

use super::{Extent, Index, IndexError, MAX_CHUNKS, Pack, VERSION, check_sizes, count, inconsistent};
use crate::release::cursor::Cursor;
use crate::release::digest::{BLOCK_SIZE_U32, Digest};
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHIX";
const HEADER_BYTES: usize = 48;
pub(super) const PACK_BYTES: u64 = 40;
pub(super) const EXTENT_BYTES: u64 = 16;
const CHUNK_BYTES: u64 = 4;
const STORED_BYTES: u64 = 36;

/// Entries that are read at a time.
const PIECE_ENTRIES: usize = 1024;

/// Size of the largest index, before compression: every chunk is stored, in an extent and a pack of its own.
pub(super) const MAX_ENCODED_BYTES: u64 =
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
        Self::read(&mut content)
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
        Self::read(&mut &bytes[..])
    }

    /// Reads an index a section at a time, so that its bytes are not held beside what is made of them.
    fn read(content: &mut dyn Read) -> Result<Self, IndexError> {
        let mut bytes = Vec::new();
        content.take(HEADER_BYTES as u64).read_to_end(&mut bytes).map_err(IndexError::Compressed)?;
        // The header says how much may follow. No more than that is decompressed, plus one byte that shows an excess.
        let header = Header::read(&bytes)?;
        let expected = header.expected_bytes();
        let mut sections = Sections { content, found: HEADER_BYTES, expected };
        let index = header.sections(&mut sections)?;
        sections.end()?;
        index.checked()
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
        self.encode_packs_and_extents(&mut out);
        u32s(&mut out, &self.chunks);
        u32s(&mut out, &self.lengths);
        self.digests.iter().for_each(|digest| out.extend_from_slice(&digest.0));
        out
    }

    pub(super) fn encode_packs_and_extents(&self, out: &mut Vec<u8>) {
        for pack in &self.packs {
            out.extend_from_slice(&pack.digest.0);
            out.extend_from_slice(&pack.size_bytes.to_le_bytes());
        }
        for extent in &self.extents {
            out.extend_from_slice(&extent.first.to_le_bytes());
            out.extend_from_slice(&extent.pack.to_le_bytes());
            out.extend_from_slice(&extent.offset_bytes.to_le_bytes());
        }
    }

    /// Makes the object of the index: a zstd frame that holds the bytes as they are. Whoever knows them can make the
    /// very same object, so that its digest proves an index that was put together from parts.
    #[must_use]
    pub fn to_object(&self) -> Vec<u8> {
        zstd_frame::uncompressed(&self.encode())
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

    /// Reads what follows the header.
    fn sections(&self, sections: &mut Sections<'_>) -> Result<Index, IndexError> {
        let pack = |bytes: &[u8; 40]| {
            let mut cursor = Cursor::new(bytes);
            Some(Pack { digest: Digest(cursor.array()?), size_bytes: cursor.u64()? })
        };
        let extent = |bytes: &[u8; 16]| {
            let mut cursor = Cursor::new(bytes);
            Some(Extent { first: cursor.u32()?, pack: cursor.u32()?, offset_bytes: cursor.u64()? })
        };
        let number = |bytes: &[u8; 4]| Some(u32::from_le_bytes(*bytes));
        Ok(Index {
            chunk_bytes: self.chunk_bytes,
            image_bytes: self.image_bytes,
            packs: sections.list(self.packs, pack)?,
            extents: sections.list(self.extents, extent)?,
            chunks: sections.list(self.chunks, number)?,
            lengths: sections.list(self.stored, number)?,
            digests: sections.list(self.stored, |bytes| Some(Digest(*bytes)))?,
            marks: Vec::new(),
        })
    }
}

/// The bytes behind the header, as far as they were read.
struct Sections<'a> {
    content: &'a mut dyn Read,
    found: usize,
    expected: u64,
}

impl Sections<'_> {
    /// Reads a section of `count` entries, whose number the header has been checked for.
    fn list<T, const N: usize>(
        &mut self,
        count: u32,
        entry: impl Fn(&[u8; N]) -> Option<T>,
    ) -> Result<Vec<T>, IndexError> {
        let mut entries = Vec::with_capacity(count as usize);
        let mut piece = vec![0; PIECE_ENTRIES * N];
        while entries.len() < count as usize {
            let wanted = (count as usize - entries.len()).min(PIECE_ENTRIES);
            let bytes = &mut piece[..wanted * N];
            if self.fill(bytes)? < bytes.len() {
                return Err(IndexError::Size { found: self.found, expected: self.expected });
            }
            entries.extend(bytes.as_chunks().0.iter().filter_map(&entry));
        }
        Ok(entries)
    }

    /// Refuses bytes behind the last section.
    fn end(&mut self) -> Result<(), IndexError> {
        match self.fill(&mut [0])? {
            0 => Ok(()),
            _ => Err(IndexError::Size { found: self.found, expected: self.expected }),
        }
    }

    /// Fills `buffer` as far as there are bytes, and returns their number.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, IndexError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.content.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(IndexError::Compressed(error)),
            }
        }
        self.found += filled;
        Ok(filled)
    }
}
