//! What has to happen to a partition so that it equals an image: index x what is there -> plan. Pure.

use std::ops::Range;

use crate::index::{FrameContent, FrameNo, Index, StoredNo};

/// Compressed bytes asked for in one request at most. Large enough that the round trip does not count, small enough
/// that a broken transfer on bad Wi-Fi is resumed often and the console sees progress.
pub const MAX_REQUEST_BYTES: u64 = 8 * 1024 * 1024;

/// Unneeded bytes between two needed frames that are fetched rather than asked around: a round trip costs more.
pub const MAX_GAP_BYTES: u64 = 16 * 1024;

/// For each frame, whether the partition already holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey(Vec<bool>);

/// One contiguous read from a pack, and the stored frames to take out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Position of the pack in the index.
    pub pack: u32,
    /// Bytes of the pack.
    pub range: Range<u64>,
    /// Frames to decode, in ascending order of their place in the pack.
    pub stored: Vec<StoredNo>,
}

/// What to do. Frames that are right do not appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Frames to fill with zeros.
    pub zero: Vec<FrameNo>,
    /// What to fetch, in pack order.
    pub requests: Vec<Request>,
    /// Frames that each fetched stored frame goes to: sorted by stored frame, then by frame.
    destinations: Vec<(StoredNo, FrameNo)>,
    /// Quantities, for people and for progress.
    pub totals: Totals,
}

/// Quantities of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Size of the image.
    pub image_bytes: u64,
    /// Already right on the partition, zeros included.
    pub right_bytes: u64,
    /// To be zeroed.
    pub zero_bytes: u64,
    /// To be written with fetched content.
    pub write_bytes: u64,
    /// To be downloaded, gaps included.
    pub download_bytes: u64,
}

impl Totals {
    /// Those of a partition that is right already.
    #[must_use]
    pub fn nothing_to_do(index: &Index) -> Self {
        Self { image_bytes: index.image_bytes(), right_bytes: index.image_bytes(), ..Self::default() }
    }
}

impl Survey {
    /// A partition of which nothing is known: every frame is written.
    #[must_use]
    pub fn nothing_right(index: &Index) -> Self {
        Self(vec![false; index.frame_count() as usize])
    }

    /// Takes one flag per frame.
    ///
    /// # Panics
    /// When the number of flags is not the number of frames: they were made for another index.
    #[must_use]
    pub fn new(index: &Index, right: Vec<bool>) -> Self {
        assert_eq!(right.len(), index.frame_count() as usize, "a survey belongs to one index");
        Self(right)
    }

    /// Whether a frame is right.
    #[must_use]
    pub fn is_right(&self, frame: FrameNo) -> bool {
        self.0[frame as usize]
    }

    /// Whether all are.
    #[must_use]
    pub fn all_right(&self) -> bool {
        self.0.iter().all(|right| *right)
    }

