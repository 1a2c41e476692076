//! The difference between old and new content, in time that grows with their size and with nothing else.
//!
//! It is bsdiff's: pieces of the old content are found that equal the new one, and each is carried on in both
//! directions while more bytes are equal than not. bsdiff looks for the longest equal piece in a suffix array, as the
//! crate `bidiff` does; on content that repeats itself, such as sparse files, that takes hours, and a publisher cannot
//! choose what robots carry. Here a piece is found by a hash of its first 16 bytes, which is nearly as good.

use reflash::release::add_copy::DifferenceBuilder;

/// Bytes by which pieces are found.
const ANCHOR_BYTES: usize = 16;
/// Places with one hash that are looked at: with 16 of them a delta is a fiftieth larger than by a suffix array.
const CANDIDATES: usize = 16;
/// So many bytes more must be equal for another place of the old content to be better than the present one.
const BETTER_BYTES: usize = 8;

/// Returns the difference that makes `new` of `old`, and how many bytes of `old` that takes.
pub fn difference(old: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
    let anchors = Anchors::of(old);
    let mut out = DifferenceBuilder::default();
    // The place in both of the piece before, and the next place of the new content to look at.
    let (mut last_new, mut last_old, mut at) = (0, 0, 0);
    // The first piece begins where nothing has been found yet.
    let mut found = None;
    let mut added = 0;
    loop {
        let next = find_better(&anchors, old, new, &mut at, last_new, found.map(|()| last_old));
        let end = next.map_or(new.len(), |(_, place, _)| place);
        let forward = if found.is_some() { forward(&old[last_old..], &new[last_new..end]) } else { 0 };
        let (back, start) = match next {
            Some((start, place, _)) => (backward(&old[..start], &new[last_new..place]), start),
            None => (0, last_old + forward),
        };
        let (forward, back) = match (forward + back).checked_sub(end - last_new) {
            Some(overlap) if overlap > 0 => {
                let taken = split(&old[last_old..], &new[last_new..end], &old[..start], (forward, back), overlap);
                (forward - overlap + taken, back - taken)
            }
            _ => (forward, back),
        };
        let sums: Vec<u8> = new[last_new..]
            .iter()
            .zip(&old[last_old..])
            .take(forward)
            .map(|(new, old)| new.wrapping_sub(*old))
            .collect();
        let (here, there) = (last_old + forward, start - back);
        out.push(&sums, &new[last_new + forward..end - back], way(here, there));
        let Some((_, place, len)) = next else { return (out.finish(), added + forward) };
        added += forward;
        (last_new, last_old, at, found) = (place - back, start - back, place + len, Some(()));
    }
}

fn way(from: usize, to: usize) -> i64 {
    i64::try_from(to).unwrap_or(i64::MAX) - i64::try_from(from).unwrap_or(i64::MAX)
}

/// Finds the next piece from `at` on that is better than going on with the place before: where it is in the old and in
/// the new content, and its length.
fn find_better(
    anchors: &Anchors<'_>,
    old: &[u8],
    new: &[u8],
    at: &mut usize,
    last_new: usize,
    last_old: Option<usize>,
) -> Option<(usize, usize, usize)> {
    while *at < new.len() {
        let present = last_old.map(|last_old| last_old + (*at - last_new));
        let Some((start, len)) = anchors.longest(&new[*at..], present) else {
            *at += 1;
            continue;
        };
        if present == Some(start) {
            *at += len;
            continue;
        }
        let same = present
            .and_then(|present| old.get(present..))
            .map_or(0, |old| old.iter().zip(&new[*at..*at + len]).filter(|(old, new)| old == new).count());
        if len > same + BETTER_BYTES {
            return Some((start, *at, len));
        }
        // The place before is as good for all of these.
        *at += len;
    }
    None
}

/// Number of bytes at the beginning that are equal.
fn equal(old: &[u8], new: &[u8]) -> usize {
    old.iter().zip(new).take_while(|(old, new)| old == new).count()
}

/// Number of bytes from the beginning on with which most more are equal than not.
fn forward(old: &[u8], new: &[u8]) -> usize {
    best(old.iter().zip(new).map(|(old, new)| old == new))
}

/// Number of bytes before the end, likewise.
fn backward(old: &[u8], new: &[u8]) -> usize {
    best(old.iter().rev().zip(new.iter().rev()).map(|(old, new)| old == new))
}

fn best(equal: impl Iterator<Item = bool>) -> usize {
    let (mut score, mut highest, mut length) = (0_i64, 0, 0);
    for (at, equal) in (1..).zip(equal) {
        score += if equal { 1 } else { -1 };
        if score > highest {
            (highest, length) = (score, at);
        }
    }
    length
}

