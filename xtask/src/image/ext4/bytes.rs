//! Numbers in little endian, ext4's checksum, and the digest that tells whether two files are the same.

use std::ops::Range;

use super::geometry::BLOCK;

/// Digest of a file's content that leaves out blocks of zeros: it does not matter whether they are a hole, and a file
/// with a huge one costs no time.
#[derive(Debug, Default)]
pub struct ContentDigest {
    hasher: blake3::Hasher,
    /// Blocks that are not zeros.
    data: Vec<Range<u64>>,
}

impl ContentDigest {
    /// Takes in what lies at block `first`. Only the last block of the file may be short.
    pub fn update(&mut self, first: u64, bytes: &[u8]) {
        let mut pending = 0..0;
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate() {
            let (at, end) = (number * BLOCK as usize, number * BLOCK as usize + block.len());
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            // Hashed in stretches as long as possible: that is faster.
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

    /// The digest of a whole content.
    #[must_use]
    pub fn of(content: &[u8]) -> [u8; 32] {
        let mut digest = Self::default();
        digest.update(0, content);
        digest.finish(content.len() as u64)
    }

    /// Blocks that are not zeros.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        &self.data
    }

    /// The digest of a file of `bytes`.
    #[must_use]
    pub fn finish(mut self, bytes: u64) -> [u8; 32] {
        for range in &self.data {
            self.hasher.update(&range.start.to_le_bytes()).update(&range.end.to_le_bytes());
        }
        *self.hasher.update(&bytes.to_le_bytes()).finalize().as_bytes()
    }
}

/// CRC-32C as ext4 uses it: started with `seed`, and not inverted at the end.
#[must_use]
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The number at `offset`; zero where the bytes end before.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    let two = bytes.get(offset..offset + 2).and_then(|two| two.try_into().ok());
    two.map(u16::from_le_bytes).unwrap_or_default()
}

/// The number at `offset`; zero where the bytes end before.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let four = bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_le_bytes).unwrap_or_default()
}

/// Puts bytes at an offset.
pub fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use super::{ContentDigest, checksum};

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

    #[test]
    fn the_checksum_is_that_of_ext4() {
        // The well-known check value of CRC-32C is e3069283; ext4 leaves out the last inversion.
        assert_eq!(!checksum(!0, b"123456789"), 0xe306_9283);
        assert_eq!(checksum(checksum(!0, b"1234"), b"56789"), checksum(!0, b"123456789"));
    }
}
