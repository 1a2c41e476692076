//! Digests, which name and check content, and the weak hash of a block. Pure, but for the reader that a caller gives.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Size of a block in the index, bytes: the block size of ext4 and the page size of the machines we run on.
pub const BLOCK_SIZE_BYTES: usize = BLOCK_SIZE_U32 as usize;

/// Size of a block as a `u32`, the type of chunk sizes and of the fields of the format.
pub const BLOCK_SIZE_U32: u32 = 4096;

/// A full BLAKE3 digest: trust rests on it, and objects are named by it. As text it has 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// First half of a digest: enough to check bytes by that a signed table names, where a whole one would cost too much.
pub type HalfDigest = [u8; 16];

impl Digest {
    /// Computes the digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// Returns the first half of the digest.
    #[must_use]
    pub fn half(&self) -> HalfDigest {
        let mut half = [0; 16];
        half.copy_from_slice(&self.0[..16]);
        half
    }

    /// Digest of all that a reader gives.
    ///
    /// # Errors
    /// The reader's.
    pub fn of_reader(reader: impl io::Read) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(reader)?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }
}

/// Computes the XXH3-64 of one 4 KiB block: it shows where content may be found, and never proves it.
///
/// XXH3 rather than a truncated BLAKE3: a partition is hashed once for this beside the full digests, and XXH3 costs a
/// tenth. A collision, even one made on purpose, costs a fetch and never correctness.
#[must_use]
pub fn block_hash(block: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(block)
}

/// Formats bytes as lower-case hex, as digests are written everywhere.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether every byte of `content` is zero.
#[must_use]
pub fn is_zero(content: &[u8]) -> bool {
    // Whole partitions go through here, and a loop over single bytes takes longer than reading them from the disk. So
    // this looks at 64 bytes a step. The eight words are written out, because a loop over them is not unrolled in the
    // agent, which is optimised for size.
    let (chunks, rest) = content.as_chunks::<64>();
    let is_zero = |chunk: &[u8; 64]| {
        let word = |at: usize| u64::from_ne_bytes(chunk.as_chunks().0[at]);
        word(0) | word(1) | word(2) | word(3) | word(4) | word(5) | word(6) | word(7) == 0
    };
    chunks.iter().all(is_zero) && rest.iter().all(|byte| *byte == 0)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The error for text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: expected 64 lower-case hex digits")]
pub struct NotADigest(String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let error = || NotADigest(text.chars().take(80).collect());
        let digits = text.as_bytes();
        // Upper case is refused: the digest is also a file name, and one content must have one name.
        if digits.len() != 64 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, is_zero};

    #[test]
    fn text_form_is_blake3_hex_and_strict() {
        // BLAKE3 of the empty input, from the official test vectors.
        let text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::of(b""));
        for wrong in ["", "af", &text.to_uppercase(), &text.replace('a', "g"), &format!("{text}0")] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 4096] {
            let mut content = vec![0; len];
            assert!(is_zero(&content));
            for position in 0..len {
                content[position] = 1;
                assert!(!is_zero(&content), "{position} of {len}");
                content[position] = 0;
            }
        }
    }
}
