//! How fast each source delivers, and whether it is worth leaving for another one.
//!
//! A source is left only for another one that may be better: one that is not known to be slow where this one is below a
//! sensible rate, or one that gave several times as much. A robot whose sources are all slow, because its own line is,
//! tries each of them once and goes on with the best.

use std::time::{Duration, Instant};

/// The time spent waiting for a source, of all connections together, after which its rate is known: 5 s of four
/// connections, so that a hiccup of the line is not taken for a slow source.
const WINDOW: Duration = Duration::from_secs(20);
/// The bytes that say enough about a rate whatever the time, so that a fast source need not be waited for.
const ENOUGH_BYTES: u64 = 256 << 10;
/// Bytes per second of one connection below which another source is tried. A release of 500 MB would take half an hour
/// at this rate, with four connections.
const SENSIBLE_RATE: u64 = 64 << 10;
/// How many times as fast another source has to be known to be.
const WORTH_IT: u64 = 4;
/// The time for which a rate is believed: networks change.
const MEMORY: Duration = Duration::from_secs(600);
/// The time without a byte after which a measurement begins anew.
const LONGEST_GAP: Duration = Duration::from_secs(60);

/// The rate of one source.
#[derive(Debug, Default)]
pub(super) struct Speed {
    bytes: u64,
    waited: Duration,
    last: Option<Instant>,
    /// Bytes per second of one connection in the last whole window.
    rate: Option<(u64, Instant)>,
    slow_since: Option<Instant>,
}

impl Speed {
    /// Adds what a connection received after it waited that long. Returns whether the measurement of a window ended.
    fn add(&mut self, bytes: u64, waited: Duration, now: Instant) -> bool {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > LONGEST_GAP) {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        self.last = Some(now);
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < WINDOW {
            return false;
        }
        self.rate = Some((per_second(self.bytes, self.waited), now));
        (self.bytes, self.waited) = (0, Duration::ZERO);
        true
    }

    /// Bytes per second of one connection, where that is known.
    fn rate(&self, now: Instant) -> Option<u64> {
        let measured = self.rate.filter(|(_, at)| now.saturating_duration_since(*at) < MEMORY).map(|(rate, _)| rate);
        measured.or_else(|| (self.bytes >= ENOUGH_BYTES).then(|| per_second(self.bytes, self.waited)))
    }

    /// The place among the sources: those that were left for being slow come last, the fastest of them first.
    pub(super) fn place(&self, now: Instant) -> (bool, std::cmp::Reverse<u64>) {
        let is_slow = self.is_slow(now);
        (is_slow, std::cmp::Reverse(if is_slow { self.rate(now).unwrap_or_default() } else { 0 }))
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.slow_since.is_some_and(|since| now.saturating_duration_since(since) < MEMORY)
    }

