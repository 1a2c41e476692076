//! Makes new content from old content and a difference in bsdiff's form: pieces of the old content, to whose bytes
//! small numbers are added, and new bytes between them. Pure.
//!
//! Two builds of one program differ in addresses all over, each by the same few bytes: the sums are mostly zeros, and
//! compress to a fraction of what they stand for (C. Percival, "Naive differences of executable code", 2003).
//!
//! | part | what |
//! |---|---|
//! | length | of the instructions, bytes: a number as below |
//! | instructions | each three numbers: bytes to add, bytes to copy, and how far to move on in the old content, zigzag-coded |
//! | sums | the bytes to add of all instructions, one after the other |
//! | copies | the bytes to copy of all instructions |
//!
//! A number has seven bits in each byte, the lowest first, and the top bit set in all bytes but the last (LEB128). The
//! instructions are carried out in their order: bytes are added, modulo 256, to the old content from where it stands,
//! which moves on with them; then bytes are copied; then the position in the old content moves.

use std::fmt;

/// The most bytes that a difference may have beside those of the content that it makes.
pub const MAX_OVERHEAD_BYTES: usize = 64 * 1024;

/// The error for a difference that is not one, or belongs to other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit;

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the difference does not fit the content that it is applied to, or has another length than its result",
        )
    }
}

impl std::error::Error for Unfit {}

/// Fills `new` from the old content and a difference.
///
/// # Errors
/// [`Unfit`] when the difference leads out of the old content, or makes more or less than `new` has. Part of `new` may
/// then have been filled.
pub fn apply(old: &[u8], difference: &[u8], new: &mut [u8]) -> Result<(), Unfit> {
    let mut rest = difference;
    let length = usize::try_from(number(&mut rest)?).map_err(|_| Unfit)?;
    let (instructions, streams) = rest.split_at_checked(length).ok_or(Unfit)?;
    // The sums come before the copies, and how many there are is known only from the instructions.
    let mut rest = instructions;
    let mut sum_bytes: usize = 0;
    while !rest.is_empty() {
        let instruction = Instruction::read(&mut rest)?;
        sum_bytes = sum_bytes.checked_add(instruction.add).ok_or(Unfit)?;
    }
    let (mut sums, mut copies) = streams.split_at_checked(sum_bytes).ok_or(Unfit)?;
    let (mut rest, mut position, mut target) = (instructions, 0_i64, new);
    while !rest.is_empty() {
        let Instruction { add, copy, seek } = Instruction::read(&mut rest)?;
        let from = usize::try_from(position).map_err(|_| Unfit)?;
        let old = from.checked_add(add).and_then(|end| old.get(from..end)).ok_or(Unfit)?;
        let (added, after) = target.split_at_mut_checked(add).ok_or(Unfit)?;
        let (sum, more_sums) = sums.split_at_checked(add).ok_or(Unfit)?;
        added.iter_mut().zip(old).zip(sum).for_each(|((new, old), sum)| *new = old.wrapping_add(*sum));
        let (copied, after) = after.split_at_mut_checked(copy).ok_or(Unfit)?;
        let (copy, more_copies) = copies.split_at_checked(copy).ok_or(Unfit)?;
        copied.copy_from_slice(copy);
        (sums, copies, target) = (more_sums, more_copies, after);
        let moved = i64::try_from(add).ok().and_then(|add| position.checked_add(add)?.checked_add(seek));
        position = moved.ok_or(Unfit)?;
    }
    if target.is_empty() && copies.is_empty() { Ok(()) } else { Err(Unfit) }
}

/// Collects the instructions of a difference: what [`apply`] reads.
#[derive(Debug, Default)]
pub struct DifferenceBuilder {
    instructions: Vec<u8>,
    sums: Vec<u8>,
    copies: Vec<u8>,
}

impl DifferenceBuilder {
    /// Adds one instruction: `sums` to add to the old content, `copies` to take over, and how far to move on then.
    pub fn push(&mut self, sums: &[u8], copies: &[u8], seek: i64) {
        put(&mut self.instructions, sums.len() as u64);
        put(&mut self.instructions, copies.len() as u64);
        put(&mut self.instructions, (seek.cast_unsigned() << 1) ^ (seek >> 63).cast_unsigned());
        self.sums.extend_from_slice(sums);
        self.copies.extend_from_slice(copies);
    }

    /// Returns the bytes of the difference.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.instructions.len() + self.sums.len() + self.copies.len() + 10);
        put(&mut out, self.instructions.len() as u64);
        out.extend(self.instructions);
        out.extend(self.sums);
        out.extend(self.copies);
        out
    }
}

struct Instruction {
    add: usize,
    copy: usize,
    seek: i64,
}

impl Instruction {
    fn read(rest: &mut &[u8]) -> Result<Self, Unfit> {
        let mut length = || usize::try_from(number(rest)?).map_err(|_| Unfit);
        let (add, copy) = (length()?, length()?);
        let zigzag = number(rest)?;
        Ok(Self { add, copy, seek: (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed() })
    }
}

/// Reads one number. One that does not fit 64 bits is refused.
fn number(rest: &mut &[u8]) -> Result<u64, Unfit> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(Unfit)?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Unfit);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unfit)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 0x7f is left")]
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::{DifferenceBuilder, Unfit, apply};

    /// "hello, world" becomes "hullo! world, hello".
    fn sample() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (old, new) = (b"hello, world".to_vec(), b"hullo! world, hello".to_vec());
        let mut difference = DifferenceBuilder::default();
        difference.push(&[0, b'u'.wrapping_sub(b'e'), 0, 0, 0], b"!", 1);
        difference.push(&[0; 6], b", ", -12);
        difference.push(&[0; 5], b"", 0);
        (old, new, difference.finish())
    }

    #[test]
    fn pieces_are_added_copied_and_found_forwards_and_backwards() {
        let (old, new, difference) = sample();
        let mut made = vec![0; new.len()];
        apply(&old, &difference, &mut made).unwrap();
        assert_eq!(made, new);
        let mut nothing = Vec::new();
        apply(&old, &DifferenceBuilder::default().finish(), &mut nothing).unwrap();
    }

    #[test]
    fn whatever_does_not_fit_is_refused() {
        let (old, new, difference) = sample();
        let mut made = vec![0; new.len()];
        for len in 0..difference.len() {
            assert_eq!(apply(&old, &difference[..len], &mut made), Err(Unfit), "cut to {len}");
        }
        let longer = [&difference[..], b"x"].concat();
        assert_eq!(apply(&old, &longer, &mut made), Err(Unfit));
        for len in [0, new.len() - 1, new.len() + 1] {
            assert_eq!(apply(&old, &difference, &mut vec![0; len]), Err(Unfit));
        }
        assert_eq!(apply(&old[..9], &difference, &mut made), Err(Unfit));
        for (sums, seek) in [(&[0; 3][..], -4), (&[], i64::MIN), (&[], i64::MAX)] {
            let mut out = DifferenceBuilder::default();
            out.push(sums, b"", seek);
            out.push(&[0; 2], b"", 0);
            assert_eq!(apply(&old, &out.finish(), &mut vec![0; sums.len() + 2]), Err(Unfit), "{seek}");
        }
    }

    #[test]
    fn no_bytes_at_all_are_a_panic() {
        let (old, new, difference) = sample();
        let mut made = vec![0; new.len()];
        for position in 0..difference.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = difference.clone();
                changed[position] = value;
                let _ = apply(&old, &changed, &mut made);
            }
        }
        assert_eq!(apply(&old, &[0xff; 64], &mut made), Err(Unfit));
    }
}
