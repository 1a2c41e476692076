//! The clock that pauses, caps and the memory of failures go by. Tests put one of their own in its place.

use std::time::Instant;

/// A clock that never goes back, and that one can wait for.
///
/// Waiting is until an instant and not for a duration, so that several threads that wait for one clock agree on when
/// they are done, however late each of them begins to wait.
pub trait Clock: Send + Sync {
    /// Returns the present instant.
    fn now(&self) -> Instant;

    /// Returns at this instant, or at once when it is past.
    fn sleep_until(&self, end: Instant);
}

/// The clock of this process.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, end: Instant) {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }
}
