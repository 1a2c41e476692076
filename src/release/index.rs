//! The chunk index of an image: which chunks it is made of and where each is stored. Pure.
//!
//! An image is cut into chunks of one fixed size (the last may be shorter). A chunk that is all zero is not stored.
//! Every other distinct chunk is stored once, as an independent zstd frame, in a pack. Neighbours lie back to back,
//! and a pack may be one of an earlier release. What an agent needs to look for blocks on the old partition is an
//! object of its own, [`crate::release::weak_hashes`]: an agent that only compares, or writes a blank disk, never
//! downloads it.
//!
//! The object is one zstd frame around the following. All numbers little endian. Sections follow each other without
//! padding:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHIX`; u32 version 2; u32 chunk size; u64 image size; u32 block size 4096; u32 chunks; u32 stored chunks; u32 extents; u32 packs; u32 0 |
//! | packs | packs | 32 bytes BLAKE3 of the pack; u64 its size |
//! | extents | extents | u32 first stored chunk; u32 pack; u64 offset: from here stored chunks lie back to back |
//! | chunks | chunks | u32 stored chunk, or 0xffffffff for all zero |
//! | lengths | stored chunks | u32 compressed length |
//! | digests | stored chunks | 32 bytes BLAKE3 of the content |

mod builder;
mod codec;
mod locations;
pub mod outline;

use std::io;
use std::ops::Range;

use crate::release::digest::{BLOCK_SIZE_BYTES, BLOCK_SIZE_U32, Digest, is_zero};

pub use builder::Builder;
pub use codec::MAX_OBJECT_BYTES;

/// Smallest chunk size, bytes.
pub const MIN_CHUNK_BYTES: u32 = 16 * 1024;
/// Largest chunk size, bytes. Bounds the agent's memory per chunk in flight.
pub const MAX_CHUNK_BYTES: u32 = 4 * 1024 * 1024;

const VERSION: u32 = 2;
/// In the list of chunks: a chunk of zeros, which is not stored.
const ZERO_CHUNK: u32 = u32::MAX;

/// The most chunks an image may have. An index of more, about 15 MB, would be too large for a machine with little
/// memory to hold beside its work. The releasing side picks the chunk size by it; it allows images of up to 1 TiB.
pub const MAX_CHUNKS: u64 = 256 * 1024;

/// Position of a chunk in the image, from 0.
pub type ChunkNo = u32;
/// Position of a stored chunk in the index, from 0.
pub type StoredChunkNo = u32;

/// A pack: an immutable object of stored chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// BLAKE3 of the pack, which is also the pack's name.
    pub digest: Digest,
    /// Size of the pack, bytes.
    pub size_bytes: u64,
}

/// Stored chunks that lie back to back in one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First stored chunk of the extent, which goes on up to the first of the next extent.
    pub first: StoredChunkNo,
    /// Position of the pack in [`Index::packs`].
    pub pack: u32,
    /// Offset of the first stored chunk in the pack, bytes.
    pub offset_bytes: u64,
}

/// The content of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkContent {
    /// The chunk holds only zero bytes.
    Zero,
    /// The chunk holds the content of this stored chunk.
    Stored(StoredChunkNo),
}

/// The place of a stored chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Position of the pack in [`Index::packs`].
    pub pack: u32,
    /// Bytes of the compressed chunk in the pack.
    pub range: Range<u64>,
}

/// A decoded, consistent index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    chunk_bytes: u32,
    image_bytes: u64,
    packs: Vec<Pack>,
    chunks: Vec<u32>,
    digests: Vec<Digest>,
    extents: Vec<Extent>,
    lengths: Vec<u32>,
    /// Offset in its pack of every [`MARK_EVERY`](locations::MARK_EVERY)th stored chunk, derived from the extents.
    marks: Vec<u64>,
}

/// The error for bytes that are not an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The bytes are something else.
    #[error("not a chunk index: the first bytes are not RFLASHIX")]
    Magic,
    /// The index has a later format.
    #[error("chunk index version {0} is not known to this agent, which reads version {VERSION}")]
    Version(u32),
    /// The bytes are cut off, or more than the header says.
    #[error("the chunk index has {found} bytes and its header asks for {expected}")]
    Size {
        /// Number of bytes that were read.
        found: usize,
        /// Number of bytes that the header asks for.
        expected: u64,
    },
    /// Two numbers in the index contradict each other.
    #[error("the chunk index contradicts itself: {0}")]
    Inconsistent(String),
    /// The object is not a zstd frame, or is damaged.
    #[error("the chunk index cannot be decompressed")]
    Compressed(#[source] io::Error),
}