    /// Byte ranges of the partition that are not right, neighbours joined.
    #[must_use]
    pub fn damaged_ranges(&self, index: &Index) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for frame in (0..index.frame_count()).filter(|frame| !self.is_right(*frame)) {
            let range = index.frame_range(frame);
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

impl Plan {
    /// Compares what should be with what is.
    #[must_use]
    pub fn new(index: &Index, survey: &Survey) -> Self {
        let mut totals = Totals { image_bytes: index.image_bytes(), ..Totals::default() };
        let mut zero = Vec::new();
        let mut destinations = Vec::new();
        for frame in 0..index.frame_count() {
            let range = index.frame_range(frame);
            let size = range.end - range.start;
            if survey.is_right(frame) {
                totals.right_bytes += size;
                continue;
            }
            match index.frame_content(frame) {
                FrameContent::Zero => {
                    totals.zero_bytes += size;
                    zero.push(frame);
                }
                FrameContent::Stored(stored) => {
                    totals.write_bytes += size;
                    destinations.push((stored, frame));
                }
            }
        }
        destinations.sort_unstable();
        let mut needed: Vec<StoredNo> = destinations.iter().map(|(stored, _)| *stored).collect();
        needed.dedup();
        let requests = coalesce(index, &needed);
        totals.download_bytes = requests.iter().map(|request| request.range.end - request.range.start).sum();
        Self { zero, requests, destinations, totals }
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.zero.is_empty() && self.destinations.is_empty()
    }

    /// Frames of the image that a stored frame has to be written to.
    pub fn destinations(&self, stored: StoredNo) -> impl Iterator<Item = FrameNo> {
        let start = self.destinations.partition_point(|(other, _)| *other < stored);
        self.destinations[start..].iter().take_while(move |(other, _)| *other == stored).map(|(_, frame)| *frame)
    }
}

/// Joins neighbours in a pack to requests of at most [`MAX_REQUEST_BYTES`] with gaps of at most [`MAX_GAP_BYTES`].
pub(crate) fn coalesce(index: &Index, needed: &[StoredNo]) -> Vec<Request> {
    let mut by_place: Vec<_> = needed.iter().map(|stored| (index.location(*stored), *stored)).collect();
    by_place.sort_by_key(|(location, _)| (location.pack, location.range.start));
    let mut requests: Vec<Request> = Vec::new();
    for (location, stored) in by_place {
        match requests.last_mut() {
            Some(last)
                if last.pack == location.pack
                    && location.range.start <= last.range.end + MAX_GAP_BYTES
                    && location.range.end - last.range.start <= MAX_REQUEST_BYTES =>
            {
                last.range.end = location.range.end;
                last.stored.push(stored);
            }
            _ => requests.push(Request { pack: location.pack, range: location.range, stored: vec![stored] }),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::{MAX_GAP_BYTES, MAX_REQUEST_BYTES, Plan, Survey};
    use crate::digest::Digest;
    use crate::index::{Builder, FrameContent, Index, MIN_FRAME_BYTES, Pack};

    /// An image whose frames have these contents (`None` zero); equal numbers are equal frames of 10,000 stored bytes.
    fn index(frames: &[Option<u32>]) -> Index {
        let frame_bytes = u64::from(MIN_FRAME_BYTES);
        let mut builder = Builder::new(frames.len() as u64 * frame_bytes, MIN_FRAME_BYTES).unwrap();
        let count = frames.iter().flatten().max().map_or(0, |last| last + 1);
        for number in 0..count {
            builder.store(Digest::of(&number.to_le_bytes()), &[], 10_000);
        }
        for frame in frames {
            builder.push_frame(frame.map_or(FrameContent::Zero, FrameContent::Stored));
        }
        if count > 0 {
            let pack = Pack { digest: Digest::of(b"pack"), size_bytes: u64::from(count) * 10_000 };
            builder.push_extent(0, pack, 0);
        }
        builder.finish().unwrap()
    }

    #[test]
    fn right_frames_cost_nothing() {
        let index = index(&[Some(0), None, Some(1), Some(0)]);
        let plan = Plan::new(&index, &Survey::new(&index, vec![true; 4]));
        assert!(plan.is_empty() && plan.requests.is_empty());
        assert_eq!(plan.totals.right_bytes, index.image_bytes());
    }

    #[test]
    fn a_shared_frame_is_fetched_once_and_written_where_it_is_wrong() {
        let index = index(&[Some(0), None, Some(1), Some(0), Some(0)]);
        let plan = Plan::new(&index, &Survey::new(&index, vec![false, false, true, true, false]));
        assert_eq!(plan.zero, [1]);
        assert_eq!(plan.requests.len(), 1);
        assert_eq!((plan.requests[0].range.clone(), &plan.requests[0].stored[..]), (0..10_000, &[0][..]));
        assert_eq!(plan.destinations(0).collect::<Vec<_>>(), [0, 4]);
        assert_eq!(plan.destinations(1).count(), 0);
        let frame = u64::from(MIN_FRAME_BYTES);
        let totals = plan.totals;
        assert_eq!((totals.right_bytes, totals.zero_bytes, totals.write_bytes), (2 * frame, frame, 2 * frame));
        assert_eq!(totals.download_bytes, 10_000);
    }

    #[test]
    fn neighbours_join_over_small_gaps_only_and_up_to_the_bound() {
        let count = 3000;
        let index = index(&(0..count).map(Some).collect::<Vec<_>>());
        // One missing frame in between is a gap of 10,000 bytes, two are more than the bound.
        let right = (0..count).map(|n| n == 1 || n == 3 || n == 4).collect();
        let plan = Plan::new(&index, &Survey::new(&index, right));
        assert!(plan.requests.iter().all(|r| r.range.end - r.range.start <= MAX_REQUEST_BYTES));
        assert_eq!((plan.requests[0].range.clone(), &plan.requests[0].stored[..]), (0..30_000, &[0, 2][..]));
        assert_eq!(plan.requests[1].range.start, 50_000);
        const { assert!(20_000 > MAX_GAP_BYTES) };
        let fetched: usize = plan.requests.iter().map(|r| r.stored.len()).sum();
        assert_eq!(fetched, count as usize - 3);
        for request in &plan.requests {
            for stored in &request.stored {
                let place = index.location(*stored).range;
                assert!(request.range.start <= place.start && place.end <= request.range.end);
            }
        }
    }

    #[test]
    fn damage_is_named_as_joined_ranges() {
        let index = index(&[Some(0), Some(1), None, Some(2)]);
        let survey = Survey::new(&index, vec![true, false, false, true]);
        let frame = u64::from(MIN_FRAME_BYTES);
        assert_eq!(survey.damaged_ranges(&index), vec![frame..3 * frame; 1]);
    }
}
