//! Patches: stored chunks that are compressed with what the release before has in their place as the dictionary. A
//! robot that still holds that content downloads the patches instead of the chunks. Pure.
//!
//! Only the content in the chunk's own place serves as dictionary, and nothing but the chunk itself overwrites that
//! place. No order of writes has to be kept, and after a power cut the patches of what was not written yet still fit. A
//! wider window would save a quarter more and lose both. A hash of what is in the place shows whether a patch fits. As
//! always, the digest of the result proves that it did. If it did not, the chunk itself is fetched.
//!
//! There are two objects. The pack has the patches back to back, each one zstd frame. The table is one zstd frame
//! around the following, all numbers little endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHPT`; u32 version 1; u32 entries E |
//! | patches | E | u32 stored chunk, ascending; u32 chunk of the image that it is in; u32 compressed length; u64 XXH3-64 (seed 0) over the weak hashes, 6 bytes each, of the blocks that are there before |

use std::io::{self, Read};

use crate::release::cursor::Cursor;
use crate::release::digest::block_hash;
use crate::release::index::{ChunkContent, ChunkNo, Index, MAX_CHUNKS, Pack, StoredChunkNo};
use crate::release::weak_hashes::WeakHash;
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHPT";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 20;

/// Size of the largest table, before compression; hashes do not compress.
pub const MAX_TABLE_BYTES: u64 = HEADER_BYTES + MAX_CHUNKS * ENTRY_BYTES;

/// One patch, which makes a stored chunk from what is in the place of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Stored chunk that the patch makes.
    pub stored: StoredChunkNo,
    /// Chunk of the image whose place holds the dictionary.
    pub chunk: ChunkNo,
    /// Compressed length of the patch, bytes.
    pub length: u32,
    /// The [`fingerprint`] of the dictionary.
    pub base: u64,
}

/// The patches of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    pack: Pack,
    patches: Vec<Patch>,
}

/// The error for bytes that are not the table of an index's patches.
#[derive(Debug, thiserror::Error)]
pub enum PatchesError {
    /// The bytes are something else, or a later format.
    #[error("not a table of patches of version {VERSION}")]
    Magic,
    /// The table belongs to another index or pack, or is cut off.
    #[error("the table of patches does not fit: {0}")]
    Unfit(String),
    /// The object is not a zstd frame, or is damaged.
    #[error("the table of patches cannot be decompressed")]
    Compressed(#[source] io::Error),
}

/// Identifies what is in the place of a chunk, by the weak hashes of its blocks.
#[must_use]
pub fn fingerprint(weak_hashes: impl Iterator<Item = WeakHash>) -> u64 {
    let bytes: Vec<u8> = weak_hashes.flat_map(WeakHash::to_bytes).collect();
    block_hash(&bytes)
}

impl Patches {
    /// Collects the patches of `pack`, in the order in which they lie there.
    #[must_use]
    pub fn new(pack: Pack, patches: Vec<Patch>) -> Self {
        Self { pack, patches }
    }

    /// Encodes the table, before compression.
    ///
    /// # Panics
    /// When there are more than [`MAX_CHUNKS`] patches: an index has no more chunks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.patches.len() as u64 <= MAX_CHUNKS, "there is at most one patch for a chunk");
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_CHUNKS, 262,144")]
        let count = self.patches.len() as u32;
        let mut out = MAGIC.to_vec();
        for number in [VERSION, count] {
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
    /// [`PatchesError`] says why the object is refused.
    pub fn from_object(object: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let limit = HEADER_BYTES + u64::from(index.stored_count()) * ENTRY_BYTES;
        let content = zstd_frame::open(object, limit).map_err(PatchesError::Compressed)?;
        let mut bytes = Vec::new();
        content.take(limit + 1).read_to_end(&mut bytes).map_err(PatchesError::Compressed)?;
        Self::decode(&bytes, pack, index)
    }

    fn decode(bytes: &[u8], pack: Pack, index: &Index) -> Result<Self, PatchesError> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(*MAGIC) || cursor.u32() != Some(VERSION) {
            return Err(PatchesError::Magic);
        }
        let found = bytes.len() as u64;
        let cut = |expected| PatchesError::Unfit(format!("it has {found} bytes and its header asks for {expected}"));
        let count = cursor.u32().ok_or_else(|| cut(HEADER_BYTES))?;
        // At most 2^32 x 20: no overflow in 64 bits.
        let expected = HEADER_BYTES + u64::from(count) * ENTRY_BYTES;
        if expected != found {
            return Err(cut(expected));
        }
        let patches = cursor.list(count, Patch::read).ok_or_else(|| cut(expected))?;
        check(&patches, pack, index)?;
        Ok(Self { pack, patches })
    }