impl Index {
    /// Size of a full chunk, bytes.
    #[must_use]
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// Size of the image, bytes.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Number of chunks in the image.
    #[must_use]
    pub fn chunk_count(&self) -> ChunkNo {
        count(&self.chunks)
    }

    /// Number of stored chunks.
    #[must_use]
    pub fn stored_count(&self) -> StoredChunkNo {
        count(&self.digests)
    }

    /// Packs that the stored chunks lie in.
    #[must_use]
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// Bytes of the image that a chunk covers. `chunk` must be below [`chunk_count`](Self::chunk_count).
    #[must_use]
    pub fn chunk_range(&self, chunk: ChunkNo) -> Range<u64> {
        let start = u64::from(chunk) * u64::from(self.chunk_bytes);
        start..(start + u64::from(self.chunk_bytes)).min(self.image_bytes)
    }

    /// Length of a chunk in memory, bytes: that of a full chunk but for the last one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a chunk has at most MAX_CHUNK_BYTES, 4 MiB")]
    pub fn chunk_len(&self, chunk: ChunkNo) -> usize {
        let range = self.chunk_range(chunk);
        (range.end - range.start) as usize
    }

    /// Number of blocks of [`BLOCK_SIZE_BYTES`] in a full chunk.
    #[must_use]
    pub fn blocks_per_chunk(&self) -> u32 {
        self.chunk_bytes / BLOCK_SIZE_U32
    }

    /// Returns what a chunk holds.
    #[must_use]
    pub fn chunk_content(&self, chunk: ChunkNo) -> ChunkContent {
        match self.chunks[chunk as usize] {
            ZERO_CHUNK => ChunkContent::Zero,
            stored => ChunkContent::Stored(stored),
        }
    }

    /// Digest of a stored chunk's content.
    #[must_use]
    pub fn digest(&self, stored: StoredChunkNo) -> &Digest {
        &self.digests[stored as usize]
    }

    /// Whether a stored chunk can have this compressed length, bytes.
    #[must_use]
    pub(crate) fn is_length(&self, length: u32) -> bool {
        length != 0 && length <= compressed_limit(self.chunk_bytes)
    }

    /// Length of a stored chunk's content in memory, bytes: only the last chunk of the image can be short, and then no
    /// other place has its content.
    #[must_use]
    pub(crate) fn stored_len(&self, stored: StoredChunkNo) -> usize {
        let last = self.chunk_count() - 1;
        if self.chunks.last() == Some(&stored) { self.chunk_len(last) } else { self.chunk_bytes as usize }
    }

    /// Whether `content` is that of a stored chunk.
    #[must_use]
    pub(crate) fn is_stored(&self, stored: StoredChunkNo, content: &[u8]) -> bool {
        content.len() == self.stored_len(stored) && Digest::of(content) == *self.digest(stored)
    }

    /// Whether `content` is what the chunk must hold: the one check that decides over every write and read-back.
    #[must_use]
    pub fn matches(&self, chunk: ChunkNo, content: &[u8]) -> bool {
        match self.chunk_content(chunk) {
            ChunkContent::Zero => content.len() == self.chunk_len(chunk) && is_zero(content),
            ChunkContent::Stored(stored) => self.is_stored(stored, content),
        }
    }

    /// Returns the index if its numbers fit each other.
    fn checked(mut self) -> Result<Self, IndexError> {
        let expected_chunks = self.image_bytes.div_ceil(u64::from(self.chunk_bytes));
        if self.chunks.len() as u64 != expected_chunks {
            return inconsistent(&format!("{} chunks, and the sizes ask for {expected_chunks}", self.chunks.len()));
        }
        let stored_count = self.stored_count();
        let mut used = vec![false; self.digests.len()];
        for chunk in self.chunks.iter().filter(|chunk| **chunk != ZERO_CHUNK) {
            match used.get_mut(*chunk as usize) {
                Some(used) => *used = true,
                None => return inconsistent(&format!("stored chunk {chunk} of {stored_count} is named")),
            }
        }
        if let Some(unused) = used.iter().position(|used| !used) {
            return inconsistent(&format!("stored chunk {unused} is in no place of the image"));
        }
        // A short last chunk has content of its own length, so nothing else can share it.
        if let (false, Some((last, others))) =
            (self.image_bytes.is_multiple_of(u64::from(self.chunk_bytes)), self.chunks.split_last())
            && *last != ZERO_CHUNK
            && others.contains(last)
        {
            return inconsistent("the short last chunk is shared with a full one");
        }
        if let Some(length) = self.lengths.iter().find(|length| !self.is_length(**length)) {
            let limit = compressed_limit(self.chunk_bytes);
            return inconsistent(&format!("a compressed length of {length}, which is not from 1 to {limit}"));
        }
        self.check_nothing_is_there_twice()?;
        self.derive_locations()?;
        Ok(self)
    }

