//! An index without its digests, which a robot that holds most of an image can compute itself. Pure.
//!
//! Nine tenths of an index are digests. A robot that has the release before knows those of what did not change, from
//! reading its own partition; it fetches the outline, and of the digests those that it lacks. Short sums of the
//! digests say which it lacks, 64 at a time. What is put together is proven by the digest of the index in the
//! manifest, so a sum is a hint and never a proof.
//!
//! The object is one zstd frame around the following. All numbers little endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHOL`; u32 version 1; u32 chunk size; u64 image size; u32 chunks; u32 stored chunks; u32 extents; u32 packs |
//! | packs, extents | | as in the index |
//! | chunks | chunks | i32 stored chunk, as the difference to the one before and one more (0 for the next); 0x80000000 for zeros |
//! | lengths | stored chunks | the lowest bytes of all compressed lengths, then the second bytes, the third and the fourth |
//! | sums | pages | the first 8 bytes of the BLAKE3 of the digests of 64 stored chunks; of fewer in the last |

use std::ops::Range;

use super::codec::{EXTENT_BYTES, MAX_ENCODED_BYTES, PACK_BYTES};
use super::{Extent, Index, IndexError, MAX_CHUNKS, Pack, StoredChunkNo, ZERO_CHUNK, check_sizes, count, inconsistent};
use crate::release::cursor::Cursor;
use crate::release::digest::Digest;
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHOL";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 40;
/// A chunk of zeros in the list of chunks: no difference of two stored chunks, of which there are at most 2^18.
const ZEROS: u32 = 0x8000_0000;

/// Stored chunks whose digests have one sum.
pub const PAGE_STORED: u32 = 64;
/// Bytes of a digest in the object of all digests.
pub const DIGEST_BYTES: u64 = 32;

/// An index whose digests are not all known.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The index, with digests that are zero where they are not known.
    index: Index,
    sums: Vec<[u8; 8]>,
}

