//! Patches: stored chunks that are compressed with what the release before has in their place as the dictionary. A robot
//! that still holds that downloads these instead of the chunks. Pure.
//!
//! Only the very place of the chunk serves as dictionary, which nothing but the chunk itself overwrites: no order of
//! writes has to be kept, and after a cut the patches of what was not written yet still fit. A wider window would save a
//! quarter more and lose both. Whether a patch fits is seen from a hash of what is there; that it was right, as
//! always, from the digest of what comes out. If it was not, the chunk itself is fetched.
//!
//! Two objects. The pack has the patches back to back, each one zstd frame. The table is one zstd frame around the
//! following, all numbers little endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHPT`; u32 version 1; u32 entries E |
//! | patches | E | u32 stored chunk, ascending; u32 chunk of the image that it is in; u32 compressed length; u64 XXH3-64 (seed 0) over the weak hashes, 6 bytes each, of the blocks that are there before |

use std::io::{self, Read};
use std::ops::Range;

use crate::release::digest::block_hash;
use crate::release::index::{ChunkContent, ChunkNo, Index, MAX_CHUNKS, Pack, StoredChunkNo};
use crate::release::weak_hashes::WeakHash;

const MAGIC: &[u8; 8] = b"RFLASHPT";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 20;

/// The largest table there is, before compression; hashes do not compress.
pub const MAX_TABLE_BYTES: u64 = HEADER_BYTES as u64 + MAX_CHUNKS * ENTRY_BYTES as u64;

/// One patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// What it makes.
    pub stored: StoredChunkNo,
    /// Whose place holds the dictionary.
    pub chunk: ChunkNo,
    /// Its compressed length, bytes.
    pub length: u32,
    /// [`fingerprint`] of the dictionary.
    pub base: u64,
}

/// The patches of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    pack: Pack,
    patches: Vec<Patch>,
}

