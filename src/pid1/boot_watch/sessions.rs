//! Persons who are logged in, and when each of them last pressed a key.
//!
//! What counts is a process with a terminal below a program that logs persons in, and a terminal on which something
//! was typed: its access time changes when a program reads from it, which is what `w` shows as idle time. The records
//! of sessions (utmp, logind) are not asked: an emergency shell is in neither, and both need services that may be what
//! does not come up. A prompt that waits for a name is no session, so that noise on a serial line holds nothing; nor is
//! a session that was opened without a key, as by `agetty --autologin`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::order;

/// Programs that log a person in and start what that person uses, as the kernel shortens their names. Emergency and
/// rescue mode have `sulogin`.
const LOGINS: &[&str] =
    &["login", "sshd", "sshd-session", "dropbear", "sulogin", "systemd-sulogin", "in.telnetd", "telnetd"];
/// Those of them that give a session a terminal of its own. One below another program, as `sudo` or a container makes
/// it, says nothing of a person: a console may have logged in by itself.
const NETWORK_LOGINS: &[&str] = &["sshd", "sshd-session", "dropbear", "in.telnetd", "telnetd"];
/// Those of them that start no shell before a key is pressed, which may be the only one.
const EMERGENCY_LOGINS: &[&str] = &["sulogin", "systemd-sulogin"];
/// Generations that are looked up to find such a program, more than people nest shells.
const MAX_GENERATIONS: usize = 64;
/// Major numbers of the terminals that a network session gets (Linux' Documentation/admin-guide/devices.txt, Unix98
/// PTY slaves). Such a terminal begins with a login.
const NETWORK_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// A process, as far as sessions are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Name, as the kernel shortens it.
    pub name: String,
    /// Number of the process that started it.
    pub parent: u32,
    /// Device number of its controlling terminal; 0 for none.
    pub terminal: u32,
}

impl Process {
    /// Reads `/proc/PID/stat` (proc(5)): `12 (name) S 1 12 12 1088 ...`. A name may hold spaces and brackets.
    #[must_use]
    pub fn parse(stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let mut fields = after.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let terminal: i32 = fields.nth(2)?.parse().ok()?;
        Some(Self { name: name.to_owned(), parent, terminal: terminal.cast_unsigned() })
    }
}

/// Every process by its number.
pub type Processes = BTreeMap<u32, Process>;

/// Whether a program that logs persons in started this process, directly or not, and it is no such program itself: that
/// one may still be asking for the password.
fn is_logged_in(processes: &Processes, process: &Process) -> bool {
    is_below(processes, process, LOGINS)
}

/// Whether one of these programs started this process, directly or not, and it is none of them itself.
fn is_below(processes: &Processes, process: &Process, programs: &[&str]) -> bool {
    let is_login = |process: &Process| programs.contains(&process.name.as_str());
    if is_login(process) {
        return false;
    }
    let mut parent = process.parent;
    for _ in 0..MAX_GENERATIONS {
        let Some(above) = processes.get(&parent) else { return false };
        if is_login(above) {
            return true;
        }
        parent = above.parent;
    }
    false
}

/// Major number of a device number as `/proc` has it (Linux' `new_encode_dev`).
fn major(device: u32) -> u32 {
    (device >> 8) & 0xfff
}

/// What is remembered of a terminal.
#[derive(Debug, Clone, Copy)]
struct Terminal {
    /// Access time when it was last looked at, seconds and nanoseconds.
    read_at: (i64, i64),
    /// When something was typed, as far as that was seen.
    last_key: Option<Duration>,
}

/// The terminals of the machine, watched from the system's start on.
#[derive(Debug, Default)]
pub struct Sessions {
    terminals: BTreeMap<u32, Terminal>,
}

impl Sessions {
    /// Looks at all processes, and returns when a person who is logged in last pressed a key; `None` when nobody is, or
    /// pressed none. Times are compared with those of the look before, so that a clock that jumps means nothing.
    pub fn last_key(&mut self, now: Duration) -> Option<Duration> {
        self.judge(&processes(Path::new("/proc")), access_time, now)
    }

