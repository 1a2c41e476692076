//! Distinguishes a slow connection from one that only pretends to be alive, and keeps to a cap.

use std::io::Read;
use std::time::{Duration, Instant};

use super::cap::Cap;
use super::classify::classified_read;
use super::clock::Clock;
use super::error::{FetchError, FetchErrorKind};
use super::paced_socket::MIN_RATE;
use super::watch::SpeedWatch;

/// A reader that measures the rate. Only the time spent waiting for the server counts, not the time that the sink takes
/// to write, and not the pauses that the cap asks for.
pub(super) struct Pace<'c> {
    window: Duration,
    clock: &'c dyn Clock,
    cap: Option<&'c Cap>,
    /// The watch over the rates of all sources, with the path of the object.
    watch: Option<(&'c SpeedWatch, &'c str)>,
    began: Instant,
    waited: Duration,
    bytes: u64,
}

impl<'c> Pace<'c> {
    pub(super) fn new(
        window: Duration,
        clock: &'c dyn Clock,
        cap: Option<&'c Cap>,
        watch: Option<(&'c SpeedWatch, &'c str)>,
    ) -> Self {
        Self { window, clock, cap, watch, began: clock.now(), waited: Duration::ZERO, bytes: 0 }
    }

    pub(super) fn read(&mut self, url: &str, reader: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, FetchError> {
        let most = self.cap.map_or(buffer.len(), |cap| cap.piece_bytes().min(buffer.len()));
        let start = self.clock.now();
        let n = reader.read(&mut buffer[..most]).map_err(|error| classified_read(url, error))?;
        let waited = self.clock.now().saturating_duration_since(start);
        self.waited += waited;
        self.bytes += n as u64;
        // The end of a short object is no stall.
        if n > 0 && self.waited >= self.window {
            let least = MIN_RATE * self.window.as_secs();
            if self.bytes < least {
                let problem = format!("{} bytes in {} s count as a stall", self.bytes, self.waited.as_secs());
                return Err(FetchError::new(FetchErrorKind::Stalled, url, problem));
            }
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        if n > 0
            && let Some((watch, path)) = self.watch
            && let Some(problem) = watch.received(path, n as u64, waited, self.began)
        {
            return Err(FetchError::new(FetchErrorKind::Slow, url, problem));
        }
        if let Some(cap) = self.cap {
            cap.pay(n);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::Pace;
    use crate::fetch::cap::Cap;
    use crate::fetch::{Clock, FetchError, FetchErrorKind};

    const WINDOW: Duration = Duration::from_secs(1);

    /// A clock that moves only when it is moved or waited for.
    struct TestClock(Mutex<Instant>);

    impl TestClock {
        fn new() -> Arc<Self> {
            Arc::new(Self(Mutex::new(Instant::now())))
        }

        fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }
    }

    impl Clock for TestClock {
        fn now(&self) -> Instant {
            *self.0.lock().unwrap()
        }

        fn sleep_until(&self, end: Instant) {
            let mut now = self.0.lock().unwrap();
            *now = end.max(*now);
        }
    }

    /// A connection on which every read takes this long and brings this many bytes.
    struct Slow<'c>(&'c TestClock, Duration, usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.advance(self.1);
            Ok(self.2.min(buffer.len()))
        }
    }

    /// Reads so many times, with `between` of the receiving side's own after each; the number of bytes.
    fn read(
        pace: &mut Pace<'_>,
        connection: &mut Slow<'_>,
        times: usize,
        between: Duration,
    ) -> Result<usize, FetchError> {
        let mut buffer = [0; 4096];
        (0..times).try_fold(0, |got, _| {
            let more = pace.read("http://a/x", connection, &mut buffer)?;
            connection.0.advance(between);
            Ok(got + more)
        })
    }

    #[test]
    fn a_byte_now_and_then_is_a_stall() {
        let clock = TestClock::new();
        let mut pace = Pace::new(WINDOW, &*clock, None, None);
        let mut connection = Slow(&clock, Duration::from_millis(100), 1);
        assert_eq!(read(&mut pace, &mut connection, 9, Duration::ZERO).unwrap(), 9);
        let error = read(&mut pace, &mut connection, 1, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Stalled);
        assert!(error.to_string().contains("10 bytes in 1 s count as a stall"), "{error}");
    }

    #[test]
    fn a_slow_connection_goes_on_for_any_time_and_stalls_when_it_slows_down() {
        let clock = TestClock::new();
        let mut pace = Pace::new(WINDOW, &*clock, None, None);
        let slow = Duration::from_millis(100);
        assert_eq!(read(&mut pace, &mut Slow(&clock, slow, 26), 36_000, Duration::ZERO).unwrap(), 26 * 36_000);
        let error = read(&mut pace, &mut Slow(&clock, slow, 25), 36_000, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Stalled);
    }

    #[test]
    fn what_the_receiving_side_takes_is_no_stall() {
        let clock = TestClock::new();
        let mut pace = Pace::new(WINDOW, &*clock, None, None);
        let mut connection = Slow(&clock, Duration::from_millis(1), 1);
        assert_eq!(read(&mut pace, &mut connection, 900, Duration::from_secs(60)).unwrap(), 900);
    }

    #[test]
    fn what_a_cap_asks_for_is_no_stall() {
        let clock = TestClock::new();
        let cap = Cap::new(10, Arc::clone(&clock) as Arc<dyn Clock>);
        let mut pace = Pace::new(WINDOW, &*clock, Some(&cap), None);
        let start = clock.now();
        let mut connection = Slow(&clock, Duration::from_millis(1), 10);
        assert_eq!(read(&mut pace, &mut connection, 900, Duration::ZERO).unwrap(), 9_000);
        let took = clock.now() - start;
        assert!((899..=901).contains(&took.as_secs()), "{took:?}");
    }

    #[test]
    fn the_late_end_of_a_short_object_is_no_stall() {
        let clock = TestClock::new();
        let mut pace = Pace::new(WINDOW, &*clock, None, None);
        assert_eq!(read(&mut pace, &mut Slow(&clock, WINDOW * 3, 0), 1, Duration::ZERO).unwrap(), 0);
    }
}
