//! Deltas: chunks of an image made from what the release before has on the partition. Pure.
//!
//! A delta makes a few chunks, mostly neighbours, from blocks of the partition, wherever they lie: those in the place
//! of the chunks, and those where the release before had like content, as the old place of a file that moved. Its bytes
//! are one zstd frame around a difference ([`crate::release::add_copy`]).
//!
//! A delta is used where every block that it needs is there, by a hash over their weak hashes, and its result is
//! checked by the digests of the chunks. The digest of its own bytes is checked before anything looks at them.
//!
//! The table is one zstd frame around the following. All numbers little endian; sections follow each other:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHDT`; u32 version 1; u32 deltas D; u32 chunks C; u32 ranges R |
//! | deltas | D | u32 length in the pack; u32 number of its chunks; u32 number of its ranges; u64 base; first 16 bytes of the BLAKE3 of its bytes |
//! | chunks | C | u32 chunk, as the difference to the one before |
//! | ranges | R | u32 first block, as the difference to the end of the range before, modulo 2^32; u32 number of blocks |
//!
//! The base is the XXH3-64 (seed 0) over the 6-byte weak hashes of all blocks of the ranges. Deltas lie back to back in
//! their pack, and so do their entries of the other sections.

use std::io;
use std::ops::Range;

use crate::release::add_copy::MAX_OVERHEAD_BYTES;
use crate::release::cursor::Cursor;
use crate::release::digest::{BLOCK_SIZE_BYTES, HalfDigest, block_hash};
use crate::release::index::{ChunkContent, ChunkNo, Index, MAX_CHUNKS, Pack, compressed_limit};
use crate::release::weak_hashes::WeakHash;
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHDT";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 24;
const DELTA_BYTES: u64 = 36;
const RANGE_BYTES: u64 = 8;

/// The most bytes of content that one delta makes, unless it makes a single chunk.
pub const MAX_CONTENT_BYTES: u32 = 1024 * 1024;
/// The most blocks that one delta needs: 2 MiB.
pub const MAX_SOURCE_BLOCKS: u32 = 512;
/// The most ranges in a table: 64 bytes of memory for each chunk of the largest image.
const MAX_RANGES: u64 = 8 * MAX_CHUNKS;
/// Size of the largest table, before compression.
pub const MAX_TABLE_BYTES: u64 = HEADER_BYTES + MAX_CHUNKS * (DELTA_BYTES + 4) + MAX_RANGES * RANGE_BYTES;

/// A block of the partition, counted from its beginning in units of 4096 bytes.
pub type BlockNo = u32;

/// One delta: what it makes, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta<'a> {
    /// Chunks that the delta makes, ascending.
    pub chunks: &'a [ChunkNo],
    /// Blocks that it needs, in this order.
    pub sources: &'a [Range<BlockNo>],
    /// The [`fingerprint`] of these blocks.
    pub base: u64,
    /// Length of the delta, bytes.
    pub length: u32,
    /// The first bytes of its digest.
    pub digest: HalfDigest,
}

/// The deltas of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deltas {
    pack: Pack,
    entries: Vec<Entry>,
    chunks: Vec<ChunkNo>,
    sources: Vec<Range<BlockNo>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    length: u32,
    base: u64,
    digest: HalfDigest,
    /// Offset in the pack, bytes.
    offset: u64,
    /// The ends of its chunks and of its sources.
    ends: (u32, u32),
}

/// The error for bytes that are not the table of an index's deltas.
#[derive(Debug, thiserror::Error)]
pub enum DeltasError {
    /// The bytes are something else, or a later format.
    #[error("not a table of deltas of version {VERSION}")]
    Magic,
    /// The table belongs to another index or pack, or is cut off.
    #[error("the table of deltas does not fit: {0}")]
    Unfit(String),
    /// The object is not a zstd frame, or is damaged.
    #[error("the table of deltas cannot be decompressed")]
    Compressed(#[source] io::Error),
}

/// Identifies blocks by their weak hashes.
#[must_use]
pub fn fingerprint(weak_hashes: impl Iterator<Item = WeakHash>) -> u64 {
    let bytes: Vec<u8> = weak_hashes.flat_map(WeakHash::to_bytes).collect();
    block_hash(&bytes)
}

/// The most bytes that a delta for so much content may have.
fn length_limit(content_bytes: usize) -> u32 {
    u32::try_from(content_bytes + MAX_OVERHEAD_BYTES).map_or(u32::MAX, compressed_limit)
}

/// Decompresses a delta that makes `content_bytes` of content.
///
/// # Errors
/// zstd's error, or that it is not exactly one frame of a size that a difference can have.
pub fn open(delta: &[u8], content_bytes: usize) -> io::Result<Vec<u8>> {
    let limit = content_bytes + MAX_OVERHEAD_BYTES;
    let difference = zstd_frame::content(delta, limit as u64)?;
    if difference.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a difference of more bytes than its content asks for"));
    }
    Ok(difference)
}

