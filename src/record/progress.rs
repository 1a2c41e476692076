//! Progress of a piece of work: its rate, the time left, and one line that shows both. Pure: the caller brings the
//! time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seconds over which the rate is smoothed: long enough to read, short enough to follow a link that goes bad.
const SMOOTHING_S: f64 = 8.0;

/// A counter of work, shared by the threads that do it and the one that shows it.
#[derive(Debug, Default)]
pub struct Done {
    disk_bytes: AtomicU64,
    network_bytes: AtomicU64,
}

impl Done {
    /// Counts bytes that went to or came from the disk.
    pub fn disk(&self, bytes: u64) {
        self.disk_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that came from the network.
    pub fn network(&self, bytes: u64) {
        self.network_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Work done until now.
    #[must_use]
    pub fn so_far(&self) -> Bytes {
        Bytes { disk: self.disk_bytes.load(Ordering::Relaxed), network: self.network_bytes.load(Ordering::Relaxed) }
    }
}

/// An amount of work. Disk and network work at the same time and at different speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    /// Bytes read from and written to the disk.
    pub disk: u64,
    /// Bytes received from the network.
    pub network: u64,
}

impl Bytes {
    /// Work of the disk alone.
    #[must_use]
    pub fn of_disk(bytes: u64) -> Self {
        Self { disk: bytes, network: 0 }
    }
}

/// Work done against work to do.
#[derive(Debug, Clone)]
pub struct Meter {
    disk: Lane,
    network: Lane,
    last_at: Duration,
}

/// One of the two kinds of work.
#[derive(Debug, Clone, Default)]
struct Lane {
    total_bytes: u64,
    done_bytes: u64,
    rate: Option<f64>,
}

impl Lane {
    fn new(total_bytes: u64) -> Self {
        Self { total_bytes, ..Self::default() }
    }

    fn update(&mut self, seconds: f64, done_bytes: u64) {
        let done_bytes = done_bytes.min(self.total_bytes);
        let current = done_bytes.saturating_sub(self.done_bytes) as f64 / seconds;
        let weight = 1.0 - (-seconds / SMOOTHING_S).exp();
        self.rate = Some(self.rate.map_or(current, |rate| rate + weight * (current - rate)));
        self.done_bytes = done_bytes;
    }

    /// Seconds left at the present rate: infinite while standing still.
    fn seconds_left(&self) -> f64 {
        match self.total_bytes - self.done_bytes {
            0 => 0.0,
            left => left as f64 / self.rate.filter(|rate| *rate >= 1.0).unwrap_or_default(),
        }
    }
}

/// Reading of a meter at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    /// Bytes done, of disk and network together.
    pub done_bytes: u64,
    /// Bytes to do.
    pub total_bytes: u64,
    /// Smoothed rate of disk or network, whichever takes longer, once known.
    pub bytes_per_s: Option<u64>,
}

impl Meter {
    /// A meter that starts now, at time zero.
    #[must_use]
    pub fn new(total: Bytes) -> Self {
        Self { disk: Lane::new(total.disk), network: Lane::new(total.network), last_at: Duration::ZERO }
    }

    /// Updates the meter with the work done at `elapsed` since the start. Call it about once a second.
    pub fn update(&mut self, elapsed: Duration, done: Bytes) {
        let seconds = elapsed.saturating_sub(self.last_at).as_secs_f64();
        if seconds > 0.0 {
            self.disk.update(seconds, done.disk);
            self.network.update(seconds, done.network);
            self.last_at = elapsed;
        }
    }

    /// The lane that takes longer. Each waits for the other at times, so the sum of both would never settle.
    fn slower(&self) -> &Lane {
        if self.network.seconds_left() > self.disk.seconds_left() { &self.network } else { &self.disk }
    }

