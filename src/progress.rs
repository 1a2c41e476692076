//! Rate and time left, and how they look. Pure: the caller brings the time.

use std::time::Duration;

/// Seconds over which the rate is smoothed: long enough to read, short enough to follow a link that goes bad.
const SMOOTHING_S: f64 = 8.0;

/// Bytes done against bytes to do.
#[derive(Debug, Clone)]
pub struct Meter {
    total_bytes: u64,
    done_bytes: u64,
    last_at: Duration,
    last_done: u64,
    rate: Option<f64>,
}

/// What a meter shows at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes to do.
    pub total_bytes: u64,
    /// Smoothed rate, once known.
    pub bytes_per_s: Option<u64>,
}

impl Meter {
    /// A meter that starts now, at time zero.
    #[must_use]
    pub fn new(total_bytes: u64) -> Self {
        Self { total_bytes, done_bytes: 0, last_at: Duration::ZERO, last_done: 0, rate: None }
    }

    /// Takes the state at `elapsed` since the start. Call it about once a second.
    pub fn update(&mut self, elapsed: Duration, done_bytes: u64) {
        self.done_bytes = done_bytes.min(self.total_bytes);
        let seconds = elapsed.saturating_sub(self.last_at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let current = self.done_bytes.saturating_sub(self.last_done) as f64 / seconds;
        let weight = 1.0 - (-seconds / SMOOTHING_S).exp();
        self.rate = Some(self.rate.map_or(current, |rate| rate + weight * (current - rate)));
        (self.last_at, self.last_done) = (elapsed, self.done_bytes);
    }

    /// Smoothed bytes per second, once known.
    #[must_use]
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.rate
    }

    /// Time left at the present rate; `None` while unknown or standing still.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64((self.total_bytes - self.done_bytes) as f64 / rate).ok()
    }

    /// The quantities behind [`line`](Self::line).
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        let bytes_per_s = self.rate.map(|rate| rate as u64);
        Gauge { done_bytes: self.done_bytes, total_bytes: self.total_bytes, bytes_per_s }
    }

    /// One line of at most 79 columns: bar, share, amount, rate, time left.
    #[must_use]
    pub fn line(&self) -> String {
        const WIDTH: u64 = 24;
        let total = self.total_bytes.max(1);
        // In 128 bits: the product of two sizes does not fit into 64.
        let filled = (u128::from(self.done_bytes) * u128::from(WIDTH) / u128::from(total)) as usize;
        let percent = u128::from(self.done_bytes) * 100 / u128::from(total);
        let bar = "#".repeat(filled) + &".".repeat(WIDTH as usize - filled);
        let rate = self.rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", bytes(rate as u64)));
        let left = self.time_left().map_or_else(|| "-:--".to_owned(), clock);
        format!("[{bar}] {percent:3}% of {}  {rate}  {left} left", bytes(self.total_bytes))
    }
}

/// A quantity of bytes for people, in binary units.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `m:ss`, or `h:mm:ss`.
#[must_use]
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::{Meter, bytes, clock};
    use std::time::Duration;

    #[test]
    fn rate_and_time_left_settle() {
        let mut meter = Meter::new(100 << 20);
        assert!(meter.time_left().is_none() && meter.line().contains("-:-- left"));
        for second in 1..=20 {
            meter.update(Duration::from_secs(second), second << 20);
        }
        assert_eq!(meter.time_left().unwrap().as_secs(), 80);
        assert!(meter.line().contains(" 20% of 100.0 MiB  1.0 MiB/s  1:20 left"), "{}", meter.line());
        // A stalled link is seen within seconds, and does not divide by zero.
        for second in 21..=60 {
            meter.update(Duration::from_secs(second), 20 << 20);
        }
        assert!(meter.time_left().unwrap() > Duration::from_secs(2000));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut meter = Meter::new(u64::MAX);
        meter.update(Duration::from_secs(1), u64::MAX);
        assert!(meter.line().contains("100%"));
        assert!(Meter::new(0).line().contains("0%"));
    }

    #[test]
    fn quantities_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes((1 << 20) - 1), bytes(3 << 30)],
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "3.0 GiB"]
        );
        assert_eq!([clock(Duration::from_secs(59)), clock(Duration::from_secs(3661))], ["0:59", "1:01:01"]);
    }
}
