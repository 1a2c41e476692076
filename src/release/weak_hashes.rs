//! Short hashes of the 4 KiB blocks of an image's stored chunks: they show where content may be found. Pure.
//!
//! A weak hash is never a proof. A chunk that is put together from blocks found by their weak hashes is checked by its
//! full digest, like a downloaded one. A collision, even one made on purpose, costs a fetch and never correctness.
//!
//! The weak hashes are an object of their own. It is not compressed, because hashes do not compress. All numbers little
//! endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHBH`; u32 version 1; u32 blocks per chunk B; u32 stored chunks covered C; u32 0 |
//! | weak hashes | C x B | the low 6 bytes of the block's XXH3-64 (seed 0), 0 beyond a short last chunk |
//!
//! Six bytes suffice: of 16 million blocks looked for among as many, one is found wrongly.

use crate::release::cursor::Cursor;
use crate::release::digest::{BLOCK_SIZE_BYTES, BLOCK_SIZE_U32, block_hash, is_zero};
use crate::release::index::{ChunkContent, Index, StoredChunkNo};

const MAGIC: &[u8; 8] = b"RFLASHBH";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const WEAK_HASH_BYTES: usize = 6;

/// The most blocks that are covered: 8 GiB of content. Content beyond it is fetched when it moved. The limit bounds the
/// agent's memory.
pub const MAX_BLOCKS: usize = 2 * 1024 * 1024;

/// Size of the largest object of weak hashes, bytes.
pub const MAX_SIZE_BYTES: u64 = (HEADER_BYTES + MAX_BLOCKS * WEAK_HASH_BYTES) as u64;

/// The low 48 bits of a block's XXH3-64. The number 0 stands for a block of zeros, which needs no source, and for a
/// block that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WeakHash(u64);

impl WeakHash {
    /// Weak hash of a block of zeros, or of one that could not be read.
    pub const NONE: Self = Self(0);

    /// Hashes one block.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        if is_zero(block) { Self::NONE } else { Self::from_bits(block_hash(block)) }
    }

    /// Returns the weak hash as a number, for a table.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Makes a weak hash of the low 48 bits of a number, such as [`bits`](Self::bits).
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << (8 * WEAK_HASH_BYTES)) - 1))
    }

    /// Returns the six bytes of the format.
    pub(crate) fn to_bytes(self) -> [u8; WEAK_HASH_BYTES] {
        let [b0, b1, b2, b3, b4, b5, _, _] = self.0.to_le_bytes();
        [b0, b1, b2, b3, b4, b5]
    }

    fn from_bytes([b0, b1, b2, b3, b4, b5]: [u8; WEAK_HASH_BYTES]) -> Self {
        Self(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, 0, 0]))
    }
}

/// The weak hashes of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeakHashes {
    /// Number of weak hashes for each stored chunk.
    per_chunk: u32,
    /// Stored chunks that are covered, from the first on.
    covered: u32,
    /// The weak hashes as they are in the object.
    bytes: Vec<u8>,
}

/// The error for bytes that are not the weak hashes of an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeakHashesError {
    /// The bytes are something else, or a later format.
    #[error("not weak block hashes of version {VERSION}")]
    Magic,
    /// The weak hashes belong to another index, or are cut off.
    #[error("the weak block hashes do not fit the chunk index: {0}")]
    Unfit(String),
}

impl WeakHashes {
    /// Starts collecting the weak hashes of an index whose chunks have `chunk_bytes`. The contents of its stored chunks
    /// come in the order of their numbers.
    #[must_use]
    pub fn builder(chunk_bytes: u32) -> Self {
        Self { per_chunk: chunk_bytes / BLOCK_SIZE_U32, covered: 0, bytes: Vec::new() }
    }

    /// Hashes a chunk's content, as [`push`](Self::push) takes it.
    #[must_use]
    pub fn of_chunk(content: &[u8]) -> Vec<WeakHash> {
        content.chunks(BLOCK_SIZE_BYTES).map(WeakHash::of).collect()
    }

