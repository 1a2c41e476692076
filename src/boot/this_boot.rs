//! What the running system knows of its own boot: whether it called itself good, and whether it is a safe start. Pure.

use std::time::Duration;

use super::decide::growing_hours;

/// Kernel argument of a safe start: `reflash.safe=N` for the Nth in a row.
pub const SAFE_ARGUMENT: &str = "reflash.safe";
/// Directory in memory for what is known of this boot alone.
pub const DIRECTORY: &str = "/run/reflash";
/// File that `reflash good` makes before anything else, and that is gone at the next boot: the boot watch has nothing
/// more to watch for, also where nothing can be stored.
pub const GOOD_MARK: &str = "/run/reflash/good";

/// Number of this safe start, counted from 1, of a kernel command line; `None` for a normal start. A number that cannot
/// be read is the first: that it is a safe start at all is what matters.
#[must_use]
pub fn safe_start(command_line: &str) -> Option<u32> {
    let values = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(SAFE_ARGUMENT));
    let value =
        values.filter_map(|rest| if rest.is_empty() { Some("1") } else { rest.strip_prefix('=') }).next_back()?;
    Some(value.parse().unwrap_or(1).max(1))
}

/// Time after which the safe start of this number ends in a normal start: 1 h, 2 h, 4 h and so on up to 24 h. What
/// keeps the system from coming up may have been mended by then (a device that was plugged in again, a server that is
/// back), and a robot that is of some use now must not be restarted every few minutes.
#[must_use]
pub fn pause_before_normal_start(number: u32) -> Duration {
    Duration::from_secs(3600) * growing_hours(number.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::{pause_before_normal_start, safe_start};

    #[test]
    fn a_safe_start_has_a_number() {
        for (line, expected) in [
            ("quiet reflash.system=x", None),
            ("reflash.safety=3 reflash.safer", None),
            ("quiet reflash.safe=2 ro", Some(2)),
            ("reflash.safe=2 reflash.safe=3\n", Some(3)),
            ("reflash.safe", Some(1)),
            ("reflash.safe=", Some(1)),
            ("reflash.safe=0", Some(1)),
            ("reflash.safe=99999999999", Some(1)),
        ] {
            assert_eq!(safe_start(line), expected, "{line}");
        }
    }

    #[test]
    fn the_pauses_grow_up_to_a_day() {
        let hours = |number| pause_before_normal_start(number).as_secs() / 3600;
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 40, u32::MAX].map(hours), [1, 1, 2, 4, 8, 16, 24, 24, 24]);
    }
}
