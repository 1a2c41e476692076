//! A process that PID 1 of the initramfs starts beside itself and that lives on in the system: what it needs to outlive
//! the change of the root, and the service manager.
#![allow(unsafe_code)] // pre_exec and kill, in one place each

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::fs::OFlags;

use super::own_mounts::start_outside;
use super::{gentle, init, signals};

/// A companion that was started. When PID 1 becomes another program, `input` is closed, by which the companion knows.
#[derive(Debug)]
pub struct StartedCompanion {
    /// Pipe to its standard input.
    pub input: Option<ChildStdin>,
}

/// Starts this program once more under the name `name`. It leaves the process group of PID 1, so that PID 1 can wait
/// for all of its other children. A name that begins with `@` keeps systemd from ending it with the rest at shutdown
/// (systemd's "Using /tmp/ and /var/tmp/ safely" has a page beside it, "Storage Daemons for the Root File System").
///
/// # Errors
/// The kernel has no memory or no room for another process.
pub fn start(name: &str) -> io::Result<StartedCompanion> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes one, sigprocmask, on a set
    // that lives on the stack; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(signals::unblock) };
    let mut child: Child = command.spawn()?;
    Ok(StartedCompanion { input: child.stdin.take() })
}

/// Files that a companion opens at its start, since no path of its own leads there once PID 1 has another root.
#[derive(Debug)]
pub struct Handles {
    proc: File,
    sysrq: Option<File>,
}

impl Handles {
    /// Opens `/proc` and the trigger of the kernel's own restart.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn open() -> io::Result<Self> {
        let sysrq = OpenOptions::new().write(true).open("/proc/sysrq-trigger").ok();
        Ok(Self { proc: File::open("/proc")?, sysrq })
    }

    /// Takes the root that PID 1 has by now, for all threads.
    ///
    /// # Errors
    /// The process lacks the rights.
    pub fn follow_pid1(&self) -> io::Result<()> {
        // The memory file system that /proc was opened on has moved along with the other mounts.
        nix::unistd::fchdir(self.proc.as_fd())?;
        nix::unistd::chroot("1/root")?;
        nix::unistd::chdir("/")?;
        Ok(())
    }

    /// Has the kernel restart at once, without a word to any driver: for when reboot(2) hangs in one.
    pub fn restart_at_once(&self) {
        if let Some(mut sysrq) = self.sysrq.as_ref() {
            let _ = sysrq.write_all(b"b");
        }
    }
}

/// Keeps the kernel from ending this process for want of memory.
pub fn be_the_last_to_end() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// The signal by which systemd as PID 1 restarts the machine in order, `SIGRTMIN+5` (systemd(1)) of the GNU C library:
/// musl's own first real-time signal is another one.
const RESTART_SIGNAL: libc::c_int = 34 + 5;

/// Asks systemd to restart the machine in order. It does so in emergency mode too. Another PID 1, or one that has
/// frozen, does nothing.
pub fn ask_pid1_to_restart() {
    // SAFETY: kill(2) takes two numbers and touches no memory. PID 1 is there as long as the machine runs.
    let _ = unsafe { libc::kill(1, RESTART_SIGNAL) };
}

/// Writes a line to every console. One whose other end has stopped it, as noise on a serial line can, is passed over
/// rather than waited for.
pub fn write_to_consoles(line: &str) {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    for console in init::consoles() {
        if let Ok(mut console) = OpenOptions::new().write(true).custom_flags(flags).open(console) {
            let _ = console.write_all(format!("\r\nreflash: {line}\r\n").as_bytes());
        }
    }
}

/// Length of a program's output that is kept, from its end, bytes: what systemd says of 5,000 services. Without a pause
/// up to twice as much is held.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// Manner in which a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exit(i32),
    /// By a signal.
    Signal,
    /// Not at all within its time: it was ended, with what it had started.
    Late,
}

/// Runs a program, and ends it after `limit`. `None` when it could not be started or did not end by itself; otherwise
/// its exit code, and what it printed.
pub fn run_within(program: &Path, arguments: &[&str], limit: Duration) -> Option<(Option<i32>, String)> {
    let mut command = Command::new(program);
    command.args(arguments).stderr(Stdio::null());
    match run_limited(command, limit).ok()? {
        (Ended::Exit(code), text) => Some((Some(code), text)),
        (Ended::Signal, text) => Some((None, text)),
        (Ended::Late, _) => None,
    }
}

