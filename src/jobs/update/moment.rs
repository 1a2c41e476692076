//! The moment at which a robot may restart for an update: nothing that speaks against it may be left.
//!
//! Three things do: the times of the week in its configuration, programs of the robot (`update.d`), and locks that a
//! running program has taken with `systemd-inhibit`. A robot knows best what it is doing; no time is long enough to do
//! it against all three.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::boot::decide::growing_hours;
use crate::jobs::health::programs::{self, NoProgram, shown};
use crate::machine::clock;
use crate::machine::config::RestartWindow;
use crate::sys::companion::{self, Ended};
use crate::sys::gentle::{self, WallTime};

/// Directories of the robot's own programs: one that does not end with 0 holds the restart up. A name in the first
/// stands in place of the same name in the second.
pub const DIRECTORIES: [&str; 2] = ["/etc/reflash/update.d", "/usr/lib/reflash/update.d"];
/// Time for one of those programs, after which it counts as one that does not agree.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Longest rest after recoveries in vain, hours: also a robot that is switched off every night comes to its end.
const LONGEST_REST_H: u32 = 6;
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
/// Socket of the bus.
const BUS: &str = "/run/dbus/system_bus_socket";
/// Places of the unit of systemd's login manager: the machine's own stands in place of the image's, and a link to
/// `/dev/null` there switches it off.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/systemd-logind.service",
    "/usr/lib/systemd/system/systemd-logind.service",
    "/lib/systemd/system/systemd-logind.service",
];
/// Time for its answer.
const BUSCTL_LIMIT: Duration = Duration::from_secs(10);

/// Says what time is waited for; `None` while a window is open, or where there is none. `Err` names a time zone that is
/// not there: by UTC a robot would restart in the middle of its day. Pure.
#[must_use]
pub fn closed(windows: &[RestartWindow], unix_s: u64, time: Result<Option<WallTime>, String>) -> Option<String> {
    if windows.is_empty() {
        return None;
    }
    let named = windows.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let is_possible = (clock::BUILD_TIME..clock::BUILD_TIME.saturating_add(clock::FAR_S)).contains(&unix_s);
    let time = match time {
        Ok(time) => time.filter(|_| is_possible),
        Err(zone) => {
            return Some(format!(
                "the time {named}: the time zone {zone} of /etc/localtime is not in this system, so that the local time \
                 is not known; `timedatectl set-timezone` sets another"
            ));
        }
    };
    match time {
        None => Some(format!("the time {named}: the clock of this machine cannot be right")),
        Some(WallTime { weekday, minute }) if windows.iter().any(|window| window.is_open(weekday, minute)) => None,
        Some(_) => Some(format!("the time {named}")),
    }
}

/// Says what time is waited for now.
#[must_use]
pub fn closed_now(windows: &[RestartWindow], unix_s: u64) -> Option<String> {
    let lost = gentle::lost_time_zone(Path::new("/etc/localtime"));
    closed(windows, unix_s, lost.map_or_else(|| Ok(gentle::wall_time(unix_s)), Err))
}

/// Says what is waited for after so many recoveries in vain; `None` once this start is old enough. Pure.
///
/// What keeps recovery from applying an update mostly lasts, and each attempt is minutes without the robot. It goes by
/// the time since the start, for the clocks of recovery and system may differ.
#[must_use]
pub fn rest_after(in_vain: u32, uptime_s: u64) -> Option<String> {
    let hours = growing_hours(in_vain.checked_sub(1)?).min(LONGEST_REST_H);
    (uptime_s < u64::from(hours) * 3600).then(|| {
        let times = if in_vain == 1 { "once".to_owned() } else { format!("{in_vain} times") };
        format!(
            "{hours} h of this start, since recovery was asked {times} and installed nothing else: `reflash status` \
             has its warnings, `reflash update --apply` tries it now"
        )
    })
}

/// Asks the robot's own programs and the locks of running ones, and says what each waits for.
#[must_use]
pub fn objections(directories: &[&Path]) -> Vec<String> {
    let mut objections: Vec<String> = programs::run_all(directories, LIMIT, NoProgram::Failed)
        .iter()
        .map(|problem| format!("a program of the robot: {problem}"))
        .collect();
    objections.extend(LoginManager::of_this_machine().locks());
    objections
}

/// The login manager of systemd, which keeps the locks.
struct LoginManager<'a> {
    busctl: &'a Path,
    /// Socket of the bus.
    bus: &'a Path,
    /// Files of its unit, the first of which counts.
    units: &'a [&'a str],
    limit: Duration,
}

impl LoginManager<'_> {
    fn of_this_machine() -> LoginManager<'static> {
        LoginManager { busctl: Path::new(BUSCTL), bus: Path::new(BUS), units: &UNITS, limit: BUSCTL_LIMIT }
    }

    /// Whether there may be locks: there are none without a bus, the program that asks over it, and a login manager
    /// that is not switched off.
    fn is_there(&self) -> bool {
        let unit = self.units.iter().map(Path::new).find(|unit| unit.symlink_metadata().is_ok());
        let is_on = unit.is_some_and(|unit| unit.metadata().is_ok_and(|file| file.is_file()));
        self.busctl.exists() && self.bus.exists() && is_on
    }

    /// The locks that block a restart. Locks that cannot be asked for may block it too.
    fn locks(&self) -> Vec<String> {
        if !self.is_there() {
            return Vec::new();
        }
        let unknown = |why: String| vec![format!("the locks of running programs, which are not known: busctl {why}")];
        match companion::run_group_within(self.busctl, LOCKS, self.limit) {
            Ok((Ended::Exit(0), answer)) => {
                locks(&answer).unwrap_or_else(|| unknown("gave an answer that cannot be read".to_owned()))
            }
            Ok((Ended::Exit(code), _)) => unknown(format!("ended with {code}")),
            Ok((Ended::Signal, _)) => unknown("was ended by a signal".to_owned()),
            Ok((Ended::Late, _)) => unknown(format!("did not answer within {} s", self.limit.as_secs())),
            Err(error) => unknown(format!("cannot be started: {error}")),
        }
    }
}

