//! Points in time for people: in UTC, since a robot on a bench and its owner may stand in different time zones. Pure.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

/// The first second that is no date with a year of four digits: that of the year 10000.
const YEAR_10000_UNIX_S: u64 = 253_402_300_800;

/// Seconds since 1970, shown as a date (`Sat, 28 Nov 2026 08:11:39 GMT`), or as they are where no clock shows one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc(pub u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < YEAR_10000_UNIX_S {
            httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
        } else {
            write!(f, "{} s since 1970", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Utc, YEAR_10000_UNIX_S};

    #[test]
    fn any_second_is_shown() {
        assert_eq!(Utc(0).to_string(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(Utc(1_795_853_499).to_string(), "Sat, 28 Nov 2026 08:11:39 GMT");
        assert_eq!(Utc(YEAR_10000_UNIX_S - 1).to_string(), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(Utc(YEAR_10000_UNIX_S).to_string(), "253402300800 s since 1970");
        assert_eq!(Utc(u64::MAX).to_string(), "18446744073709551615 s since 1970");
    }
}