/// Runs a program whose errors go where those of this process go, and ends it after `limit`, with every process of its
/// group. Returns how it ended, and what it printed. It has the usual priorities, whatever those of this process are:
/// on a machine that is busy the lowest ones would take it beyond its time.
///
/// # Errors
/// It cannot be started.
pub fn run_group_within(program: &Path, arguments: &[&str], limit: Duration) -> io::Result<(Ended, String)> {
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes three system calls; it neither
    // allocates nor takes a lock.
    unsafe { command.pre_exec(gentle::be_usual) };
    run_limited(command, limit)
}

fn run_limited(mut command: Command, limit: Duration) -> io::Result<(Ended, String)> {
    let began = Instant::now();
    let command = start_outside(&mut command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let text = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&text);
    // A program that prints more than a pipe holds would never end, and one whose pipe is closed is ended by a signal.
    super::thread::background("output", move || keep_end(output, &shared))?;
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break status.code().map_or(Ended::Signal, Ended::Exit),
            None if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(100)),
            None => break Ended::Late,
        }
    };
    if ended == Ended::Late {
        let group = i32::try_from(child.id()).map_err(io::Error::other)?;
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
        let _ = child.try_wait();
    }
    // A grandchild that holds the pipe open must not hold this process.
    let waited = Instant::now();
    while Arc::strong_count(&text) > 1 && waited.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = text.lock().map(|mut text| std::mem::take(&mut *text)).unwrap_or_default();
    Ok((ended, String::from_utf8_lossy(&text).into_owned()))
}

/// Reads to the end, and keeps the end of what was read.
fn keep_end(mut output: impl Read, text: &Mutex<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut piece) {
        let Ok(mut text) = text.lock() else { return };
        text.extend_from_slice(piece.get(..length).unwrap_or_default());
        if text.len() > 2 * MAX_OUTPUT_BYTES {
            let before = text.len() - MAX_OUTPUT_BYTES;
            text.drain(..before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{run_group_within, run_within};
    use crate::sys::gentle::yield_to_all;
    use std::path::Path;
    use std::time::{Duration, Instant};

    #[test]
    fn a_program_that_has_to_answer_has_the_usual_priorities() {
        let stat = std::thread::spawn(|| {
            yield_to_all();
            run_group_within(Path::new("/bin/cat"), &["/proc/self/stat"], Duration::from_secs(5)).unwrap().1
        });
        let stat = stat.join().unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        // proc(5): nice value is field 19, policy field 41. Only root may take them back.
        let usual = if nix::unistd::geteuid().is_root() { ("0", "0") } else { (fields[16], fields[38]) };
        assert_eq!((fields[16], fields[38]), usual, "{stat}");
    }

    #[test]
    fn a_program_has_a_deadline_and_its_output_a_bound() {
        let shell = |script: &str| run_within(Path::new("/bin/sh"), &["-c", script], Duration::from_secs(2));
        assert_eq!(shell("echo a; exit 3"), Some((Some(3), "a\n".into())));
        let began = Instant::now();
        assert_eq!(shell("exec sleep 100"), None);
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(run_within(Path::new("/no/such/program"), &[], Duration::from_secs(1)), None);
        // One that says a lot is not ended for it, and all that systemd says of hundreds of services arrives.
        let (code, text) = shell("head -c 300000 /dev/zero | tr '\\0' x; echo; echo last; exit 4").unwrap();
        assert_eq!((code, text.len(), text.ends_with("x\nlast\n")), (Some(4), 300_006, true));
        let (code, text) = shell("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo last").unwrap();
        assert!(code == Some(0) && text.len() <= 2 * super::MAX_OUTPUT_BYTES && text.ends_with("x\nlast\n"));
        // What it leaves in the background holds nothing.
        assert_eq!(shell("sleep 30 & exit 0").map(|(code, _)| code), Some(Some(0)));
        assert_eq!(shell("sleep 30 & echo said; exit 1"), Some((Some(1), "said\n".into())));
    }
}