/// The first bytes of the BLAKE3 of digests.
fn sum(digests: &[Digest]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    digests.iter().for_each(|digest| {
        hasher.update(&digest.0);
    });
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

impl Outline {
    /// Encodes the outline of an index, before compression.
    #[must_use]
    pub fn encode(index: &Index) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let put = |out: &mut Vec<u8>, value: u32| out.extend_from_slice(&value.to_le_bytes());
        put(&mut out, VERSION);
        put(&mut out, index.chunk_bytes);
        out.extend_from_slice(&index.image_bytes.to_le_bytes());
        for value in [index.chunk_count(), index.stored_count(), count(&index.extents), count(&index.packs)] {
            put(&mut out, value);
        }
        index.encode_packs_and_extents(&mut out);
        let mut before = 0_u32;
        for chunk in &index.chunks {
            if *chunk == ZERO_CHUNK {
                put(&mut out, ZEROS);
            } else {
                put(&mut out, chunk.wrapping_sub(before));
                before = chunk.wrapping_add(1);
            }
        }
        for byte in 0..4 {
            out.extend(index.lengths.iter().map(|length| length.to_le_bytes()[byte]));
        }
        out.extend(index.digests.chunks(PAGE_STORED as usize).flat_map(sum));
        out
    }

    /// Reads the object of an outline. Its numbers are checked when it is [complete](Self::complete).
    ///
    /// # Errors
    /// [`IndexError`] says why the object is refused.
    pub fn from_object(object: &[u8]) -> Result<Self, IndexError> {
        let bytes = zstd_frame::content(object, MAX_ENCODED_BYTES).map_err(IndexError::Compressed)?;
        let mut cursor = Cursor::new(&bytes);
        if cursor.array() != Some(*MAGIC) {
            return Err(IndexError::Magic);
        }
        let size = |expected| IndexError::Size { found: bytes.len(), expected };
        let (Some(version), Some(chunk_bytes), Some(image_bytes)) = (cursor.u32(), cursor.u32(), cursor.u64()) else {
            return Err(size(HEADER_BYTES));
        };
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        check_sizes(image_bytes, chunk_bytes)?;
        let (Some(chunks), Some(stored), Some(extents), Some(packs)) =
            (cursor.u32(), cursor.u32(), cursor.u32(), cursor.u32())
        else {
            return Err(size(HEADER_BYTES));
        };
        if [chunks, stored, extents, packs].into_iter().any(|count| u64::from(count) > MAX_CHUNKS) {
            return inconsistent("the outline has more entries than an index can have");
        }
        let pages = stored.div_ceil(PAGE_STORED);
        let expected = HEADER_BYTES
            + u64::from(packs) * PACK_BYTES
            + u64::from(extents) * EXTENT_BYTES
            + (u64::from(chunks) + u64::from(stored)) * 4
            + u64::from(pages) * 8;
        if bytes.len() as u64 != expected {
            return Err(size(expected));
        }
        let packs =
            cursor.list(packs, |cursor| Some(Pack { digest: Digest(cursor.array()?), size_bytes: cursor.u64()? }));
        let extents = cursor.list(extents, |cursor| {
            Some(Extent { first: cursor.u32()?, pack: cursor.u32()?, offset_bytes: cursor.u64()? })
        });
        let steps = cursor.list(chunks, Cursor::u32);
        let planes = cursor.list(stored * 4, Cursor::array::<1>);
        let sums = cursor.list(pages, Cursor::array::<8>);
        let (Some(packs), Some(extents), Some(steps), Some(planes), Some(sums)) = (packs, extents, steps, planes, sums)
        else {
            return Err(size(expected));
        };
        let mut before = 0_u32;
        let chunk = |step: u32| {
            if step == ZEROS {
                return ZERO_CHUNK;
            }
            let chunk = before.wrapping_add(step);
            before = chunk.wrapping_add(1);
            chunk
        };
        let chunks = steps.into_iter().map(chunk).collect();
        let of = |number: usize| [0, 1, 2, 3].map(|byte| planes[byte * stored as usize + number][0]);
        let lengths = (0..stored as usize).map(|number| u32::from_le_bytes(of(number))).collect();
        let digests = vec![Digest([0; 32]); stored as usize];
        let index = Index { chunk_bytes, image_bytes, packs, chunks, digests, extents, lengths, marks: Vec::new() };
        Ok(Self { index, sums })
    }

    /// Size of a chunk and of the image, bytes.
    #[must_use]
    pub fn sizes(&self) -> (u32, u64) {
        (self.index.chunk_bytes, self.index.image_bytes)
    }

    /// Takes the digests of chunks, by their place in the image, as far as somebody knows them.
    pub fn guess(&mut self, of_chunk: impl Fn(u32) -> Option<Digest>) {
        for (place, stored) in (0..).zip(&self.index.chunks) {
            if let Some(known) = self.index.digests.get_mut(*stored as usize)
                && known.0 == [0; 32]
                && let Some(digest) = of_chunk(place)
            {
                *known = digest;
            }
        }
    }

    /// Takes digests of stored chunks.
    pub fn learn(&mut self, digests: impl Iterator<Item = (StoredChunkNo, Digest)>) {
        for (stored, digest) in digests {
            if let Some(known) = self.index.digests.get_mut(stored as usize) {
                *known = digest;
            }
        }
    }

    /// Returns the stored chunks of the pages whose sums are not those of the digests so far.
    #[must_use]
    pub fn wrong_pages(&self) -> Vec<Range<StoredChunkNo>> {
        let pages = (0..).zip(self.sums.iter().zip(self.index.digests.chunks(PAGE_STORED as usize)));
        let wrong = pages.filter(|(_, (expected, digests))| sum(digests) != **expected);
        wrong.map(|(page, (_, digests)): (u32, _)| page * PAGE_STORED..page * PAGE_STORED + count(digests)).collect()
    }

    /// Whether these are the digests of a page.
    #[must_use]
    pub fn is_page(&self, page: &Range<StoredChunkNo>, digests: &[Digest]) -> bool {
        self.sums.get((page.start / PAGE_STORED) as usize) == Some(&sum(digests))
    }

    /// Returns the index, if its numbers fit each other.
    ///
    /// # Errors
    /// [`IndexError::Inconsistent`], as for an index that was fetched whole.
    pub fn complete(self) -> Result<Index, IndexError> {
        self.index.checked()
    }
}

/// Digests that one release has and another has not in the same places. The object is one zstd frame around their
/// number, u32; the stored chunks, u32 as differences to the one before; and the digests.
pub mod changed {
    use super::{Cursor, Digest, IndexError, MAX_CHUNKS, StoredChunkNo, inconsistent, zstd_frame};

    const MAX_BYTES: u64 = 4 + MAX_CHUNKS * 36;

    /// Encodes digests, ascending by their stored chunks, before compression.
    #[must_use]
    pub fn encode(digests: &[(StoredChunkNo, Digest)]) -> Vec<u8> {
        let mut out = super::count(digests).to_le_bytes().to_vec();
        let mut before = 0;
        for (stored, _) in digests {
            out.extend_from_slice(&stored.wrapping_sub(before).to_le_bytes());
            before = *stored;
        }
        digests.iter().for_each(|(_, digest)| out.extend_from_slice(&digest.0));
        out
    }

