//! Where content may be found: short hashes of the 4 KiB blocks of an image's stored frames. Pure.
//!
//! A hint is never a proof. A frame that is put together from blocks found by their hints is checked by its full digest
//! like a downloaded one, so a collision, even one made on purpose, costs a fetch and never correctness.
//!
//! The object of its own that holds them is not compressed, as hashes cannot be. All numbers little endian:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHBH`; u32 version 1; u32 blocks per frame B; u32 stored frames covered C; u32 0 |
//! | hints | C x B | the low 6 bytes of the block's XXH3-64 (seed 0), 0 beyond a short last frame |
//!
//! Six bytes: of 16 million blocks looked for among as many, one is found wrongly.

use crate::release::digest::{BLOCK_SIZE_BYTES, BlockHash, block_hash, is_zero};
use crate::release::index::{Index, StoredNo};

const MAGIC: &[u8; 8] = b"RFLASHBH";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const HINT_BYTES: usize = 6;

/// More blocks than these (8 GiB of content) are not covered: what is beyond is fetched when it moved. It bounds the
/// agent's memory.
pub const MAX_BLOCKS: usize = 2 * 1024 * 1024;

/// The largest object there is.
pub const MAX_SIZE_BYTES: u64 = (HEADER_BYTES + MAX_BLOCKS * HINT_BYTES) as u64;

/// The low 48 bits of a block's XXH3-64. 0 stands for a block of zeros, which needs no source, and for one that is not
/// known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hint(u64);

impl Hint {
    /// Of a block of zeros, or of one that could not be read.
    pub const NONE: Self = Self(0);

    /// The hint of one block.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        if is_zero(block) { Self::NONE } else { Self::short(block_hash(block)) }
    }

    fn short(hash: BlockHash) -> Self {
        Self(hash & ((1 << (8 * HINT_BYTES)) - 1))
    }

    /// As a number, for a table.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// From [`bits`](Self::bits).
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self::short(bits)
    }
}

/// The hints of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hints {
    per_frame: usize,
    /// As in the object.
    bytes: Vec<u8>,
}

/// Why bytes are not the hints of an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HintsError {
    /// Other content, or a later format.
    #[error("not block hints of version {VERSION}")]
    Magic,
    /// Made for another index, or cut.
    #[error("the block hints do not fit the chunk index: {0}")]
    Unfit(&'static str),
}

impl Hints {
    /// Collects the hints of the stored frames of an index, whose contents come in the order of their numbers.
    #[must_use]
    pub fn builder(frame_bytes: u32) -> Self {
        Self { per_frame: frame_bytes as usize / BLOCK_SIZE_BYTES, bytes: Vec::new() }
    }

    /// The hints of a frame's content, as [`push`](Self::push) takes them.
    #[must_use]
    pub fn of_frame(content: &[u8]) -> Vec<Hint> {
        content.chunks(BLOCK_SIZE_BYTES).map(Hint::of).collect()
    }

    /// Adds the next stored frame. Beyond [`MAX_BLOCKS`] nothing is added.
    pub fn push(&mut self, frame: &[Hint]) {
        if self.bytes.len() / HINT_BYTES + self.per_frame > MAX_BLOCKS {
            return;
        }
        let padded = frame.iter().copied().chain(std::iter::repeat(Hint::NONE)).take(self.per_frame);
        padded.for_each(|hint| self.bytes.extend_from_slice(&hint.0.to_le_bytes()[..HINT_BYTES]));
    }

