//! Use of blocks: which are taken, and which free ones are taken next.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::size::to_usize;

/// Length from which on free stretches are filled from the beginning of the image, in blocks: 4 MiB. Shorter stretches,
/// the longest first, are used only when no such stretch is left.
const LONG: u64 = 1024;

/// The blocks of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    used: Vec<bool>,
    free: u64,
}

impl Space {
    /// Makes a map in which all blocks but those of `tables` are free.
    #[must_use]
    pub fn new(blocks: u64, tables: impl Iterator<Item = u64>) -> Self {
        let mut space = Self { used: vec![false; to_usize(blocks)], free: blocks };
        tables.for_each(|block| {
            space.claim(block);
        });
        space
    }

    /// Takes a block. The result is false if the block is taken already, or does not exist.
    pub fn claim(&mut self, block: u64) -> bool {
        match self.used.get_mut(to_usize(block)) {
            Some(used) if !*used => {
                *used = true;
                self.free -= 1;
                true
            }
            _ => false,
        }
    }

    /// Gives a block back.
    pub fn release(&mut self, block: u64) {
        if let Some(used) = self.used.get_mut(to_usize(block)).filter(|used| **used) {
            *used = false;
            self.free += 1;
        }
    }

    /// Returns the number of free blocks.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Whether a block is used; blocks behind the end count as used.
    #[must_use]
    pub fn is_used(&self, block: u64) -> bool {
        self.used.get(to_usize(block)).copied().unwrap_or(true)
    }

    /// Returns the free stretches, from which blocks can be taken.
    #[must_use]
    pub fn pool(&self) -> Pool {
        let mut pool = Pool::default();
        let mut start = None;
        for (block, used) in (0..).zip(self.used.iter().chain([&true])) {
            match (start, used) {
                (None, false) => start = Some(block),
                (Some(first), true) => {
                    pool.give(first..block);
                    start = None;
                }
                _ => {}
            }
        }
        pool
    }
}

/// Free stretches of an image.
#[derive(Debug, Default)]
pub struct Pool {
    by_start: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, std::cmp::Reverse<u64>)>,
    /// Stretch that is being filled: small files lie one behind the other.
    current: Range<u64>,
    taken: Vec<Range<u64>>,
}

impl Pool {
    fn give(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.by_start.insert(range.start, range.end);
            self.by_length.insert((range.end - range.start, std::cmp::Reverse(range.start)));
        }
    }

    /// Takes the next blocks, in one piece where there is one of that length, and fewer than `count` when the image is
    /// full.
    pub fn take(&mut self, count: u64) -> Vec<u64> {
        let mut blocks = Vec::with_capacity(to_usize(count));
        while (blocks.len() as u64) < count {
            let missing = count - blocks.len() as u64;
            if self.current.end - self.current.start < missing {
                self.turn_to_next(missing);
            }
            let end = self.current.end.min(self.current.start + missing);
            if end == self.current.start {
                break;
            }
            blocks.extend(self.current.start..end);
            self.taken.push(self.current.start..end);
            self.current.start = end;
        }
        blocks
    }

    /// Lists every block that was taken.
    pub fn taken(self) -> impl Iterator<Item = u64> {
        self.taken.into_iter().flatten()
    }

    fn turn_to_next(&mut self, wanted: u64) {
        let rest = std::mem::take(&mut self.current);
        self.give(rest);
        let long = wanted.max(LONG);
        let first_long = self.by_length.range((long, std::cmp::Reverse(u64::MAX))..).map(|(_, start)| start.0).min();
        let next = first_long.or_else(|| self.by_length.last().map(|(_, start)| start.0));
        if let Some((start, end)) = next.and_then(|start| self.by_start.remove_entry(&start)) {
            self.by_length.remove(&(end - start, std::cmp::Reverse(start)));
            self.current = start..end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn a_block_is_taken_once() {
        let mut space = Space::new(8, [0, 1, 1, 99].into_iter());
        assert_eq!(space.free(), 6);
        assert!(space.claim(5) && !space.claim(5) && !space.claim(0) && !space.claim(8));
        space.release(5);
        space.release(5);
        assert_eq!((space.free(), space.is_used(5), space.is_used(8)), (6, false, true));
    }

    #[test]
    fn small_things_lie_one_behind_the_other_in_the_first_long_stretch() {
        // The image has a hole of 3 blocks, then a long stretch.
        let space = Space::new(5000, [0, 4].into_iter());
        let mut pool = space.pool();
        assert_eq!(pool.take(2), [5, 6]);
        assert_eq!(pool.take(1), [7]);
        assert_eq!(pool.take(4992).len(), 4992);
        // The hole is taken only now.
        assert_eq!(pool.take(2), [1, 2]);
        assert_eq!(pool.take(2), [3], "full");
        assert_eq!(pool.taken().count(), 4998);
    }

    #[test]
    fn what_fits_nowhere_in_one_piece_is_split_over_the_largest() {
        let space = Space::new(12, [2, 7].into_iter());
        let mut pool = space.pool();
        assert_eq!(pool.take(6), [3, 4, 5, 6, 8, 9]);
        assert_eq!(pool.take(9), [0, 1, 10, 11]);
        assert!(pool.take(1).is_empty());
    }
}