    /// Two entries for one thing can say different things about it: two sizes of a pack, two places of a content, or
    /// one content for a full chunk and for the short last one.
    fn check_nothing_is_there_twice(&self) -> Result<(), IndexError> {
        if let Some((one, other)) = first_pair(count(&self.packs), |number| &self.packs[number as usize].digest) {
            return inconsistent(&format!("packs {one} and {other} have the same digest"));
        }
        if let Some((one, other)) = first_pair(self.stored_count(), |number| self.digest(number)) {
            return inconsistent(&format!("stored chunks {one} and {other} have the same digest"));
        }
        Ok(())
    }
}

/// Size of the largest compressed chunk that is accepted, bytes: zstd's own bound for incompressible content, rounded
/// up.
#[must_use]
pub fn compressed_limit(chunk_bytes: u32) -> u32 {
    chunk_bytes + chunk_bytes / 128 + 1024
}

/// Finds two of `count` entries with the same digest. The numbers are sorted and not the digests: an index may have
/// 8 MiB of them.
fn first_pair<'a>(count: u32, digest: impl Fn(u32) -> &'a Digest) -> Option<(u32, u32)> {
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_unstable_by_key(|number| digest(*number).0);
    let pair = order.windows(2).find(|pair| digest(pair[0]) == digest(pair[1]))?;
    Some((pair[0].min(pair[1]), pair[0].max(pair[1])))
}

fn check_sizes(image_bytes: u64, chunk_bytes: u32) -> Result<(), IndexError> {
    if !chunk_bytes.is_power_of_two() || !(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes) {
        return inconsistent(&format!("chunk size {chunk_bytes} is not a power of two from 16 KiB to 4 MiB"));
    }
    if image_bytes == 0 || !image_bytes.is_multiple_of(BLOCK_SIZE_BYTES as u64) {
        return inconsistent(&format!("image size {image_bytes} is not a multiple of 4096"));
    }
    if image_bytes.div_ceil(u64::from(chunk_bytes)) > MAX_CHUNKS {
        return inconsistent(&format!(
            "an image of {image_bytes} bytes has more than {MAX_CHUNKS} chunks of {chunk_bytes} bytes; release it with \
             larger chunks"
        ));
    }
    Ok(())
}

fn inconsistent<T>(text: &str) -> Result<T, IndexError> {
    Err(IndexError::Inconsistent(text.to_owned()))
}

/// Length of one of the lists of an index.
#[expect(clippy::cast_possible_truncation, reason = "the header counts in u32, and more does not fit into memory")]
fn count<T>(list: &[T]) -> u32 {
    list.len() as u32
}

#[cfg(test)]
mod tests {
    use super::{Builder, ChunkContent, Index, IndexError, MIN_CHUNK_BYTES, Pack};
    use crate::release::digest::Digest;

    /// Chunks A, zero, B, A and a short C; A and B in one pack, C in another.
    fn sample() -> Index {
        let chunk = MIN_CHUNK_BYTES as usize;
        let mut builder = Builder::new(4 * chunk as u64 + 4096, MIN_CHUNK_BYTES).unwrap();
        let mut store = |fill: u8, len: usize, compressed: u32| {
            let content = vec![fill; len];
            builder.store(Digest::of(&content), compressed)
        };
        let (a, b, c) = (store(1, chunk, 100), store(2, chunk, 50), store(3, 4096, 70));
        for content in [Some(a), None, Some(b), Some(a), Some(c)] {
            builder.push_chunk(content.map_or(ChunkContent::Zero, ChunkContent::Stored));
        }
        builder.push_extent(a, Pack { digest: Digest::of(b"p"), size_bytes: 150 }, 0);
        builder.push_extent(c, Pack { digest: Digest::of(b"q"), size_bytes: 1000 }, 930);
        builder.finish().unwrap()
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let index = sample();
        let decoded = Index::decode(&index.encode()).unwrap();
        assert_eq!(decoded, index);
        assert_eq!((decoded.chunk_count(), decoded.stored_count(), decoded.packs().len()), (5, 3, 2));
        assert_eq!((decoded.location(1).pack, decoded.location(1).range), (0, 100..150));
        assert_eq!((decoded.location(2).pack, decoded.location(2).range), (1, 930..1000));
        let object = zstd::bulk::compress(&index.encode(), 3).unwrap();
        assert_eq!(Index::from_object(&object).unwrap(), index);
    }