/// Where two pieces reach for the same bytes: how many of the overlap the first is better for.
fn split(before: &[u8], new: &[u8], after: &[u8], (forward, back): (usize, usize), overlap: usize) -> usize {
    let at = forward - overlap;
    let (mut score, mut highest, mut length) = (0_i64, 0, 0);
    for step in 0..overlap {
        let wanted = new[at + step];
        score += i64::from(before[at + step] == wanted) - i64::from(after[after.len() - back + step] == wanted);
        if score > highest {
            (highest, length) = (score, step + 1);
        }
    }
    length
}

/// Where pieces of the old content begin, by a hash of their first bytes.
struct Anchors<'a> {
    old: &'a [u8],
    /// For each hash, the last place and one; 0 where there is none.
    slots: Vec<u32>,
    /// For each place and one, the place before with the same hash, and one.
    before: Vec<u32>,
}

impl<'a> Anchors<'a> {
    fn of(old: &'a [u8]) -> Self {
        let mut slots = vec![0; (old.len() * 2).next_power_of_two().max(2)];
        let mut before = vec![0; old.len() + 1];
        let mask = slots.len() - 1;
        for (place, anchor) in (1_u32..).zip(old.windows(ANCHOR_BYTES)) {
            if let Some(hash) = hash(anchor) {
                before[place as usize] = std::mem::replace(&mut slots[hash & mask], place);
            }
        }
        Self { old, slots, before }
    }

    /// Finds where the old content has most of the first bytes of `new`, of `present` and of the places that are looked
    /// at, and how many.
    fn longest(&self, new: &[u8], present: Option<usize>) -> Option<(usize, usize)> {
        let slot = hash(new.get(..ANCHOR_BYTES)?)? & (self.slots.len() - 1);
        let mut place = self.slots[slot];
        let chain = std::iter::from_fn(|| {
            let found = (place as usize).checked_sub(1)?;
            place = self.before[found + 1];
            Some(found)
        });
        let present = present.filter(|present| *present < self.old.len());
        let lengths = present.into_iter().chain(chain.take(CANDIDATES)).map(|at| (at, equal(&self.old[at..], new)));
        // Of two that are as long, the present place is the one that costs nothing.
        let longest = lengths.reduce(|best, other| if other.1 > best.1 { other } else { best })?;
        (longest.1 >= ANCHOR_BYTES).then_some(longest)
    }
}

/// Hashes an anchor, unless all its bytes are the same: such pieces are everywhere.
fn hash(anchor: &[u8]) -> Option<usize> {
    let (halves, _) = anchor.as_chunks::<8>();
    let [low, high] = halves else { return None };
    let (low, high) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
    if low == high && low == low.rotate_left(8) {
        return None;
    }
    let mixed = (low ^ high.rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    Some((mixed >> 32) as usize)
}

#[cfg(test)]
mod tests {
    use super::difference;
    use reflash::release::add_copy::apply;
    use std::time::{Duration, Instant};

    fn makes(old: &[u8], new: &[u8]) -> usize {
        let (difference, added) = difference(old, new);
        assert!(added <= new.len());
        let mut made = vec![0; new.len()];
        apply(old, &difference, &mut made).unwrap();
        assert!(made == new);
        zstd::bulk::compress(&difference, 3).unwrap().len()
    }

    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn what_moved_and_changed_costs_little() {
        let old = noise(200_000, 1);
        // Halves exchanged, a byte in a hundred changed by the same number, some inserted, some new.
        let mut new = [&old[100_000..], &old[..50_000], b"inserted", &old[50_000..100_000], &noise(500, 9)].concat();
        new.iter_mut().step_by(97).for_each(|byte| *byte = byte.wrapping_add(3));
        assert!(makes(&old, &new) < 3000, "{}", makes(&old, &new));
        for (old, new) in [(&old[..], &[][..]), (&[], &new), (&old[..10], &new[..10]), (&old, &old), (&[], &[])] {
            makes(old, new);
        }
    }

    #[test]
    fn content_that_repeats_itself_takes_no_longer() {
        let long = |period: usize, other: u8| -> Vec<u8> {
            let of = |at: usize| if at.is_multiple_of(4096) { other } else { u8::try_from(at % period).unwrap() };
            (0..1_500_000).map(of).collect()
        };
        let started = Instant::now();
        for period in [1, 2, 7, 16, 251] {
            assert!(makes(&long(period, 1), &long(period, 2)) < 4000, "period {period}");
            assert!(makes(&long(period, 1), &vec![0; 1_500_000]) < 4000, "period {period}");
        }
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