    /// The same of given processes; `access_time` is asked for the terminal of one of them.
    fn judge(
        &mut self,
        processes: &Processes,
        access_time: impl Fn(u32, u32) -> Option<(i64, i64)>,
        now: Duration,
    ) -> Option<Duration> {
        let mut seen: BTreeMap<u32, ((i64, i64), bool, bool)> = BTreeMap::new();
        for (pid, process) in processes.iter().filter(|(_, process)| process.terminal != 0) {
            let Some(time) = access_time(*pid, process.terminal) else { continue };
            let (newest, logged_in, by_key) = seen.entry(process.terminal).or_insert((time, false, false));
            *newest = time.max(*newest);
            *logged_in |= is_logged_in(processes, process);
            *by_key |= is_below(processes, process, EMERGENCY_LOGINS)
                || NETWORK_TERMINALS.contains(&major(process.terminal)) && is_below(processes, process, NETWORK_LOGINS);
        }
        self.terminals.retain(|device, _| seen.contains_key(device));
        for (device, (time, _, by_key)) in &seen {
            let first = Terminal { read_at: *time, last_key: None };
            let terminal = self.terminals.entry(*device).or_insert(first);
            if terminal.read_at != *time || *by_key && terminal.last_key.is_none() {
                *terminal = Terminal { read_at: *time, last_key: Some(now) };
            }
        }
        let of_sessions = seen.iter().filter(|(_, (_, logged_in, _))| *logged_in);
        of_sessions.filter_map(|(device, _)| self.terminals.get(device)?.last_key).max()
    }
}

/// Lists the processes of a `/proc`. One that ends meanwhile is left out.
fn processes(proc: &Path) -> Processes {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = |pid: u32| {
        let stat = fs::read(proc.join(pid.to_string()).join("stat")).ok()?;
        Some((pid, Process::parse(&String::from_utf8_lossy(&stat))?))
    };
    order::map(numbers.filter_map(read))
}

/// Last access to the terminal of a process, through what that process has open: `/dev/console` and the terminal behind
/// it have access times of their own.
fn access_time(pid: u32, terminal: u32) -> Option<(i64, i64)> {
    let opened = (0..3).filter_map(|number| fs::metadata(format!("/proc/{pid}/fd/{number}")).ok());
    let terminals = opened.filter(|file| file.file_type().is_char_device() && is_terminal(file.rdev(), terminal));
    terminals.map(|file| (file.atime(), file.atime_nsec())).max()
}

/// Whether a device number, as stat(2) has it, is that terminal or a name for the terminal of the program that opens
/// it: `/dev/tty` and `/dev/console`. `/proc` and stat(2) encode the numbers of terminals in the same way.
fn is_terminal(device: u64, terminal: u32) -> bool {
    device == u64::from(terminal) || matches!(device, 0x500 | 0x501)
}

#[cfg(test)]
mod tests {
    use super::{Process, Processes, Sessions, is_logged_in, is_terminal};
    use std::time::Duration;

