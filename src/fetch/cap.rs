//! A bandwidth cap that all connections share, so that a fleet on one uplink, or a robot on a metered one, leaves room
//! for others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Clock;

/// The time whose worth of bytes may be had at once after a time without traffic. It is short: a whole second's worth
/// would be a burst on the line, and a cap protects what else is on it.
const BURST: Duration = Duration::from_millis(50);
/// One piece is this share of a second's worth, so that four connections that wait for each other stay smooth.
const PIECES_PER_S: u64 = 50;

/// A token bucket with a clock.
pub(super) struct Cap {
    clock: Arc<dyn Clock>,
    started: Instant,
    bucket: Mutex<Bucket>,
    piece_bytes: usize,
}

impl Cap {
    pub(super) fn new(bytes_per_s: u64, clock: Arc<dyn Clock>) -> Self {
        let piece_bytes = usize::try_from(bytes_per_s / PIECES_PER_S).unwrap_or(usize::MAX).max(512);
        Self { started: clock.now(), clock, bucket: Mutex::new(Bucket::new(bytes_per_s)), piece_bytes }
    }

    /// The most that should be read at once. What is not read stays in the receive window, which makes the server slow
    /// down: the kernel opens it only as far as a program reads. Shrinking the socket's buffer instead would cost the
    /// full rate of a long path once it is not the cap that limits.
    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// Pays for what was read: returns when the next piece may be read.
    pub(super) fn pay(&self, bytes: usize) {
        let now = self.clock.now().saturating_duration_since(self.started);
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes as u64, now);
        // The lock is free by now: each connection waits for its own place in the queue.
        self.clock.sleep_until(self.started + now + wait);
    }
}

/// A token bucket without a clock: all times are since one start.
struct Bucket {
    bytes_per_s: u64,
    /// The time at which everything taken so far is paid for.
    paid_at: Duration,
}

impl Bucket {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), paid_at: Duration::ZERO }
    }

    /// Takes `bytes` and returns how long to wait until they are paid for.
    fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(now.saturating_sub(BURST)) + cost;
        self.paid_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{BURST, Bucket, Cap};
    use crate::fetch::SystemClock;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_long_transfer_takes_its_time_whatever_the_pieces() {
        for piece in [512, 10_000, 65_536, MIB] {
            let (mut bucket, mut now, mut got) = (Bucket::new(MIB), Duration::from_secs(5), 0);
            while got < 8 * MIB {
                now += bucket.take(piece, now);
                got += piece;
            }
            let took = now.as_secs_f64() - 5.0;
            assert!((7.9..8.0 + piece as f64 / MIB as f64).contains(&took), "{piece}: {took} s");
        }
    }

    #[test]
    fn connections_share_and_none_starves() {
        let mut bucket = Bucket::new(MIB);
        let mut free_at = [Duration::ZERO; 4];
        let mut got = [0_u64; 4];
        // Each asks again as soon as it may, until 10 s are over.
        while let Some(next) = (0..4).min_by_key(|one| free_at[*one]).filter(|next| free_at[*next].as_secs() < 10) {
            free_at[next] += bucket.take(20_000, free_at[next]);
            got[next] += 20_000;
        }
        let all: u64 = got.iter().sum();
        assert!((10 * MIB..10 * MIB + 200_000).contains(&all), "{all}");
        assert!(got.iter().all(|one| (all / 5..all / 3).contains(one)), "{got:?}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut bucket = Bucket::new(1_000_000);
        assert_eq!(bucket.take(1, Duration::from_secs(3600)), Duration::ZERO);
        let wait = bucket.take(1_000_000, Duration::from_secs(3600));
        assert!(wait > Duration::from_secs(1) - BURST - Duration::from_millis(1) && wait < Duration::from_secs(1));
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert!(Bucket::new(1).take(u64::MAX, Duration::ZERO) > Duration::from_secs(1));
        assert_eq!(Bucket::new(u64::MAX).take(MIB, Duration::from_secs(1)), Duration::ZERO);
        let piece_bytes = |bytes_per_s| Cap::new(bytes_per_s, Arc::new(SystemClock)).piece_bytes();
        assert_eq!((piece_bytes(16 * 1024), piece_bytes(50 * MIB)), (512, 1 << 20));
    }
}
