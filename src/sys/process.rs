//! Processes: whether this one is PID 1, programs that it starts, and how they end.
#![allow(unsafe_code)] // pre_exec, in one place

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::signals;

/// Interval in which a watched program is looked at: an undamaged file system is checked in less than a second.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Intervals that a killed program is waited for, 10 s.
const KILL_INTERVALS: u32 = 500;

/// Whether this process is PID 1.
#[must_use]
pub fn is_pid1() -> bool {
    std::process::id() == 1
}

/// Whether PID 1 started this process, or the process that did is gone.
#[must_use]
pub fn is_child_of_pid1() -> bool {
    std::os::unix::process::parent_id() == 1
}

/// Ending of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEnding {
    /// The process ended by itself with this exit code.
    Exited(i32),
    /// A signal ended it. The name is the signal's, as `SIGSEGV`.
    Killed(&'static str),
    /// The kernel ended it, since the machine's memory had run out.
    OutOfMemory,
}

impl ProcessEnding {
    /// The ending, where the kernel had ended so many processes for want of memory before and after it: to the one that
    /// waits, such a death looks as if somebody had killed the process.
    #[must_use]
    pub fn among_oom_kills(self, before: u64, after: u64) -> Self {
        if self == Self::Killed("SIGKILL") && after > before { Self::OutOfMemory } else { self }
    }
}

impl fmt::Display for ProcessEnding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "{signal}"),
            Self::OutOfMemory => write!(f, "the machine's memory ran out"),
        }
    }
}

/// This program, started once more by PID 1 for the work that PID 1 itself must not be ended by.
#[derive(Debug)]
pub struct StartedWorker {
    /// Number of the process.
    pub pid: u32,
    /// Pipe to its standard input.
    pub input: ChildStdin,
    /// Pipe from its standard output.
    pub output: ChildStdout,
}

/// Starts this program once more, under the name `name` (its argument 0) and with one argument.
///
/// # Errors
/// The kernel has no memory or no room for another process.
pub fn start_self(name: &str, argument: &str) -> io::Result<StartedWorker> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes one, sigprocmask, on a set
    // that lives on the stack; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(signals::unblock) };
    let mut child = command.spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (input, output) = pipes.ok_or_else(|| io::Error::other("the pipes of the process are missing"))?;
    Ok(StartedWorker { pid: child.id(), input, output })
}

/// Waits until the child `pid` has ended. Orphans that end meanwhile are collected, as is the duty of PID 1.
pub fn wait_for(pid: u32) -> ProcessEnding {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(ended, code)) if is(ended, pid) => return ProcessEnding::Exited(code),
            Ok(WaitStatus::Signaled(ended, signal, _)) if is(ended, pid) => {
                return ProcessEnding::Killed(signal.as_str());
            }
            // No child at all: the status was lost, which does not happen while nothing else waits.
            Err(nix::errno::Errno::ECHILD) => return ProcessEnding::Exited(-1),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Number of processes that the kernel ended since its start for want of memory; 0 where it does not count them.
#[must_use]
pub fn oom_kills() -> u64 {
    oom_kills_of(&std::fs::read_to_string("/proc/vmstat").unwrap_or_default()).unwrap_or(0)
}

