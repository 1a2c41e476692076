//! Processes: whether this one is PID 1, programs that it starts, and orphans that it collects.
#![allow(unsafe_code)] // pre_exec, in one place

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::signals;

/// Held by the reaper while it collects orphans and by [`run_and_wait`] while a child of ours lives, so that the
/// reaper cannot collect the child's status first. Orphans wait as zombies meanwhile, which costs nothing.
static CHILDREN: Mutex<()> = Mutex::new(());

/// Whether this process is PID 1.
#[must_use]
pub fn is_pid1() -> bool {
    std::process::id() == 1
}

/// Collects the status of every orphan that has ended. Does nothing in a process that is not PID 1.
pub(super) fn reap_orphans() {
    let _ours = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_pid1() {
        return;
    }
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Runs a program to its end with stdio inherited, safe beside the reaper. The only way PID 1 may start a program:
/// with `std::process` alone the reaper can take the child's status first, and waiting for it fails.
///
/// # Errors
/// The program cannot be started. Its own failure is in the [`ExitStatus`].
pub fn run_and_wait(program: &Path, arguments: &[&str]) -> io::Result<ExitStatus> {
    let ours = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes one, sigprocmask, on a set
    // that lives on the stack; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(signals::unblock) };
    let status = command.status();
    drop(ours);
    // Orphans that ended meanwhile have signalled already.
    reap_orphans();
    status
}

#[cfg(test)]
mod tests {
    use super::{run_and_wait, signals};
    use std::path::Path;

    #[test]
    fn a_program_does_not_inherit_our_blocked_signals() {
        signals::of_pid1().thread_block().unwrap();
        // Bits 1, 14 and 16 of the mask: SIGINT, SIGTERM, SIGCHLD.
        let script = "grep -q 'SigBlk:.*00000$' /proc/self/status";
        assert!(run_and_wait(Path::new("/bin/sh"), &["-c", script]).unwrap().success());
        signals::of_pid1().thread_unblock().unwrap();
    }

    #[test]
    fn a_program_runs_and_its_status_comes_back() {
        assert!(run_and_wait(Path::new("/bin/true"), &[]).unwrap().success());
        assert_eq!(run_and_wait(Path::new("/bin/sh"), &["-c", "exit 3"]).unwrap().code(), Some(3));
        assert!(run_and_wait(Path::new("/no/such/program"), &[]).is_err());
    }
}