/// Reads the answer about locks: those that block a restart. `None` for anything else than such an answer. Pure.
fn locks(answer: &str) -> Option<Vec<String>> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let mut blocking = Vec::new();
    for lock in answer["data"][0].as_array()? {
        let text = |at: usize| lock[at].as_str();
        let (what, who, why, mode) = (text(0)?, text(1)?, text(2)?, text(3)?);
        // A lock that only delays a restart gets its time from systemd.
        if mode.starts_with("block") && what.split(':').any(|what| what == "shutdown") {
            blocking.push(format!("a lock that {} holds: {}", shown(who), shown(why)));
        }
    }
    Some(blocking)
}

#[cfg(test)]
mod tests {
    use super::{LoginManager, closed, locks, objections, rest_after};
    use crate::machine::clock::BUILD_TIME;
    use crate::sys::gentle::WallTime;

    #[test]
    fn a_window_needs_a_clock_that_can_be_right() {
        let windows = ["Sat 22:00-06:00".parse().unwrap(), "12:00-13:00".parse().unwrap()];
        let at = |weekday, hours: u16| Some(WallTime { weekday, minute: hours * 60 });
        assert_eq!(closed(&[], 0, Ok(None)), None);
        assert_eq!(closed(&[], 0, Err("US/Pacific".into())), None);
        let lost = closed(&windows, BUILD_TIME, Err("US/Pacific".into())).unwrap();
        assert!(lost.contains("US/Pacific") && lost.contains("set-timezone"), "{lost}");
        for (unix_s, time, open) in [
            (BUILD_TIME, at(6, 5), true),
            (BUILD_TIME, at(2, 12), true),
            (BUILD_TIME, at(2, 11), false),
            (BUILD_TIME - 1, at(2, 12), false),
            (u64::MAX, at(2, 12), false),
            (BUILD_TIME, None, false),
        ] {
            assert_eq!(closed(&windows, unix_s, Ok(time)).is_none(), open, "{unix_s} {time:?}");
        }
        assert!(closed(&windows, 5, Ok(at(2, 12))).unwrap().contains("clock"));
        assert_eq!(closed(&windows, BUILD_TIME, Ok(at(2, 11))).unwrap(), "the time Sat 22:00-06:00, 12:00-13:00");
    }

    #[test]
    fn what_was_in_vain_is_tried_again_with_a_growing_rest() {
        assert_eq!(rest_after(0, 0), None);
        for (in_vain, hours) in [(1, 1), (2, 2), (3, 4), (4, 6), (16, 6), (u32::MAX, 6)] {
            let said = rest_after(in_vain, hours * 3600 - 1).unwrap();
            assert!(said.starts_with(&format!("{hours} h of this start")), "{said}");
            assert_eq!(rest_after(in_vain, hours * 3600), None, "{in_vain}");
        }
    }

    #[test]
    fn locks_that_block_a_restart_are_named() {
        // As busctl 252 prints it.
        let answer = r#"{"type":"a(ssssuu)","data":[[["shutdown:sleep","arm","welding","block",0,812],
            ["sleep","NetworkManager","needs to turn off networks","delay",0,600],
            ["shutdown","unattended-upgrades","stop","delay",0,700],["idle","x","y","block",0,9]]]}"#;
        assert_eq!(locks(answer).unwrap(), ["a lock that arm holds: welding"]);
        assert_eq!(locks(r#"{"type":"a(ssssuu)","data":[[]]}"#).unwrap(), [""; 0]);
        for nonsense in ["", "{}", "[]", "{\"data\":[[[1,2]]]}", "{\"data\":[[[\"shutdown\"]]]}"] {
            assert_eq!(locks(nonsense), None);
        }
    }

    #[test]
    fn locks_that_cannot_be_asked_for_are_an_objection() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let (busctl, bus, masked, unit) = (place("busctl"), place("bus"), place("masked"), place("unit"));
        let asked = || {
            let units = [masked.to_str().unwrap(), unit.to_str().unwrap()];
            let limit = std::time::Duration::from_secs(1);
            LoginManager { busctl: &busctl, bus: &bus, units: &units, limit }.locks().join("; ")
        };
        let script = |script: &str| {
            std::fs::write(&busctl, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&busctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        assert_eq!(asked(), "");
        script("exit 1");
        std::fs::write(&unit, "").unwrap();
        assert_eq!(asked(), "", "there is no bus");
        std::fs::write(&bus, "").unwrap();
        assert!(asked().ends_with("busctl ended with 1"), "{}", asked());
        script("exec sleep 30");
        assert!(asked().ends_with("did not answer within 1 s"));
        script("echo no JSON");
        assert!(asked().ends_with("cannot be read"));
        script("echo '{\"data\":[[]]}'");
        assert_eq!(asked(), "");
        script("exit 1");
        symlink("/dev/null", &masked).unwrap();
        assert_eq!(asked(), "", "the login manager is switched off");
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