impl Deltas {
    /// Starts the table of the deltas in a pack, which come in the order in which they lie there.
    #[must_use]
    pub fn new(pack: Pack) -> Self {
        Self { pack, entries: Vec::new(), chunks: Vec::new(), sources: Vec::new() }
    }

    /// Adds the next delta.
    pub fn push(&mut self, delta: Delta<'_>) {
        let offset = self.entries.last().map_or(0, |last| last.offset + u64::from(last.length));
        self.chunks.extend_from_slice(delta.chunks);
        self.sources.extend_from_slice(delta.sources);
        let ends = (count(&self.chunks), count(&self.sources));
        let Delta { length, base, digest, .. } = delta;
        self.entries.push(Entry { length, base, digest, offset, ends });
    }

    /// The pack that the deltas lie in.
    #[must_use]
    pub fn pack(&self) -> Pack {
        self.pack
    }

    /// Number of deltas.
    #[must_use]
    pub fn len(&self) -> u32 {
        count(&self.entries)
    }

    /// Whether there is no delta.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns a delta by its number, which must be below [`len`](Self::len).
    #[must_use]
    pub fn get(&self, number: u32) -> Delta<'_> {
        let number = number as usize;
        let Entry { length, base, digest, ends: (chunks, sources), .. } = self.entries[number];
        let (from_chunk, from_source) = if number == 0 { (0, 0) } else { self.entries[number - 1].ends };
        Delta {
            chunks: &self.chunks[from_chunk as usize..chunks as usize],
            sources: &self.sources[from_source as usize..sources as usize],
            base,
            length,
            digest,
        }
    }

    /// Returns where a delta lies in the pack, bytes.
    #[must_use]
    pub fn place(&self, number: u32) -> Range<u64> {
        let Entry { offset, length, .. } = self.entries[number as usize];
        offset..offset + u64::from(length)
    }

    /// Encodes the table, before compression.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut put = |number: u32| out.extend_from_slice(&number.to_le_bytes());
        [VERSION, self.len(), count(&self.chunks), count(&self.sources)].into_iter().for_each(&mut put);
        for number in 0..self.len() {
            let Delta { chunks, sources, base, length, digest } = self.get(number);
            for value in [length, count(chunks), count(sources)] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            out.extend_from_slice(&base.to_le_bytes());
            out.extend_from_slice(&digest);
        }
        let mut before = 0;
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.wrapping_sub(before).to_le_bytes());
            before = *chunk;
        }
        let mut before = 0;
        for range in &self.sources {
            out.extend_from_slice(&range.start.wrapping_sub(before).to_le_bytes());
            out.extend_from_slice(&(range.end - range.start).to_le_bytes());
            before = range.end;
        }
        out
    }

    /// Reads the object of a table that belongs to `index` and `pack`.
    ///
    /// # Errors
    /// [`DeltasError`] says why the object is refused.
    pub fn from_object(object: &[u8], pack: Pack, index: &Index) -> Result<Self, DeltasError> {
        let bytes = zstd_frame::content(object, MAX_TABLE_BYTES).map_err(DeltasError::Compressed)?;
        Self::decode(&bytes, pack, index)
    }

    fn decode(bytes: &[u8], pack: Pack, index: &Index) -> Result<Self, DeltasError> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(*MAGIC) || cursor.u32() != Some(VERSION) {
            return Err(DeltasError::Magic);
        }
        let cut = || DeltasError::Unfit(format!("it has {} bytes, and its header asks for others", bytes.len()));
        let mut counts = || cursor.u32().ok_or_else(cut);
        let (deltas, chunks, ranges) = (counts()?, counts()?, counts()?);
        let [d, c, r] = [deltas, chunks, ranges].map(u64::from);
        if d > MAX_CHUNKS || c > MAX_CHUNKS || r > MAX_RANGES {
            return unfit("it has more deltas, chunks or ranges than an image can have");
        }
        if HEADER_BYTES + d * DELTA_BYTES + c * 4 + r * RANGE_BYTES != bytes.len() as u64 {
            return Err(cut());
        }
        let entries = cursor.list(deltas, |cursor| {
            Some(([cursor.u32()?, cursor.u32()?, cursor.u32()?], cursor.u64()?, cursor.array::<16>()?))
        });
        let chunk_steps = cursor.list(chunks, Cursor::u32);
        let range_steps = cursor.list(ranges, |cursor| Some((cursor.u32()?, cursor.u32()?)));
        let (Some(entries), Some(chunk_steps), Some(range_steps)) = (entries, chunk_steps, range_steps) else {
            return Err(cut());
        };
        let mut table = Self::new(pack);
        let (mut chunk, mut ends, mut offset) = (0_u32, (0_u32, 0_u32), 0_u64);
        for step in chunk_steps {
            chunk = chunk.wrapping_add(step);
            table.chunks.push(chunk);
        }
        let mut end = 0_u32;
        for (step, blocks) in range_steps {
            let start = end.wrapping_add(step);
            end = match start.checked_add(blocks) {
                Some(end) if blocks > 0 && start > 0 => end,
                _ => return unfit("a range of it has no blocks, or the first one, or some beyond any partition"),
            };
            table.sources.push(start..end);
        }
        for ([length, chunks, ranges], base, digest) in entries {
            // At most 2^32 lengths below 2^32: no overflow in 64 bits.
            ends = match (ends.0.checked_add(chunks), ends.1.checked_add(ranges)) {
                (Some(chunks), Some(ranges)) => (chunks, ranges),
                _ => return unfit("its deltas have more chunks or ranges than there are"),
            };
            table.entries.push(Entry { length, base, digest, offset, ends });
            offset += u64::from(length);
        }
        if ends != (chunks, ranges) || offset != pack.size_bytes {
            return unfit(&format!(
                "its deltas have {} chunks, {} ranges and {offset} bytes, of {chunks}, {ranges} and {}",
                ends.0, ends.1, pack.size_bytes
            ));
        }
        table.check(index)?;
        Ok(table)
    }

    /// Checks that the deltas fit the index.
    fn check(&self, index: &Index) -> Result<(), DeltasError> {
        if !self.chunks.is_sorted_by(|one, next| one < next) {
            return unfit("its chunks do not ascend");
        }
        // Chunk 0 is never made by a delta: the superblock in it is blanked before anything else is written.
        let is_stored = |chunk: &ChunkNo| {
            *chunk > 0 && *chunk < index.chunk_count() && matches!(index.chunk_content(*chunk), ChunkContent::Stored(_))
        };
        if let Some(chunk) = self.chunks.iter().find(|chunk| !is_stored(chunk)) {
            return unfit(&format!("chunk {chunk} is none that a delta can make"));
        }
        for number in 0..self.len() {
            let delta = self.get(number);
            let content: usize = delta.content_bytes(index);
            let blocks: u64 = delta.sources.iter().map(|range| u64::from(range.end - range.start)).sum();
            let is_small = content <= MAX_CONTENT_BYTES as usize || delta.chunks.len() == 1;
            if delta.chunks.is_empty() || !is_small || blocks > u64::from(MAX_SOURCE_BLOCKS) {
                return unfit(&format!("delta {number} makes {content} bytes of {blocks} blocks"));
            }
            if delta.length == 0 || delta.length > length_limit(content) {
                return unfit(&format!("delta {number} has {} bytes for {content} of content", delta.length));
            }
        }
        match index.packs().iter().find(|chunks| chunks.digest == self.pack.digest) {
            Some(chunks) => unfit(&format!(
                "its pack {} is also a pack of {} bytes of the chunk index",
                self.pack.digest, chunks.size_bytes
            )),
            None => Ok(()),
        }
    }
}