    /// Reads the object of changed digests.
    ///
    /// # Errors
    /// [`IndexError`] says why the object is refused.
    pub fn from_object(object: &[u8]) -> Result<Vec<(StoredChunkNo, Digest)>, IndexError> {
        let bytes = zstd_frame::content(object, MAX_BYTES).map_err(IndexError::Compressed)?;
        let mut cursor = Cursor::new(&bytes);
        let count = cursor.u32().unwrap_or_default();
        if u64::from(count) * 36 + 4 != bytes.len() as u64 {
            return inconsistent(&format!("{count} changed digests in {} bytes", bytes.len()));
        }
        let steps = cursor.list(count, Cursor::u32).unwrap_or_default();
        let digests = cursor.list(count, |cursor| cursor.array().map(Digest)).unwrap_or_default();
        let mut stored = 0_u32;
        let numbers = steps.into_iter().map(|step| {
            stored = stored.wrapping_add(step);
            stored
        });
        Ok(numbers.zip(digests).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Outline, PAGE_STORED, changed};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};

    /// 300 stored chunks in two packs, zeros and a chunk that stands twice.
    fn index() -> Index {
        let mut builder = Builder::new(310 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        for number in 0..300_u32 {
            let stored = builder.store(Digest::of(&number.to_le_bytes()), number + 1);
            if number % 60 == 7 {
                builder.push_chunk(ChunkContent::Zero);
                builder.push_chunk(ChunkContent::Stored(3));
            }
            builder.push_chunk(ChunkContent::Stored(stored));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b"p"), size_bytes: 1 << 30 }, 5);
        builder.push_extent(100, Pack { digest: Digest::of(b"q"), size_bytes: 1 << 30 }, 0);
        builder.finish().unwrap()
    }

    fn outline(index: &Index) -> Outline {
        Outline::from_object(&zstd::bulk::compress(&Outline::encode(index), 3).unwrap()).unwrap()
    }

    #[test]
    fn with_the_digests_of_the_partition_it_is_the_index_again() {
        let index = index();
        let of_chunk = |chunk| match index.chunk_content(chunk) {
            ChunkContent::Zero => None,
            ChunkContent::Stored(stored) => Some(*index.digest(stored)),
        };
        let mut whole = outline(&index);
        assert_eq!(whole.wrong_pages().len(), 300_usize.div_ceil(PAGE_STORED as usize));
        whole.guess(of_chunk);
        assert!(whole.wrong_pages().is_empty());
        assert_eq!(whole.complete().unwrap(), index);
        // Some chunks of the partition are others: their pages are named, and no more.
        let mut partial = outline(&index);
        partial
            .guess(|chunk| if [70, 75, 300].contains(&chunk) { Some(Digest::of(b"other")) } else { of_chunk(chunk) });
        assert_eq!(partial.wrong_pages(), [64..128, 256..300]);
        let learnt = changed::encode(&[64, 65, 69, 70, 71, 72, 288, 290].map(|stored| (stored, *index.digest(stored))));
        let learnt = changed::from_object(&zstd::bulk::compress(&learnt, 3).unwrap()).unwrap();
        partial.learn(learnt.into_iter());
        for page in partial.wrong_pages() {
            let digests: Vec<Digest> = page.clone().map(|stored| *index.digest(stored)).collect();
            assert!(partial.is_page(&page, &digests) && !partial.is_page(&page, &digests[1..]));
            partial.learn(page.zip(digests));
        }
        assert_eq!(partial.complete().unwrap(), index);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused_or_no_other_index() {
        let index = index();
        let bytes = Outline::encode(&index);
        let read = |bytes: &[u8]| Outline::from_object(&zstd::bulk::compress(bytes, 1).unwrap());
        for len in (0..bytes.len()).step_by(7) {
            assert!(read(&bytes[..len]).is_err(), "cut to {len}");
        }
        for position in (0..bytes.len()).step_by(3) {
            let mut changed = bytes.clone();
            changed[position] ^= 0x41;
            if let Ok(outline) = read(&changed) {
                let _ = outline.wrong_pages();
                let _ = outline.complete();
            }
        }
        assert!(changed::from_object(&zstd::bulk::compress(&[3, 0, 0, 0, 1], 1).unwrap()).is_err());
    }
}
