//! Sizes and offsets of files as indices into memory. Pure.

use std::ops::Range;

const _: () = assert!(usize::BITS == 64, "the builder holds whole images in memory, which takes a 64-bit host");

/// Converts a size or an offset to an index into memory.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "an index has 64 bits, as asserted above")]
pub const fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

/// Converts a range of a file to a range of its content in memory.
#[must_use]
pub fn to_range(range: &Range<u64>) -> Range<usize> {
    to_usize(range.start)..to_usize(range.end)
}