    /// Adds the next stored chunk. Beyond [`MAX_BLOCKS`] nothing is added.
    pub fn push(&mut self, chunk: &[WeakHash]) {
        let per_chunk = self.per_chunk as usize;
        if self.bytes.len() / WEAK_HASH_BYTES + per_chunk > MAX_BLOCKS {
            return;
        }
        let padded = chunk.iter().copied().chain(std::iter::repeat(WeakHash::NONE)).take(per_chunk);
        self.bytes.extend(padded.flat_map(WeakHash::to_bytes));
        self.covered += 1;
    }

    /// Encodes the object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.per_chunk, self.covered, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.bytes);
        out
    }

    /// Reads the object that belongs to `index`.
    ///
    /// # Errors
    /// [`WeakHashesError`] says why the object is refused.
    pub fn decode(mut object: Vec<u8>, index: &Index) -> Result<Self, WeakHashesError> {
        let unfit = |text: String| Err(WeakHashesError::Unfit(text));
        let mut cursor = Cursor::new(&object);
        if cursor.array() != Some(*MAGIC) || cursor.u32() != Some(VERSION) {
            return Err(WeakHashesError::Magic);
        }
        let (Some(per_chunk), Some(covered), Some(0)) = (cursor.u32(), cursor.u32(), cursor.u32()) else {
            return unfit("the header is cut off, or its reserved field is not 0".to_owned());
        };
        let (blocks, stored) = (index.blocks_per_chunk(), index.stored_count());
        if per_chunk != blocks || covered > stored {
            return unfit(format!(
                "it covers {covered} chunks of {per_chunk} blocks and the index has {stored} of {blocks}"
            ));
        }
        // The index bounds both: at most 2^18 chunks of 2^10 blocks.
        let expected = HEADER_BYTES as u64 + u64::from(covered) * u64::from(per_chunk) * WEAK_HASH_BYTES as u64;
        if object.len() as u64 != expected || expected > MAX_SIZE_BYTES {
            return unfit(format!(
                "it has {} bytes and its header asks for {expected}, of {MAX_SIZE_BYTES} at most",
                object.len()
            ));
        }
        object.drain(..HEADER_BYTES);
        let weak_hashes = Self { per_chunk, covered, bytes: object };
        weak_hashes.check_short_chunk(index)?;
        Ok(weak_hashes)
    }

    /// Refuses weak hashes of blocks that lie beyond the end of the image.
    fn check_short_chunk(&self, index: &Index) -> Result<(), WeakHashesError> {
        let last = index.chunk_count() - 1;
        let ChunkContent::Stored(stored) = index.chunk_content(last) else { return Ok(()) };
        let blocks = index.chunk_len(last) / BLOCK_SIZE_BYTES;
        if self.of(stored).is_some_and(|hashes| hashes.skip(blocks).any(|hash| hash != WeakHash::NONE)) {
            let text = format!("it has a weak hash for a block behind the last {blocks} of stored chunk {stored}");
            return Err(WeakHashesError::Unfit(text));
        }
        Ok(())
    }

    /// Returns the weak hashes of a stored chunk, one for each 4 KiB of a full chunk; `None` for a chunk that is not
    /// covered.
    pub fn of(&self, stored: StoredChunkNo) -> Option<impl Iterator<Item = WeakHash>> {
        let (hashes, _) = self.bytes.as_chunks::<WEAK_HASH_BYTES>();
        let per_chunk = self.per_chunk as usize;
        let start = (stored as usize).checked_mul(per_chunk)?;
        let chunk = hashes.get(start..start.checked_add(per_chunk)?)?;
        Some(chunk.iter().copied().map(WeakHash::from_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_BLOCKS, WeakHash, WeakHashes, WeakHashesError};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, Pack};

    const CHUNK: u32 = 16 * 1024;

    fn index(stored: u32) -> Index {
        let mut builder = Builder::new(u64::from(CHUNK) * u64::from(stored), CHUNK).unwrap();
        for number in 0..stored {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_chunk(ChunkContent::Stored(number));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b""), size_bytes: 10 * u64::from(stored) }, 0);
        builder.finish().unwrap()
    }

    #[test]
    fn counts_whose_product_wraps_are_of_another_index() {
        let object = include_bytes!("../../tests/hostile/weak-hashes-counts-wrap.bin").to_vec();
        let refused = WeakHashes::decode(object, &index(5)).unwrap_err();
        let text = "it covers 1963223906 chunks of 2420092292 blocks and the index has 5 of 4";
        assert_eq!(refused, WeakHashesError::Unfit(text.to_owned()));
    }

    #[test]
    fn what_is_encoded_is_decoded_and_a_short_chunk_is_padded() {
        let mut weak_hashes = WeakHashes::builder(CHUNK);
        let content = [vec![0; 4096], vec![7; 4096]].concat();
        weak_hashes.push(&WeakHashes::of_chunk(&content));
        weak_hashes.push(&[WeakHash::of(&[1; 4096]); 4]);
        let decoded = WeakHashes::decode(weak_hashes.encode(), &index(2)).unwrap();
        assert_eq!(decoded, weak_hashes);
        let first: Vec<_> = decoded.of(0).unwrap().collect();
        assert_eq!(first, [WeakHash::NONE, WeakHash::of(&[7; 4096]), WeakHash::NONE, WeakHash::NONE]);
        assert!(decoded.of(2).is_none());
        assert_eq!(WeakHash::from_bits(first[1].bits()), first[1]);
    }

    #[test]
    fn what_does_not_fit_the_index_is_refused() {
        let mut weak_hashes = WeakHashes::builder(CHUNK);
        (0..3).for_each(|fill| weak_hashes.push(&[WeakHash::of(&[fill + 1; 4096]); 4]));
        let object = weak_hashes.encode();
        assert!(matches!(WeakHashes::decode(object.clone(), &index(2)), Err(WeakHashesError::Unfit(_))));
        // Covering only a part is allowed: the other chunks have no weak hashes.
        assert!(WeakHashes::decode(object.clone(), &index(9)).unwrap().of(5).is_none());
        for len in 0..object.len() {
            assert!(WeakHashes::decode(object[..len].to_vec(), &index(3)).is_err(), "cut to {len}");
        }
        let mut other = object.clone();
        other[12] ^= 1;
        assert!(matches!(WeakHashes::decode(other, &index(3)), Err(WeakHashesError::Unfit(_))));
        assert_eq!(WeakHashes::decode(b"something else".to_vec(), &index(3)), Err(WeakHashesError::Magic));
    }

    #[test]
    fn hashes_beyond_a_short_last_chunk_are_refused() {
        let mut builder = Builder::new(2 * 4096, CHUNK).unwrap();
        builder.store(Digest::of(b"short"), 10);
        builder.push_chunk(ChunkContent::Stored(0));
        builder.push_extent(0, Pack { digest: Digest::of(b""), size_bytes: 10 }, 0);
        let index = builder.finish().unwrap();
        let of = |blocks: usize| {
            let mut weak_hashes = WeakHashes::builder(CHUNK);
            weak_hashes.push(&vec![WeakHash::of(&[1; 4096]); blocks]);
            WeakHashes::decode(weak_hashes.encode(), &index)
        };
        assert!(of(2).is_ok());
        let text = of(3).unwrap_err().to_string();
        assert!(text.contains("a block behind the last 2 of stored chunk 0"), "{text}");
    }

    #[test]
    fn no_more_than_the_bound_is_covered() {
        let mut weak_hashes = WeakHashes::builder(4 << 20);
        let chunk = vec![WeakHash::of(&[1; 4096]); 1024];
        (0..MAX_BLOCKS / 1024 + 5).for_each(|_| weak_hashes.push(&chunk));
        assert_eq!(weak_hashes.encode().len() as u64, super::MAX_SIZE_BYTES);
    }
}