/// Why bytes are not the table of an index's patches.
#[derive(Debug, thiserror::Error)]
pub enum PatchesError {
    /// Other content, or a later format.
    #[error("not a table of patches of version {VERSION}")]
    Magic,
    /// Made for another index or pack, or cut.
    #[error("the table of patches does not fit: {0}")]
    Unfit(&'static str),
    /// Not a zstd frame.
    #[error("the table of patches cannot be decompressed")]
    Compressed(#[source] io::Error),
}

/// Tells what lies in the place of a chunk, by the weak hashes of its blocks.
#[must_use]
pub fn fingerprint(weak_hashes: impl Iterator<Item = WeakHash>) -> u64 {
    let bytes: Vec<u8> = weak_hashes.flat_map(|weak_hash| weak_hash.bits().to_le_bytes().into_iter().take(6)).collect();
    block_hash(&bytes)
}

impl Patches {
    /// Patches in the order in which they lie in the pack.
    #[must_use]
    pub fn new(pack: Pack, patches: Vec<Patch>) -> Self {
        Self { pack, patches }
    }

    /// The content of the table.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.patches.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for patch in &self.patches {
            for number in [patch.stored, patch.chunk, patch.length] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&patch.base.to_le_bytes());
        }
        out
    }

    /// Reads the object of a table that belongs to `index` and `pack`.
    ///
    /// # Errors
    /// [`PatchesError`].
    pub fn from_object(object: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let limit = HEADER_BYTES as u64 + u64::from(index.stored_count()) * ENTRY_BYTES as u64;
        let content = zstd::stream::read::Decoder::new(object).map_err(PatchesError::Compressed)?;
        let mut bytes = Vec::new();
        content.take(limit + 1).read_to_end(&mut bytes).map_err(PatchesError::Compressed)?;
        Self::decode(&bytes, pack, index)
    }

    fn decode(bytes: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let number = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)) };
        if !bytes.starts_with(MAGIC) || number(8) != Some(VERSION) {
            return Err(PatchesError::Magic);
        }
        let expected = number(12).map(|count| HEADER_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64);
        if expected != Some(bytes.len() as u64) {
            return Err(PatchesError::Unfit("its length is not what its header says"));
        }
        let mut patches: Vec<Patch> = Vec::new();
        let mut end = 0;
        for entry in bytes[HEADER_BYTES..].chunks(ENTRY_BYTES) {
            let mut fields =
                entry.chunks(4).map(|field| field.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
            let mut next = || fields.next().unwrap_or_default();
            let (stored, chunk, length) = (next(), next(), next());
            let base = u64::from(next()) | u64::from(next()) << 32;
            if patches.last().is_some_and(|last| last.stored >= stored) {
                return Err(PatchesError::Unfit("its chunks do not ascend"));
            }
            // The superblock is blanked before anything else is written.
            if chunk == 0 || chunk >= index.chunk_count() || index.chunk_content(chunk) != ChunkContent::Stored(stored)
            {
                return Err(PatchesError::Unfit("a patch is not for the chunk in whose place it is used"));
            }
            end += u64::from(length);
            patches.push(Patch { stored, chunk, length, base });
        }
        if end != pack.size_bytes || patches.iter().any(|patch| !index.is_length(patch.length)) {
            return Err(PatchesError::Unfit("a length cannot be right"));
        }
        Ok(Self { pack, patches })
    }

    /// The pack they lie in.
    #[must_use]
    pub fn pack(&self) -> Pack {
        self.pack
    }

    /// Each patch with its place in the pack.
    pub fn places(&self) -> impl Iterator<Item = (&Patch, Range<u64>)> {
        let mut end = 0;
        self.patches.iter().map(move |patch| {
            let start = end;
            end += u64::from(patch.length);
            (patch, start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, Patch, Patches, PatchesError};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};

    fn pack(size_bytes: u64) -> Pack {
        Pack { digest: Digest::of(b"patches"), size_bytes }
    }

    fn patch(stored: u32, chunk: u32, base: u64) -> Patch {
        Patch { stored, chunk, length: 100, base }
    }

    /// Five chunks, each with the stored chunk of its number.
    fn image() -> Index {
        let mut builder = Builder::new(5 * u64::from(MIN_CHUNK_BYTES), MIN_CHUNK_BYTES).unwrap();
        for number in 0..5_u32 {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_chunk(ChunkContent::Stored(number));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b"chunks"), size_bytes: 50 }, 0);
        builder.finish().unwrap()
    }

    fn decode(patches: &Patches, index: &Index) -> Result<Patches, PatchesError> {
        Patches::from_object(&zstd::bulk::compress(&patches.encode(), 3).unwrap(), patches.pack, index)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let patches = Patches::new(pack(200), vec![patch(1, 1, 10), patch(3, 3, 30)]);
        assert_eq!(decode(&patches, &image()).unwrap(), patches);
        let none = Patches::new(pack(0), Vec::new());
        assert_eq!(decode(&none, &image()).unwrap(), none);
    }

    #[test]
    fn what_does_not_fit_the_index_is_refused() {
        for (size_bytes, entries) in [
            (100, vec![patch(1, 1, 0), patch(3, 3, 0)]),
            (300, vec![patch(1, 1, 0), patch(3, 3, 0)]),
            (200, vec![patch(3, 3, 0), patch(1, 1, 0)]),
            (200, vec![patch(1, 1, 0), patch(1, 1, 0)]),
            (100, vec![patch(0, 0, 0)]),
            (100, vec![patch(1, 2, 0)]),
            (100, vec![patch(1, 5, 0)]),
            (100, vec![patch(5, 5, 0)]),
            (0, vec![Patch { length: 0, ..patch(1, 1, 0) }]),
            (1 << 30, vec![Patch { length: 1 << 30, ..patch(1, 1, 0) }]),
        ] {
            let patches = Patches::new(pack(size_bytes), entries);
            assert!(matches!(decode(&patches, &image()), Err(PatchesError::Unfit(_))), "{patches:?}");
        }
        let whole = Patches::new(pack(100), vec![patch(1, 1, 0)]).encode();
        for len in 0..whole.len() {
            let cut = zstd::bulk::compress(&whole[..len], 3).unwrap();
            assert!(Patches::from_object(&cut, pack(100), &image()).is_err(), "cut to {len}");
        }
        let longer = zstd::bulk::compress(&[&whole[..], &[0; 1 << 20]].concat(), 3).unwrap();
        assert!(Patches::from_object(&longer, pack(100), &image()).is_err());
        assert!(matches!(Patches::from_object(&whole, pack(100), &image()), Err(PatchesError::Compressed(_))));
        assert_eq!(whole.len(), HEADER_BYTES + super::ENTRY_BYTES);
    }
}
