//! The system clock. Which time to believe is decided elsewhere; this only reads and sets.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// The system time now.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Sets the system clock. The hardware clock is left alone: a machine whose RTC is dead would lose it anyway, and
/// one whose RTC is right must not have it overwritten by a lower bound.
///
/// # Errors
/// `time` is before 1970, or the caller lacks `CAP_SYS_TIME`.
pub fn set(time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since)).map_err(Into::into)
}