    #[test]
    fn only_the_right_content_matches() {
        let index = sample();
        let chunk = MIN_CHUNK_BYTES as usize;
        assert!(index.matches(0, &vec![1; chunk]) && index.matches(3, &vec![1; chunk]));
        assert!(index.matches(1, &vec![0; chunk]) && index.matches(4, &[3; 4096]));
        assert!(!index.matches(1, &vec![1; chunk]) && !index.matches(4, &vec![3; chunk]));
        assert!(!index.matches(0, &vec![2; chunk]) && !index.matches(0, &[]));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused_or_still_consistent() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Index::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(matches!(Index::decode(&[&bytes[..], b"x"].concat()), Err(IndexError::Size { .. })));
        for position in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                // Digests may change freely; whatever is accepted must encode to the very bytes that were read.
                if let Ok(index) = Index::decode(&changed) {
                    assert_eq!(index.encode(), changed);
                }
            }
        }
    }

    #[test]
    fn hostile_counts_are_refused_before_allocation() {
        let mut bytes = sample().encode();
        bytes[28..44].fill(0xff);
        assert!(matches!(Index::decode(&bytes), Err(IndexError::Inconsistent(_))));
        let object = zstd::bulk::compress(&bytes, 3).unwrap();
        assert!(matches!(Index::from_object(&object), Err(IndexError::Inconsistent(_))));
    }

    #[test]
    fn counts_that_cannot_all_be_right_are_refused_by_the_header_alone() {
        // Chunks, stored chunks, extents and packs are at bytes 28 to 44: 5, 3, 2 and 2 of them.
        for (counts, expected) in [
            ([4, 3, 2, 2], "4 chunks, and the sizes ask for 5"),
            ([5, 6, 2, 2], "2 packs, 2 extents and 6 stored chunks for 5 chunks"),
            ([5, 3, 4, 2], "2 packs, 4 extents and 3 stored chunks"),
            ([5, 3, 2, 3], "3 packs, 2 extents"),
            ([5, 3, 2, u32::MAX], "4294967295 packs"),
        ] {
            // The header only, so that nothing behind it can have been read.
            let mut header = sample().encode()[..48].to_vec();
            let bytes: Vec<u8> = counts.iter().flat_map(|count: &u32| count.to_le_bytes()).collect();
            header[28..44].copy_from_slice(&bytes);
            let object = zstd::bulk::compress(&header, 3).unwrap();
            for refused in [Index::decode(&header), Index::from_object(&object)] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains(expected), "{text}");
            }
        }
    }

    #[test]
    fn what_is_there_twice_or_for_nothing_is_refused() {
        let refusal = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sample().encode();
            change(&mut bytes);
            match Index::decode(&bytes) {
                Err(IndexError::Inconsistent(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        // Two packs of 40 bytes, two extents of 16, five chunks of 4, three lengths of 4, three digests of 32.
        let (packs, extents) = (48, 48 + 80);
        let digests = extents + 32 + 20 + 12;
        let text = refusal(&|bytes| bytes.copy_within(packs..packs + 32, packs + 40));
        assert_eq!(text, "packs 0 and 1 have the same digest");
        let text = refusal(&|bytes| bytes.copy_within(digests + 64..digests + 96, digests));
        assert_eq!(text, "stored chunks 0 and 2 have the same digest");
        // The second extent lies in the first pack too, behind the first extent.
        let text = refusal(&|bytes| {
            bytes[extents + 16 + 4] = 0;
            bytes[packs + 32..packs + 40].copy_from_slice(&1000_u64.to_le_bytes());
        });
        assert_eq!(text, "no chunk lies in pack 1 of 2");
    }

    #[test]
    fn a_place_beyond_the_largest_offset_is_refused() {
        let mut builder = Builder::new(u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        let stored = builder.store(Digest::of(b"chunk"), 100);
        builder.push_chunk(ChunkContent::Stored(stored));
        builder.push_extent(stored, Pack { digest: Digest::of(b"pack"), size_bytes: u64::MAX }, u64::MAX - 50);
        assert!(matches!(builder.finish(), Err(IndexError::Inconsistent(_))));
    }

    #[test]
    fn an_object_that_swells_is_read_no_further_than_its_header_asks_for() {
        let mut bytes = sample().encode();
        bytes.resize(64 << 20, 0);
        let declared = zstd::bulk::compress(&bytes, 3).unwrap();
        let text = crate::chain::chain(&Index::from_object(&declared).unwrap_err());
        assert!(text.contains("has 67108864 bytes of content"), "{text}");
        // A frame that was made piece by piece does not say how much it swells.
        let object = zstd::stream::encode_all(&bytes[..], 3).unwrap();
        match Index::from_object(&object) {
            Err(IndexError::Size { found, expected }) => assert_eq!(found as u64, expected + 1),
            other => panic!("{other:?}"),
        }
        assert!(matches!(Index::from_object(&sample().encode()), Err(IndexError::Compressed(_))));
        assert!(matches!(Index::from_object(&object[..40]), Err(IndexError::Compressed(_) | IndexError::Magic)));
    }
}