/// The count in `/proc/vmstat`, which has a name and a number on each line.
fn oom_kills_of(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Waits until no child of this process group is left, not even programs that a worker started and left behind, for at
/// most `limit`: a disk can hold a process that was killed. One of another group, as
/// [`companion`](super::companion) starts it, lives on. Whether none is left.
pub fn wait_for_group(limit: Duration) -> bool {
    let began = Instant::now();
    loop {
        match waitpid(Pid::from_raw(0), Some(WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if began.elapsed() >= limit => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(WATCH_INTERVAL),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits until the child `pid` has ended, for at most `limit`. Whether it has.
pub fn has_ended_within(pid: u32, limit: Duration) -> bool {
    let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) else { return true };
    let began = Instant::now();
    loop {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if began.elapsed() >= limit => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(WATCH_INTERVAL),
            Err(nix::errno::Errno::EINTR) => {}
            _ => return true,
        }
    }
}

fn is(ended: Pid, pid: u32) -> bool {
    u32::try_from(ended.as_raw()).is_ok_and(|ended| ended == pid)
}

/// Ends the child `pid` at once. One that has ended already stays ended.
pub fn end(pid: u32) {
    // Number 0 would mean every process of the group.
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Runs a program to its end, with all that it prints on our standard error: our standard output may be the pipe to
/// PID 1.
///
/// # Errors
/// The program cannot be started. Its own failure is in the [`ExitStatus`].
pub fn run_and_wait(program: &Path, arguments: &[&str]) -> io::Result<ExitStatus> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    // SAFETY: as in start_self.
    unsafe { command.pre_exec(signals::unblock) };
    command.status()
}

/// Ending of a program that was watched.
#[derive(Debug)]
pub enum WatchedEnding {
    /// The program ended by itself.
    Ended(ExitStatus),
    /// The program was ended, since it made no progress.
    Stopped,
}

/// Runs a program as [`run_and_wait`], and asks `goes_on` several times a second whether it may go on, with the bytes
/// that it has read and written so far. One that may not is killed. A disk can hold a program that was killed: it is
/// then left behind.
///
/// # Errors
/// The program cannot be started or waited for.
pub fn run_watched(
    program: &Path,
    arguments: &[&str],
    mut goes_on: impl FnMut(u64) -> bool,
) -> io::Result<WatchedEnding> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    // SAFETY: as in start_self.
    unsafe { command.pre_exec(signals::unblock) };
    let mut child = command.spawn()?;
    let mut bytes = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(WatchedEnding::Ended(status));
        }
        bytes = bytes.max(moved_bytes(child.id()));
        if !goes_on(bytes) {
            break;
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
    child.kill()?;
    for _ in 0..KILL_INTERVALS {
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
    Ok(WatchedEnding::Stopped)
}

/// Bytes that a process has read and written, by its account in `/proc`; 0 where the kernel keeps none.
fn moved_bytes(pid: u32) -> u64 {
    let account = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let count = |name: &str| {
        let value = account.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    count("rchar:").unwrap_or(0).saturating_add(count("wchar:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{ProcessEnding, oom_kills_of, run_and_wait, signals};
    use super::{WatchedEnding, run_watched};
    use std::path::Path;

    #[test]
    fn a_process_that_the_kernel_ends_for_want_of_memory_was_not_killed_by_somebody() {
        assert_eq!(oom_kills_of("pgfault 7\noom_kill 12\noom_kill_x 3\n"), Some(12));
        assert_eq!(oom_kills_of("pgfault 7\noom_kill many\n"), None);
        assert!(oom_kills_of(&std::fs::read_to_string("/proc/vmstat").unwrap()).is_some());
        let killed = ProcessEnding::Killed("SIGKILL");
        assert_eq!(killed.clone().among_oom_kills(1, 2), ProcessEnding::OutOfMemory);
        assert_eq!(killed.clone().among_oom_kills(2, 2), killed);
        assert_eq!(ProcessEnding::Killed("SIGSEGV").among_oom_kills(1, 2), ProcessEnding::Killed("SIGSEGV"));
    }

    #[test]
    fn a_program_does_not_inherit_our_blocked_signals() {
        signals::of_pid1().thread_block().unwrap();
        // Bits 1 and 14 of the mask: SIGINT, SIGTERM.
        let script = "grep -q 'SigBlk:.*00000$' /proc/self/status";
        assert!(run_and_wait(Path::new("/bin/sh"), &["-c", script]).unwrap().success());
        signals::of_pid1().thread_unblock().unwrap();
    }

    #[test]
    fn a_watched_program_goes_on_while_it_may() {
        let sh = |script: &str, goes_on: &mut dyn FnMut(u64) -> bool| {
            run_watched(Path::new("/bin/sh"), &["-c", script], goes_on).unwrap()
        };
        let ended = sh("exit 12", &mut |_| true);
        assert!(matches!(ended, WatchedEnding::Ended(status) if status.code() == Some(12)), "{ended:?}");
        let mut seen = 0;
        let script = "dd if=/dev/zero of=/dev/null bs=1M count=8 2>/dev/null; exec sleep 600";
        let stopped = sh(script, &mut |bytes| {
            seen = bytes;
            bytes == 0
        });
        assert!(matches!(stopped, WatchedEnding::Stopped), "{stopped:?}");
        assert!(seen > 0);
        assert!(run_watched(Path::new("/no/such/program"), &[], |_| true).is_err());
    }

    #[test]
    fn a_program_runs_and_its_status_comes_back() {
        assert!(run_and_wait(Path::new("/bin/true"), &[]).unwrap().success());
        assert_eq!(run_and_wait(Path::new("/bin/sh"), &["-c", "exit 3"]).unwrap().code(), Some(3));
        assert!(run_and_wait(Path::new("/no/such/program"), &[]).is_err());
    }
}