    const TTY1: u32 = (4 << 8) | 1;
    const SERIAL: u32 = (4 << 8) | 64;
    const PTS0: u32 = 136 << 8;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn list(all: &[(u32, &str, u32, u32)]) -> Processes {
        let process = |(pid, name, parent, terminal): &(u32, &str, u32, u32)| {
            (*pid, Process { name: (*name).to_owned(), parent: *parent, terminal: *terminal })
        };
        all.iter().map(process).collect()
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let shell = Process::parse("812 (bash) S 700 812 812 34816 900 4194560 1 2 3\n").unwrap();
        assert_eq!(shell, Process { name: "bash".into(), parent: 700, terminal: PTS0 });
        let odd = Process::parse("5 (a) S 1 (b c)) R 1 5 5 0 -1 4194560").unwrap();
        assert_eq!((odd.name.as_str(), odd.terminal), ("a) S 1 (b c)", 0));
        assert_eq!(Process::parse("5 (x"), None);
        assert!(Process::parse(&std::fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }

    #[test]
    fn emergency_shells_and_logins_are_sessions_and_prompts_are_none() {
        let all = list(&[
            (1, "systemd", 0, 0),
            (10, "agetty", 1, TTY1),
            (20, "systemd-sulogin", 1, SERIAL),
            (21, "sulogin", 20, SERIAL),
            (22, "bash", 21, SERIAL),
            (30, "sshd", 1, 0),
            (31, "sshd", 30, 0),
            (32, "sh", 31, PTS0),
            (33, "vi", 32, PTS0),
            (40, "myapp", 1, TTY1),
            (50, "loop", 51, TTY1),
            (51, "loop", 50, TTY1),
        ]);
        let logged_in: Vec<u32> =
            all.iter().filter(|(_, one)| is_logged_in(&all, one) && one.terminal != 0).map(|(pid, _)| *pid).collect();
        // sulogin itself is below the program that starts it, and may be asking for the password.
        assert_eq!(logged_in, [22, 32, 33]);
    }

    #[test]
    fn only_keys_of_a_session_that_is_there_count() {
        let prompt = list(&[(1, "systemd", 0, 0), (10, "agetty", 1, SERIAL)]);
        let session = list(&[(1, "systemd", 0, 0), (10, "login", 1, SERIAL), (11, "bash", 10, SERIAL)]);
        let mut sessions = Sessions::default();
        let time = |seconds: i64| move |_: u32, _: u32| Some((seconds, 0));
        assert_eq!(sessions.judge(&prompt, time(100), at(1)), None);
        // Noise on the line, or a name that is being typed.
        assert_eq!(sessions.judge(&prompt, time(108), at(10)), None);
        // Who logged in has typed before.
        assert_eq!(sessions.judge(&session, time(108), at(20)), Some(at(10)));
        assert_eq!(sessions.judge(&session, time(108), at(900)), Some(at(10)));
        // The clock was set back by years: a key is a key.
        assert_eq!(sessions.judge(&session, time(16), at(910)), Some(at(910)));
        assert_eq!(sessions.judge(&prompt, time(16), at(920)), None, "logged out");
    }

    #[test]
    fn a_session_without_a_key_holds_nothing_but_one_over_the_network_begins_with_one() {
        let automatic = list(&[(1, "systemd", 0, 0), (10, "login", 1, TTY1), (11, "kiosk", 10, TTY1)]);
        let mut sessions = Sessions::default();
        assert_eq!(sessions.judge(&automatic, |_, _| Some((5, 0)), at(3)), None);
        assert_eq!(sessions.judge(&automatic, |_, _| Some((5, 0)), at(300)), None);
        let remote = list(&[(1, "systemd", 0, 0), (30, "sshd", 1, 0), (32, "bash", 30, PTS0)]);
        assert_eq!(sessions.judge(&remote, |_, _| Some((5, 0)), at(400)), Some(at(400)));
        // A pseudo terminal of a service is no login.
        let tmux = list(&[(1, "systemd", 0, 0), (30, "tmux: server", 1, 0), (32, "bash", 30, PTS0)]);
        assert_eq!(Sessions::default().judge(&tmux, |_, _| Some((5, 0)), at(400)), None);
    }

    #[test]
    fn a_terminal_that_a_program_made_holds_nothing_and_an_emergency_shell_begins_with_a_key() {
        let mut sessions = Sessions::default();
        let still = |_: u32, _: u32| Some((0, 0));
        let kiosk = [(1, "systemd", 0, 0), (10, "login", 1, TTY1), (11, "kiosk", 10, TTY1), (12, "sudo", 11, PTS0)];
        assert_eq!(sessions.judge(&list(&kiosk), still, Duration::from_secs(5)), None);
        // The prompt came and was answered between two looks.
        let shell = [(1, "systemd", 0, 0), (10, "systemd-sulogin", 1, SERIAL), (11, "bash", 10, SERIAL)];
        let seen = Duration::from_secs(10);
        assert_eq!(sessions.judge(&list(&shell), still, seen), Some(seen));
        assert_eq!(sessions.judge(&list(&shell), still, Duration::from_secs(15)), Some(seen));
    }

    #[test]
    fn terminals_are_known_by_their_numbers() {
        assert!(is_terminal(0x440, SERIAL) && is_terminal(0x501, SERIAL));
        assert!(!is_terminal(0x401, SERIAL) && !is_terminal(0x103, SERIAL));
    }
}
