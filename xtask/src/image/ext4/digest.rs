//! Digest that shows whether two files have the same content.

use std::ops::Range;

use super::geometry::BLOCK;
use crate::size::to_usize;

/// Digest of a file's content that leaves out blocks of zeros: it does not matter whether they are a hole, and a file
/// with a huge hole costs no time.
#[derive(Debug, Default)]
pub struct ContentDigest {
    hasher: blake3::Hasher,
    /// Ranges of blocks that are not zeros.
    data: Vec<Range<u64>>,
}

impl ContentDigest {
    /// Adds the content that lies at block `first`. Only the last block of the file may be short.
    pub fn update(&mut self, first: u64, bytes: &[u8]) {
        let mut pending = 0..0;
        for (number, block) in bytes.chunks(to_usize(BLOCK)).enumerate() {
            let (at, end) = (number * to_usize(BLOCK), number * to_usize(BLOCK) + block.len());
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            // Stretches are hashed as long as possible, which is faster.
            if pending.end != at {
                self.hasher.update(&bytes[pending]);
                pending = at..at;
            }
            pending.end = end;
            let number = first + number as u64;
            match self.data.last_mut() {
                Some(last) if last.end == number => last.end += 1,
                _ => self.data.push(number..number + 1),
            }
        }
        self.hasher.update(&bytes[pending]);
    }

    /// Returns the digest of a whole content.
    #[must_use]
    pub fn of(content: &[u8]) -> [u8; 32] {
        let mut digest = Self::default();
        digest.update(0, content);
        digest.finish(content.len() as u64)
    }

    /// Ranges of blocks that are not zeros.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// Returns the digest of a file of `bytes`.
    #[must_use]
    pub fn finish(mut self, bytes: u64) -> [u8; 32] {
        for range in &self.data {
            self.hasher.update(&range.start.to_le_bytes()).update(&range.end.to_le_bytes());
        }
        *self.hasher.update(&bytes.to_le_bytes()).finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::ContentDigest;

    #[test]
    fn zeros_count_only_for_the_size() {
        let mut content = vec![0; 10 * 4096 + 5];
        content[2 * 4096..4 * 4096].fill(1);
        content[10 * 4096 + 4] = 1;
        let mut pieces = ContentDigest::default();
        pieces.update(1, &content[4096..3 * 4096]);
        pieces.update(3, &content[3 * 4096..4 * 4096]);
        pieces.update(10, &content[10 * 4096..]);
        assert_eq!(pieces.data(), [2..4, 10..11]);
        let digest = ContentDigest::of(&content);
        assert_eq!(digest, pieces.finish(content.len() as u64));
        let digest_of = |first, content: &[u8], bytes| {
            let mut digest = ContentDigest::default();
            digest.update(first, content);
            digest.finish(bytes)
        };
        assert_ne!(digest_of(0, &content, 1 << 20), digest, "another size");
        assert_ne!(digest_of(1, &content, content.len() as u64), digest, "another place");
    }
}
