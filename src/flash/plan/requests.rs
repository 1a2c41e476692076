//! Joins the chunks to download into requests.

use std::ops::Range;

use super::elsewhere::ChunkPlaces;
use crate::release::digest::Digest;
use crate::release::index::{Location, StoredChunkNo};

/// The most compressed bytes in one request. It is large enough that the round trip does not count, and small enough
/// that a broken transfer on bad Wi-Fi is resumed often and several connections have something to do.
pub const MAX_REQUEST_BYTES: u64 = 8 * 1024 * 1024;

/// The most unneeded bytes between two needed chunks that are always downloaded with them: another round trip would
/// cost more.
pub const MAX_GAP_BYTES: u64 = 16 * 1024;

/// Wider gaps are downloaded too, the narrowest first, while there are more requests than this and
/// [`GAPS_SHARE`] allows it.
const MANY_REQUESTS: usize = 128;
/// The wider gaps together have at most one byte for this many needed bytes.
const GAPS_SHARE: u64 = 20;

/// One contiguous read from a pack, and the stored chunks to take out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Position of the pack in the index.
    pub pack: u32,
    /// Bytes of the pack to ask for.
    pub range: Range<u64>,
    /// Chunks to decode, in ascending order of their place in the pack.
    pub stored: Vec<StoredChunkNo>,
}

impl Request {
    /// Number of bytes that are asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// One contiguous read from a pack of deltas or groups, which are numbered by their table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedRequest {
    /// The pack to ask for.
    pub pack: Digest,
    /// Bytes of the pack to ask for.
    pub range: Range<u64>,
    /// Numbers of the deltas or groups to take out, ascending by their places.
    pub numbers: Vec<u32>,
}

impl NumberedRequest {
    /// Number of bytes that are asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Joins what is numbered and lies in packs, in their order, into requests of at most [`MAX_REQUEST_BYTES`].
pub(crate) fn joined_numbers(places: impl Iterator<Item = (u32, Digest, Range<u64>)>) -> Vec<NumberedRequest> {
    let mut requests: Vec<NumberedRequest> = Vec::new();
    for (number, pack, place) in places {
        match requests.last_mut() {
            Some(last)
                if last.pack == pack
                    && place.start.saturating_sub(last.range.end) <= MAX_GAP_BYTES
                    && place.end - last.range.start <= MAX_REQUEST_BYTES =>
            {
                last.range.end = place.end;
                last.numbers.push(number);
            }
            _ => requests.push(NumberedRequest { pack, range: place, numbers: vec![number] }),
        }
    }
    requests
}

/// Joins neighbours in a pack into requests of at most [`MAX_REQUEST_BYTES`].
pub(crate) fn coalesce(places: ChunkPlaces<'_>, needed: &[StoredChunkNo]) -> Vec<Request> {
    let mut by_place: Vec<StoredChunkNo> = needed.to_vec();
    by_place.sort_by_cached_key(|stored| {
        let place = places.location(*stored);
        (place.pack, place.range.start)
    });
    let joined = joined(places, &by_place);
    let mut requests: Vec<Request> = Vec::new();
    for (position, stored) in by_place.into_iter().enumerate() {
        let place = places.location(stored);
        match requests.last_mut() {
            Some(last) if joined[position - 1] && place.range.end - last.range.start <= MAX_REQUEST_BYTES => {
                last.range.end = place.range.end;
                last.stored.push(stored);
            }
            _ => requests.push(Request { pack: place.pack, range: place.range, stored: vec![stored] }),
        }
    }
    requests
}

/// Decides for each chunk but the last whether the gap to the next one is downloaded.
fn joined(all: ChunkPlaces<'_>, by_place: &[StoredChunkNo]) -> Vec<bool> {
    let (mut needed, mut joined, mut wider) = (0, Vec::with_capacity(by_place.len()), Vec::new());
    let mut before: Option<Location> = None;
    for stored in by_place {
        let place = all.location(*stored);
        needed += place.range.end - place.range.start;
        if let Some(before) = before {
            // `None` between two packs.
            let gap = (before.pack == place.pack).then(|| place.range.start.saturating_sub(before.range.end));
            if let Some(gap) = gap.filter(|gap| *gap > MAX_GAP_BYTES) {
                wider.push((gap, joined.len()));
            }
            joined.push(gap.is_some_and(|gap| gap <= MAX_GAP_BYTES));
        }
        before = Some(place);
    }
    wider.sort_unstable();
    let excess = wider.len().saturating_sub(MANY_REQUESTS);
    let mut budget = needed / GAPS_SHARE;
    for (gap, position) in &wider[..excess] {
        let Some(rest) = budget.checked_sub(*gap) else { break };
        budget = rest;
        joined[*position] = true;
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, coalesce};
    use crate::flash::plan::ChunkPlaces;
    use crate::flash::plan::tests::index;

    const STORED_BYTES: u64 = 10_000;

    #[test]
    fn neighbours_join_over_small_gaps_only_and_up_to_the_bound() {
        let count = 3000;
        let index = index(&(0..count).map(Some).collect::<Vec<_>>());
        // One missing chunk in between is a gap of 10,000 bytes, two are more than the bound.
        let needed: Vec<u32> = (0..count).filter(|n| ![1, 3, 4].contains(n)).collect();
        let requests = coalesce(ChunkPlaces::of(&index), &needed);
        assert!(requests.iter().all(|request| request.range.end - request.range.start <= MAX_REQUEST_BYTES));
        assert_eq!((requests[0].range.clone(), &requests[0].stored[..]), (0..30_000, &[0, 2][..]));
        assert_eq!(requests[1].range.start, 50_000);
        const { assert!(2 * STORED_BYTES > MAX_GAP_BYTES) };
        let fetched: usize = requests.iter().map(|request| request.stored.len()).sum();
        assert_eq!(fetched, needed.len());
        for request in &requests {
            for stored in &request.stored {
                let place = index.location(*stored).range;
                assert!(request.range.start <= place.start && place.end <= request.range.end);
            }
        }
    }

    #[test]
    fn chunks_scattered_over_a_pack_do_not_become_a_request_each() {
        let count = 20_000;
        let index = index(&(0..count).map(Some).collect::<Vec<_>>());
        // 1000 runs of 17 chunks with 3 between them: gaps of 30,000 bytes. One byte in twenty allows 283 of them.
        let needed: Vec<u32> = (0..count).filter(|n| n % 20 < 17).collect();
        let requests = coalesce(ChunkPlaces::of(&index), &needed);
        let asked: u64 = requests.iter().map(|request| request.range.end - request.range.start).sum();
        let bytes = needed.len() as u64 * STORED_BYTES;
        assert!((700..730).contains(&requests.len()) && asked <= bytes + bytes / 20, "{} {asked}", requests.len());
    }
}