    /// Adds what was received by a transfer that `began` then, and decides whether the source is to be left for one of
    /// the others. The answer is its rate, and the known rate of the best of the others.
    pub(super) fn received<'s>(
        &mut self,
        bytes: u64,
        waited: Duration,
        (began, now): (Instant, Instant),
        others: impl Iterator<Item = &'s Speed>,
    ) -> Option<(u64, Option<u64>)> {
        let is_measured = self.add(bytes, waited, now);
        // The transfers that went on when one of them left the source need no window of their own. Later ones do: that
        // they came back means that there was nothing better.
        if !is_measured && self.slow_since.is_none_or(|since| began >= since) {
            return None;
        }
        let (rate, _) = self.rate?;
        let is_better = |other: &&Speed| match other.rate(now) {
            Some(theirs) => theirs >= rate.saturating_mul(WORTH_IT).max(1),
            None => rate < SENSIBLE_RATE,
        };
        let better: Vec<Option<u64>> = others.filter(is_better).map(|other| other.rate(now)).collect();
        let best = better.iter().max()?;
        if is_measured {
            self.slow_since = Some(now);
        }
        Some((rate, *best))
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MEMORY, SENSIBLE_RATE, Speed, WINDOW};

    /// Receives at a rate for so many seconds, a piece each second, until the source is to be left; the second.
    fn run(speed: &mut Speed, rate: u64, seconds: u64, now: &mut Instant, others: &[Speed]) -> Option<u64> {
        let began = *now;
        (0..seconds).find(|_| {
            *now += Duration::from_secs(1);
            speed.received(rate, Duration::from_secs(1), (began, *now), others.iter()).is_some()
        })
    }

    fn known(rate: u64, now: &mut Instant) -> Speed {
        let mut speed = Speed::default();
        run(&mut speed, rate, WINDOW.as_secs(), now, &[]);
        speed
    }

    #[test]
    fn a_slow_source_is_left_after_a_window_if_there_is_another() {
        let mut now = Instant::now();
        let window = WINDOW.as_secs();
        assert_eq!(run(&mut Speed::default(), 300, 5_000, &mut now, &[]), None, "it is the only one");
        let mut slow = Speed::default();
        assert_eq!(run(&mut slow, 300, 100, &mut now, &[Speed::default()]), Some(window - 1));
        let second = Duration::from_secs(1);
        let mut began = |before: Duration| {
            let others = [Speed::default()];
            slow.received(300, second, (now - before, now), others.iter()).is_some()
        };
        assert!(began(second * 30), "a transfer that went on meanwhile ends too");
        assert!(!began(Duration::ZERO), "one that came back goes on for a window");
        assert_eq!(run(&mut Speed::default(), SENSIBLE_RATE, 5_000, &mut now, &[Speed::default()]), None);
    }

    #[test]
    fn of_slow_sources_the_best_is_kept() {
        let mut now = Instant::now();
        let (mut best, worse) = (Speed::default(), known(10_000, &mut now));
        assert_eq!(run(&mut best, 9_000, 500, &mut now, &[worse]), None, "the other is not worth it");
        let better = known(40_000, &mut now);
        assert_eq!(run(&mut Speed::default(), 9_000, 500, &mut now, &[better]), Some(WINDOW.as_secs() - 1));
        // Rates are forgotten, and then the other one is tried again.
        let worse = known(10_000, &mut now);
        let again = run(&mut Speed::default(), 9_000, 2_000, &mut now, &[worse]).unwrap();
        assert!(again > MEMORY.as_secs() - WINDOW.as_secs(), "{again}");
    }

    #[test]
    fn a_source_that_is_fast_enough_is_left_only_for_one_that_is_much_faster() {
        let mut now = Instant::now();
        let fast = || Speed { bytes: 100 << 20, waited: Duration::from_secs(5), ..Speed::default() };
        assert_eq!(run(&mut Speed::default(), 100_000, 100, &mut now, &[fast()]), Some(WINDOW.as_secs() - 1));
        assert_eq!(run(&mut Speed::default(), 10 << 20, 100, &mut now, &[fast()]), None);
    }

    #[test]
    fn slow_sources_come_last_and_the_fastest_of_them_first() {
        let mut now = Instant::now();
        let slow = |rate, now: &mut Instant| {
            let mut speed = Speed::default();
            run(&mut speed, rate, 100, now, &[Speed::default()]);
            speed
        };
        let speeds = [slow(300, &mut now), slow(3_000, &mut now), known(500, &mut now), Speed::default()];
        let order = |now| {
            let mut order = [0, 1, 2, 3];
            order.sort_by_key(|&index: &usize| (speeds[index].place(now), index));
            order
        };
        assert_eq!(order(now), [2, 3, 1, 0]);
        assert_eq!(order(now + MEMORY), [0, 1, 2, 3]);
    }

    #[test]
    fn small_files_now_and_then_are_no_measurement() {
        let mut now = Instant::now();
        let mut speed = Speed::default();
        for _ in 0..1_000 {
            now += Duration::from_secs(300);
            assert_eq!(speed.received(900, Duration::from_millis(100), (now, now), [Speed::default()].iter()), None);
        }
    }
}
