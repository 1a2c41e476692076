//! What is known of how a server answers, learned from what came of it and from what did not. All threads that ask it
//! share what one of them learned.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::error::FetchErrorKind;
use super::part::MAX_SKIP;
use super::part_size::PartSize;

/// Ranges in a row that brought nothing of use, after which whole objects are asked for.
const PASSING_FAILURES: u32 = 2;

/// The habits of one server.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// How much is asked for at a time.
    pub part_size: PartSize,
    /// Ranges that brought nothing of use since one did.
    failed_ranges: AtomicU32,
    /// Whether whole objects are asked for, since ranges brought nothing of use and a whole one did.
    has_whole_only: AtomicBool,
    /// Whether chunked bodies were seen that do not end after their last byte.
    ends_late: AtomicBool,
}

impl Habits {
    /// Whether ranges bring nothing of use, as far as is known.
    pub(super) fn has_whole_only(&self) -> bool {
        self.has_whole_only.load(Ordering::Relaxed)
    }

    /// Whether the whole object is to be asked for where a range of it is wanted.
    pub(super) fn asks_for_whole(&self, wanted: &Range<u64>) -> bool {
        self.has_whole_only() && wanted.start <= MAX_SKIP
    }

    /// Notes whether a whole object brought what a range of it did not.
    pub(super) fn whole_came(&self, came: bool) {
        self.has_whole_only.store(came, Ordering::Relaxed);
    }

    /// Notes that a range came.
    pub(super) fn range_came(&self) {
        self.failed_ranges.store(0, Ordering::Relaxed);
    }

    /// Notes that a range failed after so many bytes, at the server itself or where it redirected to. Returns whether
    /// the whole object is to be asked for now: this may be the last attempt.
    pub(super) fn range_failed(
        &self,
        wanted: &Range<u64>,
        came_bytes: u64,
        kind: FetchErrorKind,
        is_elsewhere: bool,
    ) -> bool {
        self.part_size.failed(wanted.end - wanted.start, came_bytes, kind);
        if !may_be_of_the_range(kind, came_bytes, is_elsewhere) {
            return false;
        }
        let failures = self.failed_ranges.fetch_add(1, Ordering::Relaxed) + 1;
        if failures <= PASSING_FAILURES || wanted.start > MAX_SKIP {
            return false;
        }
        self.range_came();
        if came_bytes > 0 {
            // Whether a whole object is better shows in what comes next.
            self.whole_came(true);
        }
        came_bytes == 0
    }

    /// Whether the end of a chunked body shows although the connection stays open.
    pub(super) fn ends_in_time(&self) -> bool {
        !self.ends_late.load(Ordering::Relaxed)
    }

    /// Notes that a body did not end after its last byte.
    pub(super) fn ended_late(&self) {
        self.ends_late.store(true, Ordering::Relaxed);
    }
}

/// Whether a failure after so many bytes may be one of the range, and not of the object or of the moment. A redirect
/// may have led elsewhere.
fn may_be_of_the_range(kind: FetchErrorKind, came_bytes: u64, is_elsewhere: bool) -> bool {
    use FetchErrorKind::{Broken, Corrupt, Missing, Protocol, Refused, Stalled, Unreachable};
    match kind {
        Corrupt => true,
        Unreachable => is_elsewhere,
        Refused(status) => !matches!(status, 401 | 407 | 429 | 503),
        kind => came_bytes == 0 && matches!(kind, Broken | Missing | Protocol | Stalled),
    }
}

#[cfg(test)]
mod tests {
    use super::{Habits, PASSING_FAILURES};
    use crate::fetch::FetchErrorKind::{Broken, Corrupt, Missing, Protocol, Refused, Unreachable};
    use crate::fetch::part::MAX_SKIP;

    #[test]
    fn whole_objects_are_asked_for_after_ranges_that_bring_nothing() {
        let habits = Habits::default();
        let wanted = 1000..2000;
        for (kind, is_elsewhere) in [(Broken, false), (Refused(416), false), (Unreachable, true), (Protocol, false)] {
            for _ in 0..PASSING_FAILURES {
                assert!(!habits.range_failed(&wanted, 0, kind, is_elsewhere));
            }
            assert!(habits.range_failed(&wanted, 0, kind, is_elsewhere), "{kind:?}");
            assert!(!habits.asks_for_whole(&wanted), "nothing whole came yet");
        }
        habits.whole_came(true);
        assert!(habits.asks_for_whole(&wanted) && !habits.asks_for_whole(&(MAX_SKIP + 1..MAX_SKIP + 2)));
    }

    #[test]
    fn a_range_that_came_forgives_and_what_is_of_the_moment_does_not_count() {
        let habits = Habits::default();
        let wanted = 0..10;
        for _ in 0..10 {
            assert!(!habits.range_failed(&wanted, 0, Missing, false));
            habits.range_came();
            assert!(!habits.range_failed(&wanted, 0, Refused(503), false));
            assert!(!habits.range_failed(&wanted, 5, Broken, false));
            assert!(!habits.range_failed(&wanted, 0, Unreachable, false));
            assert!(!habits.range_failed(&(MAX_SKIP + 1..MAX_SKIP + 9), 0, Unreachable, false));
        }
    }

    #[test]
    fn what_comes_wrong_is_asked_for_whole_in_the_next_attempt() {
        let habits = Habits::default();
        let wanted = 0..10;
        assert!((0..=PASSING_FAILURES).all(|_| !habits.range_failed(&wanted, 10, Corrupt, false)));
        assert!(habits.asks_for_whole(&wanted));
        habits.whole_came(false);
        assert!(!habits.asks_for_whole(&wanted));
    }
}