impl Delta<'_> {
    /// Bytes of content that the delta makes.
    #[must_use]
    pub fn content_bytes(&self, index: &Index) -> usize {
        self.chunks.iter().map(|chunk| index.chunk_len(*chunk)).sum()
    }

    /// Bytes of the partition that it needs.
    #[must_use]
    pub fn source_bytes(&self) -> usize {
        self.sources.iter().map(|range| (range.end - range.start) as usize * BLOCK_SIZE_BYTES).sum()
    }
}

fn unfit<T>(text: &str) -> Result<T, DeltasError> {
    Err(DeltasError::Unfit(text.to_owned()))
}

#[expect(clippy::cast_possible_truncation, reason = "an image has at most MAX_CHUNKS chunks")]
pub(super) fn count<T>(list: &[T]) -> u32 {
    list.len() as u32
}

#[cfg(test)]
mod tests {
    #![expect(clippy::single_range_in_vec_init, reason = "ranges of blocks, one of them")]

    use super::{BlockNo, Delta, Deltas, DeltasError};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};
    use std::ops::Range;

    fn pack(size_bytes: u64) -> Pack {
        Pack { digest: Digest::of(b"deltas"), size_bytes }
    }

    /// Six chunks, the last of them zeros.
    fn image() -> Index {
        let mut builder = Builder::new(6 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        for number in 0..5_u32 {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_chunk(ChunkContent::Stored(number));
        }
        builder.push_chunk(ChunkContent::Zero);
        builder.push_extent(0, Pack { digest: Digest::of(b"chunks"), size_bytes: 50 }, 0);
        builder.finish().unwrap()
    }

    /// Length, chunks and sources of a delta.
    type Sketch<'a> = (u32, &'a [u32], &'a [Range<BlockNo>]);

    fn table(size_bytes: u64, deltas: &[Sketch<'_>]) -> Deltas {
        let mut table = Deltas::new(pack(size_bytes));
        for (length, chunks, sources) in deltas {
            let (digest, length) = (Digest::of(b"x").half(), *length);
            table.push(Delta { chunks, sources, base: 7, length, digest });
        }
        table
    }

    fn decode(table: &Deltas) -> Result<Deltas, DeltasError> {
        Deltas::from_object(&zstd::bulk::compress(&table.encode(), 3).unwrap(), table.pack, &image())
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let whole = table(150, &[(100, &[1, 2], &[8..12, 4..6, 90..91]), (50, &[4], &[])]);
        assert_eq!(decode(&whole).unwrap(), whole);
        assert_eq!((whole.place(1), whole.get(0).sources.len(), whole.get(1).chunks), (100..150, 3, &[4][..]));
        assert_eq!(decode(&table(0, &[])).unwrap(), table(0, &[]));
    }

    #[test]
    fn what_does_not_fit_the_index_is_refused() {
        const NONE: &[Range<BlockNo>] = &[];
        let far = [1..514];
        let (first, empty) = ([0..1], [5..5]);
        for wrong in [
            table(99, &[(100, &[1], NONE)]),
            table(200, &[(100, &[2], NONE), (100, &[1], NONE)]),
            table(200, &[(100, &[1], NONE), (100, &[1], NONE)]),
            table(100, &[(100, &[0], NONE)]),
            table(100, &[(100, &[5], NONE)]),
            table(100, &[(100, &[6], NONE)]),
            table(100, &[(100, &[], NONE)]),
            table(0, &[(0, &[1], NONE)]),
            table(1 << 30, &[(1 << 30, &[1], NONE)]),
            table(100, &[(100, &[1], &far)]),
            table(100, &[(100, &[1], &first)]),
            table(100, &[(100, &[1], &empty)]),
        ] {
            assert!(matches!(decode(&wrong), Err(DeltasError::Unfit(_))), "{wrong:?}");
        }
        let mut shared = Deltas::new(image().packs()[0]);
        shared.push(Delta { chunks: &[1], sources: &[], base: 0, length: 50, digest: [0; 16] });
        assert!(decode(&shared).unwrap_err().to_string().contains("is also a pack of 50 bytes"));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused_or_consistent() {
        let whole = table(150, &[(100, &[1, 2], &[8..12, 4..6]), (50, &[4], &[9..10])]);
        let bytes = whole.encode();
        for len in 0..bytes.len() {
            assert!(Deltas::decode(&bytes[..len], whole.pack, &image()).is_err(), "cut to {len}");
        }
        for position in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                if let Ok(table) = Deltas::decode(&changed, whole.pack, &image()) {
                    assert_eq!(table.encode(), changed, "byte {position}");
                }
            }
        }
    }
}
