//! The moment at which a robot may restart for an update: nothing that speaks against it may be left.
//!
//! Three things do: the times of the week in its configuration, programs of the robot (`update.d`), and locks that a
//! running program has taken with `systemd-inhibit`. A robot knows best what it is doing; no time is long enough to do
//! it against all three.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::jobs::health::programs;
use crate::machine::clock;
use crate::machine::config::RestartWindow;
use crate::sys::companion;
use crate::sys::gentle::{self, WallTime};

/// Directories of the robot's own programs: one that does not end with 0 holds the restart up. A name in the first
/// stands in place of the same name in the second.
pub const DIRECTORIES: [&str; 2] = ["/etc/reflash/update.d", "/usr/lib/reflash/update.d"];
/// Time for one of those programs, after which it counts as one that does not agree.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Program of systemd that asks over the bus. What it prints is documented, unlike the files of the login manager.
const BUSCTL: &str = "/usr/bin/busctl";
const LOCKS: &[&str] = &[
    "--json=short",
    "call",
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "ListInhibitors",
];
/// Time for its answer.
const BUSCTL_LIMIT: Duration = Duration::from_secs(10);

/// Says what time is waited for; `None` while a window is open, or where there is none. Pure.
#[must_use]
pub fn closed(windows: &[RestartWindow], unix_s: u64, time: Option<WallTime>) -> Option<String> {
    if windows.is_empty() {
        return None;
    }
    let named = windows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let is_possible = (clock::BUILD_TIME..clock::BUILD_TIME.saturating_add(clock::FAR_S)).contains(&unix_s);
    match time.filter(|_| is_possible) {
        None => Some(format!("the time {named}: the clock of this machine cannot be right")),
        Some(WallTime { weekday, minute }) if windows.iter().any(|window| window.is_open(weekday, minute)) => None,
        Some(_) => Some(format!("the time {named}")),
    }
}

/// Says what time is waited for now.
#[must_use]
pub fn closed_now(windows: &[RestartWindow], unix_s: u64) -> Option<String> {
    closed(windows, unix_s, gentle::wall_time(unix_s))
}

/// Asks the robot's own programs and the locks of running ones, and says what each waits for.
#[must_use]
pub fn objections(directories: &[&Path]) -> Vec<String> {
    let mut objections: Vec<String> = programs::run_all(directories, LIMIT)
        .iter()
        .map(|problem| format!("a program of the robot: {problem}"))
        .collect();
    // A system without a login manager has no locks.
    if let Some((Some(0), answer)) = companion::run_within(Path::new(BUSCTL), LOCKS, BUSCTL_LIMIT) {
        objections.extend(locks(&answer));
    }
    objections
}

/// Reads the answer about locks: those that block a restart. Pure.
fn locks(answer: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let all = answer["data"][0].as_array().cloned().unwrap_or_default();
    let blocking = all.iter().filter_map(|lock| {
        let text = |at: usize| lock[at].as_str().unwrap_or_default();
        // A lock that only delays a restart gets its time from systemd.
        let blocks = text(3).starts_with("block") && text(0).split(':').any(|what| what == "shutdown");
        blocks.then(|| format!("a lock that {} holds: {}", text(1), text(2)))
    });
    blocking.collect()
}

#[cfg(test)]
mod tests {
    use super::{closed, locks, objections};
    use crate::machine::clock::BUILD_TIME;
    use crate::sys::gentle::WallTime;

    #[test]
    fn a_window_needs_a_clock_that_can_be_right() {
        let windows = ["Sat 22:00-06:00".parse().unwrap(), "12:00-13:00".parse().unwrap()];
        let at = |weekday, hours: u16| Some(WallTime { weekday, minute: hours * 60 });
        assert_eq!(closed(&[], 0, None), None);
        for (unix_s, time, open) in [
            (BUILD_TIME, at(6, 5), true),
            (BUILD_TIME, at(2, 12), true),
            (BUILD_TIME, at(2, 11), false),
            (BUILD_TIME - 1, at(2, 12), false),
            (u64::MAX, at(2, 12), false),
            (BUILD_TIME, None, false),
        ] {
            assert_eq!(closed(&windows, unix_s, time).is_none(), open, "{unix_s} {time:?}");
        }
        assert!(closed(&windows, 5, at(2, 12)).unwrap().contains("clock"));
        assert_eq!(closed(&windows, BUILD_TIME, at(2, 11)).unwrap(), "the time Sat 22:00-06:00, 12:00-13:00");
    }

    #[test]
    fn locks_that_block_a_restart_are_named() {
        // As busctl 252 prints it.
        let answer = r#"{"type":"a(ssssuu)","data":[[["shutdown:sleep","arm","welding","block",0,812],
            ["sleep","NetworkManager","needs to turn off networks","delay",0,600],
            ["shutdown","unattended-upgrades","stop","delay",0,700],["idle","x","y","block",0,9]]]}"#;
        assert_eq!(locks(answer), ["a lock that arm holds: welding"]);
        for nonsense in ["", "{}", "[]", "{\"data\":[[[1,2]]]}"] {
            assert!(locks(nonsense).is_empty());
        }
    }

    #[test]
    fn a_program_that_does_not_end_with_0_is_an_objection() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-arm");
        std::fs::write(&path, "#!/bin/sh\necho the arm is moving\nexit 1\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = objections(&[dir.path()]);
        assert!(found.iter().any(|it| it.contains("10-arm") && it.contains("the arm is moving")), "{found:?}");
    }
}
