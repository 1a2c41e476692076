//! How long the check of the data partition may take. Pure.

use std::time::Duration;

/// Time in which a check must have moved [`LEAST_BYTES`].
const WINDOW: Duration = Duration::from_secs(300);
/// Bytes that a check must have read or written within [`WINDOW`]: an SD card gives a hundred times as much. A disk
/// that fails holds each read for half a minute, and a check of it would take days.
const LEAST_BYTES: u64 = 8 << 20;
/// Time that no check may exceed. A hard disk of 16 TB is checked in a few hours.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// The deadline of a check, which moves on with its progress.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Begin of the window.
    since: Duration,
    /// Bytes that had been moved by then.
    bytes: u64,
}

impl Patience {
    /// Whether a check goes on that runs for `age` and has moved `bytes` so far.
    pub(super) fn goes_on(&mut self, age: Duration, bytes: u64) -> bool {
        if bytes.saturating_sub(self.bytes) >= LEAST_BYTES {
            (self.since, self.bytes) = (age, bytes);
        }
        age.saturating_sub(self.since) < WINDOW && age < LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST_BYTES, LONGEST, Patience, WINDOW};
    use std::time::Duration;

    /// Seconds after which a check ends that moves so many bytes a second.
    fn ends_after(bytes_per_s: u64) -> u64 {
        let mut patience = Patience::default();
        (0..).find(|second| !patience.goes_on(Duration::from_secs(*second), second * bytes_per_s)).unwrap()
    }

    #[test]
    fn a_check_lasts_as_long_as_it_moves() {
        assert_eq!(ends_after(0), WINDOW.as_secs());
        // Four kilobytes every half minute, as from a disk that fails.
        assert_eq!(ends_after(137), WINDOW.as_secs());
        assert_eq!(ends_after(LEAST_BYTES / 100), LONGEST.as_secs());
    }

    #[test]
    fn one_that_stops_in_the_middle_is_ended_a_window_later() {
        let mut patience = Patience::default();
        let bytes = |second: u64| second.min(1000) * LEAST_BYTES;
        let end = (0..).find(|second| !patience.goes_on(Duration::from_secs(*second), bytes(*second)));
        assert_eq!(end, Some(1000 + WINDOW.as_secs()));
    }
}
