//! Where content like some other content may be found in an image: by sampled hashes of short pieces.
//!
//! The old place of a file that moved, grew or got another name is found by what is in it. The layout of the file
//! system would say more for one kind of image; this works for all of them, also inside of files.

use rayon::prelude::{IntoParallelIterator, ParallelIterator, ParallelSliceMut};
use reflash::release::deltas::BlockNo;
use reflash::release::digest::BLOCK_SIZE_BYTES;

/// The most samples of an image: 128 MiB of memory.
const MAX_SAMPLES: u64 = 16 * 1024 * 1024;
/// A piece has this many bytes: shorter ones are found everywhere, longer ones are cut by every change.
const PIECE_BYTES: usize = 32;
/// At the least one piece in so many is sampled.
const LEAST_STEP: u64 = 64;

/// Samples of an image, sorted: the hash of a piece, and the block in which it ends.
pub struct Samples {
    found: Vec<(u32, BlockNo)>,
    step: u64,
}

impl Samples {
    /// Samples `count` parts of an image of `image_bytes`. `part` returns the content of one, and its first block.
    ///
    /// # Errors
    /// Those of `part`.
    pub fn of<E: Send>(
        image_bytes: u64,
        count: u32,
        part: impl Fn(u32) -> Result<(Vec<u8>, BlockNo), E> + Sync,
    ) -> Result<Self, E> {
        let step = (image_bytes / MAX_SAMPLES).max(LEAST_STEP).next_power_of_two();
        let sample = |number| {
            let (content, first) = part(number)?;
            let mut found = Vec::new();
            pieces(&content, step, |hash, at| found.push((hash, first + block_of(at))));
            Ok(found)
        };
        let parts: Vec<Vec<(u32, BlockNo)>> = (0..count).into_par_iter().map(sample).collect::<Result<_, E>>()?;
        let mut found = parts.concat();
        found.par_sort_unstable();
        // Of equal pieces the first is enough, and what is everywhere says nothing.
        found.dedup_by_key(|(hash, _)| *hash);
        Ok(Self { found, step })
    }

    /// Calls `found` with every block that has a piece of `content`, once for each piece.
    pub fn look_for(&self, content: &[u8], mut found: impl FnMut(BlockNo)) {
        pieces(content, self.step, |hash, _| {
            if let Ok(at) = self.found.binary_search_by_key(&hash, |(hash, _)| *hash) {
                found(self.found[at].1);
            }
        });
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a part of an image has less than 2^32 blocks")]
fn block_of(at: usize) -> BlockNo {
    (at / BLOCK_SIZE_BYTES) as BlockNo
}

/// Calls `sampled` with the hash of each sampled piece of `content`, and where it ends. Runs of one byte are left out.
///
/// The hash rolls: each byte shifts out what is more than 32 bytes back ("gear" hashing; Xia et al., "Ddelta", 2014).
fn pieces(content: &[u8], step: u64, mut sampled: impl FnMut(u32, usize)) {
    let (mut hash, mut same, mut before) = (0_u64, 0, None);
    for (at, byte) in content.iter().enumerate() {
        hash = (hash << (64 / PIECE_BYTES)).wrapping_add(GEAR[usize::from(*byte)]);
        same = if before == Some(byte) { same + 1 } else { 0 };
        before = Some(byte);
        // The high bits depend on the most bytes.
        if at >= PIECE_BYTES && same < PIECE_BYTES / 2 && (hash >> 40) & (step - 1) == 0 {
            sampled((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32, at);
        }
    }
}

/// A number for each byte, as good as random (xorshift64 from a fixed seed).
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut at = 0;
    while at < table.len() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        table[at] = state;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::Samples;
    use std::convert::Infallible;

    #[test]
    fn content_that_moved_by_a_few_bytes_is_found_where_it_was() {
        let mut state = 7_u32;
        let mut random = |len: usize| -> Vec<u8> {
            let next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            std::iter::repeat_with(next).take(len).collect()
        };
        let image = random(64 * 4096);
        let part = |number: u32| {
            let from = number as usize * 8 * 4096;
            Ok::<_, Infallible>((image[from..from + 8 * 4096].to_vec(), number * 8))
        };
        let samples = Samples::of(image.len() as u64, 8, part).unwrap();
        // Four blocks from the middle, 13 bytes further on; and what was never there.
        let wanted = [&random(13), &image[30 * 4096..34 * 4096]].concat();
        let mut found = Vec::new();
        samples.look_for(&wanted, |block| found.push(block));
        assert!(found.len() > 100 && found.iter().all(|block| (30..35).contains(block)), "{found:?}");
        samples.look_for(&random(16 * 4096), |block| panic!("nothing like it is in {block}"));
    }
}