    /// The object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let covered = self.bytes.len() / (HINT_BYTES * self.per_frame);
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.per_frame as u32, covered as u32, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.bytes);
        out
    }

    /// Reads the object that belongs to `index`.
    ///
    /// # Errors
    /// [`HintsError`].
    pub fn decode(mut object: Vec<u8>, index: &Index) -> Result<Self, HintsError> {
        let number = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(*object.get(at..)?.first_chunk::<4>()?)) };
        if !object.starts_with(MAGIC) || number(8) != Some(VERSION) {
            return Err(HintsError::Magic);
        }
        let (Some(per_frame), Some(covered), Some(0)) = (number(12), number(16), number(20)) else {
            return Err(HintsError::Unfit("the header is cut or its reserved field is not 0"));
        };
        let expected = u64::from(covered) * u64::from(per_frame) * HINT_BYTES as u64 + HEADER_BYTES as u64;
        if per_frame as usize != index.frame_bytes() as usize / BLOCK_SIZE_BYTES || covered > index.stored_count() {
            return Err(HintsError::Unfit("it is of other frames"));
        }
        if object.len() as u64 != expected || expected > MAX_SIZE_BYTES {
            return Err(HintsError::Unfit("its length is not what its header says"));
        }
        object.drain(..HEADER_BYTES);
        Ok(Self { per_frame: per_frame as usize, bytes: object })
    }

    /// The hints of a stored frame, one for each 4 KiB of a full frame; none for a frame that is not covered.
    pub fn of(&self, stored: StoredNo) -> Option<impl Iterator<Item = Hint>> {
        let start = (stored as usize).checked_mul(self.per_frame * HINT_BYTES)?;
        let bytes = self.bytes.get(start..start + self.per_frame * HINT_BYTES)?;
        Some(bytes.chunks(HINT_BYTES).map(|bytes| {
            let mut wide = [0; 8];
            wide[..HINT_BYTES].copy_from_slice(bytes);
            Hint(u64::from_le_bytes(wide))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Hint, Hints, HintsError, MAX_BLOCKS};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, FrameContent, Index, Pack};

    const FRAME: u32 = 16 * 1024;

    fn index(stored: u32) -> Index {
        let mut builder = Builder::new(u64::from(FRAME) * u64::from(stored), FRAME).unwrap();
        for number in 0..stored {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_frame(FrameContent::Stored(number));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b""), size_bytes: 10 * u64::from(stored) }, 0);
        builder.finish().unwrap()
    }

    #[test]
    fn what_is_encoded_is_decoded_and_a_short_frame_is_padded() {
        let mut hints = Hints::builder(FRAME);
        let content = [vec![0; 4096], vec![7; 4096]].concat();
        hints.push(&Hints::of_frame(&content));
        hints.push(&[Hint::of(&[1; 4096]); 4]);
        let decoded = Hints::decode(hints.encode(), &index(2)).unwrap();
        assert_eq!(decoded, hints);
        let first: Vec<_> = decoded.of(0).unwrap().collect();
        assert_eq!(first, [Hint::NONE, Hint::of(&[7; 4096]), Hint::NONE, Hint::NONE]);
        assert!(decoded.of(2).is_none());
        assert_eq!(Hint::from_bits(first[1].bits()), first[1]);
    }

    #[test]
    fn what_does_not_fit_the_index_is_refused() {
        let mut hints = Hints::builder(FRAME);
        (0..3).for_each(|fill| hints.push(&[Hint::of(&[fill + 1; 4096]); 4]));
        let object = hints.encode();
        assert!(matches!(Hints::decode(object.clone(), &index(2)), Err(HintsError::Unfit(_))));
        // Covering only a part is allowed: the rest is looked for in vain.
        assert!(Hints::decode(object.clone(), &index(9)).unwrap().of(5).is_none());
        for len in 0..object.len() {
            assert!(Hints::decode(object[..len].to_vec(), &index(3)).is_err(), "cut to {len}");
        }
        let mut other = object.clone();
        other[12] ^= 1;
        assert!(matches!(Hints::decode(other, &index(3)), Err(HintsError::Unfit(_))));
        assert_eq!(Hints::decode(b"something else".to_vec(), &index(3)), Err(HintsError::Magic));
    }

    #[test]
    fn no_more_than_the_bound_is_covered() {
        let mut hints = Hints::builder(4 << 20);
        let frame = vec![Hint::of(&[1; 4096]); 1024];
        (0..MAX_BLOCKS / 1024 + 5).for_each(|_| hints.push(&frame));
        assert_eq!(hints.encode().len() as u64, super::MAX_SIZE_BYTES);
    }
}
