//! The system clock. Another room decides which time to believe; this only reads and sets it.

use std::io;
use std::time::SystemTime;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// The system time now.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970, by the system clock. 0 before: that is as wrong as 1970.
pub fn now_unix_s() -> u64 {
    now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since this machine was started, whatever its clock shows. 0 where the kernel does not say.
pub fn uptime_s() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

/// Sets the system clock to `unix_s` seconds since 1970. The hardware clock is left alone: a machine whose RTC is dead
/// would lose it anyway, and one whose RTC is right must not have it overwritten by a lower bound.
///
/// # Errors
/// The time is later than the kernel can count to, or the caller lacks `CAP_SYS_TIME`.
pub fn set(unix_s: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_s).map_err(io::Error::other)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, 0)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_time_that_no_clock_shows_is_an_error_and_no_panic() {
        for unix_s in [u64::MAX, i64::MAX as u64 + 1] {
            assert!(super::set(unix_s).is_err(), "{unix_s}");
        }
    }
}