    /// The pack that the patches lie in.
    #[must_use]
    pub fn pack(&self) -> Pack {
        self.pack
    }

    /// Iterates over the patches, each with its offset in the pack.
    pub fn places(&self) -> impl Iterator<Item = (&Patch, u64)> {
        let mut end = 0;
        self.patches.iter().map(move |patch| {
            let offset = end;
            end += u64::from(patch.length);
            (patch, offset)
        })
    }
}

impl Patch {
    fn read(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { stored: cursor.u32()?, chunk: cursor.u32()?, length: cursor.u32()?, base: cursor.u64()? })
    }
}

/// Checks that the patches fit their pack and the index.
fn check(patches: &[Patch], pack: Pack, index: &Index) -> Result<(), PatchesError> {
    if !patches.is_sorted_by(|one, next| one.stored < next.stored) {
        return Err(PatchesError::Unfit("its chunks do not ascend".to_owned()));
    }
    for Patch { stored, chunk, length, .. } in patches {
        // Chunk 0 is never patched: the superblock in it is blanked before anything else is written.
        let is_there = *chunk < index.chunk_count() && index.chunk_content(*chunk) == ChunkContent::Stored(*stored);
        if *chunk == 0 || !is_there {
            let text = format!("its patch for stored chunk {stored} is not for chunk {chunk}, whose place it uses");
            return Err(PatchesError::Unfit(text));
        }
        if !index.is_length(*length) {
            return Err(PatchesError::Unfit(format!("its patch for stored chunk {stored} has {length} bytes")));
        }
    }
    if let Some(chunks) = index.packs().iter().find(|chunks| chunks.digest == pack.digest) {
        let text = format!("its pack {} is also a pack of {} bytes of the chunk index", pack.digest, chunks.size_bytes);
        return Err(PatchesError::Unfit(text));
    }
    // At most 2^32 lengths below 2^32: no overflow in 64 bits.
    let end: u64 = patches.iter().map(|patch| u64::from(patch.length)).sum();
    if end != pack.size_bytes {
        let text = format!("its patches have {end} bytes and their pack {}", pack.size_bytes);
        return Err(PatchesError::Unfit(text));
    }
    Ok(())
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
        let chunks = Patches::new(image().packs()[0], vec![Patch { length: 50, ..patch(1, 1, 0) }]);
        assert!(decode(&chunks, &image()).unwrap_err().to_string().contains("is also a pack of 50 bytes"));
        let whole = Patches::new(pack(100), vec![patch(1, 1, 0)]).encode();
        for len in 0..whole.len() {
            let cut = zstd::bulk::compress(&whole[..len], 3).unwrap();
            assert!(Patches::from_object(&cut, pack(100), &image()).is_err(), "cut to {len}");
        }
        let longer = zstd::bulk::compress(&[&whole[..], &[0; 1 << 20]].concat(), 3).unwrap();
        assert!(Patches::from_object(&longer, pack(100), &image()).is_err());
        assert!(matches!(Patches::from_object(&whole, pack(100), &image()), Err(PatchesError::Compressed(_))));
        assert_eq!(whole.len() as u64, HEADER_BYTES + super::ENTRY_BYTES);
    }
}
