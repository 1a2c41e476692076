//! A byte buffer that O_DIRECT accepts.

use std::ops::{Deref, DerefMut};

/// No logical block is larger than a page on the machines Linux runs on here, so a page suits every device.
pub const ALIGNMENT_BYTES: u32 = 4096;
const ALIGNMENT: usize = ALIGNMENT_BYTES as usize;

/// A zeroed byte buffer of fixed length whose start is aligned to [`ALIGNMENT_BYTES`].
///
/// A `Vec` with some slack and an offset into it: its heap block never moves because it never grows, so this needs no
/// allocator calls of its own.
#[derive(Debug)]
pub struct AlignedBuf {
    slack: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuf {
    /// `length` zeroed bytes. The kernel hands out the pages when they are first touched.
    pub fn zeroed(length: usize) -> Self {
        let slack = vec![0; length + ALIGNMENT - 1];
        let start = slack.as_ptr().align_offset(ALIGNMENT);
        // align_offset may decline by returning usize::MAX, which it does in const evaluation only.
        assert!(start < ALIGNMENT, "the allocator's pointer cannot be aligned");
        Self { slack, start, length }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.slack[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.slack[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT, AlignedBuf};

    #[test]
    fn every_size_is_aligned_and_survives_a_move() {
        for length in [0, 1, 4095, 4096, 1 << 20] {
            let mut buffer = AlignedBuf::zeroed(length);
            buffer.fill(7);
            let moved = Box::new(buffer);
            assert_eq!(moved.as_ptr().addr() % ALIGNMENT, 0);
            assert_eq!(moved.len(), length);
            assert!(moved.iter().all(|byte| *byte == 7));
        }
    }
}