    /// Time left at the present rates; `None` while unknown or standing still.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let lane = self.slower();
        lane.rate?;
        Duration::try_from_secs_f64(lane.seconds_left()).ok()
    }

    /// Quantities behind [`line`](Self::line).
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge {
            done_bytes: self.disk.done_bytes.saturating_add(self.network.done_bytes),
            total_bytes: self.disk.total_bytes.saturating_add(self.network.total_bytes),
            bytes_per_s: self.slower().rate.map(whole),
        }
    }

    /// Formats one line of at most 79 columns: bar, share, amount or what takes longer, rate, time left.
    #[must_use]
    pub fn line(&self) -> String {
        const WIDTH: u8 = 24;
        let Gauge { done_bytes, total_bytes, bytes_per_s } = self.gauge();
        let total = total_bytes.max(1);
        // In 128 bits: the product of two sizes does not fit into 64.
        let filled = u128::from(done_bytes) * u128::from(WIDTH) / u128::from(total);
        let filled = usize::try_from(filled).unwrap_or_default().min(usize::from(WIDTH));
        let percent = u128::from(done_bytes) * 100 / u128::from(total);
        let bar = "#".repeat(filled) + &".".repeat(usize::from(WIDTH) - filled);
        let amount = match (self.network.total_bytes, std::ptr::eq(self.slower(), &raw const self.network)) {
            (0, _) => format!(" of {} ", bytes(total_bytes)),
            (_, true) => "  network".to_owned(),
            (_, false) => "  disk".to_owned(),
        };
        let rate = bytes_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", bytes(rate)));
        let left = self.time_left().map_or_else(|| "-:--".to_owned(), clock);
        format!("[{bar}] {percent:3}%{amount} {rate}  {left} left")
    }
}

/// A rate in whole bytes per second. Rates are finite and not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from floating point saturates")]
fn whole(rate: f64) -> u64 {
    rate as u64
}

/// Formats a quantity of bytes for people, in binary units.
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

/// Formats a duration as `m:ss`, or as `h:mm:ss` from one hour on.
#[must_use]
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Meter, bytes, clock};
    use std::time::Duration;

    #[test]
    fn rate_and_time_left_settle() {
        let mut meter = Meter::new(Bytes::of_disk(100 << 20));
        assert!(meter.time_left().is_none() && meter.line().contains("-:-- left"));
        for second in 1..=20 {
            meter.update(Duration::from_secs(second), Bytes::of_disk(second << 20));
        }
        assert_eq!(meter.time_left().unwrap().as_secs(), 80);
        assert!(meter.line().contains(" 20% of 100.0 MiB  1.0 MiB/s  1:20 left"), "{}", meter.line());
        // A stalled link is seen within seconds, and does not divide by zero.
        for second in 21..=60 {
            meter.update(Duration::from_secs(second), Bytes::of_disk(20 << 20));
        }
        assert!(meter.time_left().unwrap() > Duration::from_secs(2000));
    }

    #[test]
    fn the_time_left_is_that_of_what_takes_longer() {
        let mut meter = Meter::new(Bytes { disk: 1000 << 20, network: 100 << 20 });
        // Moves first: the disk is quick, and the network has hardly begun.
        for second in 1..=5 {
            meter.update(Duration::from_secs(second), Bytes { disk: second * (100 << 20), network: second << 20 });
        }
        let left = meter.time_left().unwrap().as_secs();
        assert!((90..=100).contains(&left), "{left}");
        assert!(meter.line().contains("network 1.0 MiB/s"), "{}", meter.line());
        // All is here, and a part of it is still to be written.
        meter.update(Duration::from_secs(6), Bytes { disk: 600 << 20, network: 100 << 20 });
        assert!(meter.line().contains("disk ") && meter.time_left().unwrap().as_secs() == 4, "{}", meter.line());
        meter.update(Duration::from_secs(7), Bytes { disk: 1000 << 20, network: 100 << 20 });
        assert!(meter.time_left().unwrap().is_zero() && meter.line().contains("100%"));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let most = Bytes { disk: u64::MAX, network: u64::MAX };
        let mut meter = Meter::new(most);
        meter.update(Duration::from_secs(1), most);
        assert!(meter.line().contains("100%"));
        assert!(Meter::new(Bytes::of_disk(0)).line().contains("0%"));
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
