//! PID 1: first mounts, console, signals, and a panic that reboots.
//!
//! Order of the calls: [`install_panic_hook`], [`bring_up`], [`start_signal_thread`] before any other thread.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::kmsg::{Kmsg, Level};
use super::mount::{Mount, MountError};
use super::process::is_pid1;
use super::thread::background;
use super::{power, signals};

/// Mounts `/proc`, `/sys`, `/dev` and `/run`; puts stdio on the console; quiets the kernel on the console down to
/// errors. The result lists what went wrong but can be lived without.
///
/// A file system that is mounted already stays: the kernel mounts `/dev` itself when `CONFIG_DEVTMPFS_MOUNT` covers the
/// initramfs.
///
/// # Errors
/// [`MountError`] for one of the four mounts, without which nothing works.
pub fn bring_up() -> Result<Vec<String>, MountError> {
    let mut notes = Vec::new();
    // Not data_only(): both live by their symbolic links, as /proc/self/exe.
    essential(Mount::virtual_fs("proc").no_suid().no_dev().no_exec(), "/proc")?;
    essential(Mount::virtual_fs("sysfs").no_suid().no_dev().no_exec(), "/sys")?;
    essential(Mount::virtual_fs("devtmpfs").no_suid().data("mode=0755"), "/dev")?;
    essential(Mount::virtual_fs("tmpfs").no_suid().no_dev().data("mode=0755"), "/run")?;
    if let Err(error) = stdio_on_console() {
        notes.push(format!("stdio is not on /dev/console: {error}"));
    }
    // A kernel developer's "debug" or "ignore_loglevel" stays in force.
    let chatty = fs::read_to_string("/proc/cmdline")
        .is_ok_and(|line| line.split_ascii_whitespace().any(|word| word == "debug" || word == "ignore_loglevel"));
    if !chatty && let Err(error) = fs::write("/proc/sys/kernel/printk", "4") {
        notes.push(format!("kernel messages stay on the console: {error}"));
    }
    // By default the kernel drops all but ten lines in five seconds from user space: a burst of progress would hide the
    // line that matters. The kernel refuses this when the command line sets the limit, which is a person's decision.
    // The kernel insists on the newline here.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    Ok(notes)
}

fn essential(mount: Mount, target: &str) -> Result<(), MountError> {
    match mount.on(target) {
        Err(error) if error.source.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(()),
        result => result,
    }
}

fn stdio_on_console() -> io::Result<()> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console")?;
    nix::unistd::dup2_stdin(&console)?;
    nix::unistd::dup2_stdout(&console)?;
    nix::unistd::dup2_stderr(&console)?;
    Ok(())
}

/// Returns the devices behind `/dev/console`. The preferred one, which is last in the kernel's list, comes first here.
/// `/dev/console` writes to that one only: with a screen and a serial line both configured, a person sees the agent on
/// all only if it writes to each.
pub fn consoles() -> Vec<PathBuf> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    active.split_ascii_whitespace().rev().map(|name| Path::new("/dev").join(name)).collect()
}

/// Takes over SIGTERM and SIGINT, which the kernel sends for ctrl-alt-del. Must run before any other thread is started,
/// because threads inherit the signal mask and a signal goes to any thread that does not block it.
///
/// At the first of them `on_shutdown` gets one sentence to show and makes the machine ready; then, or at a second one,
/// since a person does not want to wait, the machine is rebooted with disks released and synced, whatever the main
/// thread is blocked in.
///
/// # Errors
/// The kernel refused the signal mask or the thread.
pub fn start_signal_thread(on_shutdown: impl FnOnce(&str) + Send + 'static) -> io::Result<()> {
    let signals = signals::of_pid1();
    signals.thread_block()?;
    if is_pid1() {
        // Off means: do not reset the machine at once, send SIGINT to PID 1.
        nix::sys::reboot::set_cad_enabled(false)?;
    }
    let mut on_shutdown = Some(on_shutdown);
    background("signals", move || {
        loop {
            let Ok(signal) = signals.wait() else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let Some(first) = on_shutdown.take() else { restart() };
            let cause = if signal == Signal::SIGINT { "ctrl-alt-del" } else { "SIGTERM" };
            // In a thread of its own, so that a second signal is heard.
            let spawned = background("shutdown", move || {
                first(&format!("{cause}: rebooting"));
                restart();
            });
            if spawned.is_err() {
                restart();
            }
        }
    })
}

/// Restarts the machine, or ends this process where it is not PID 1. Tries again for as long as the kernel refuses.
fn restart() -> ! {
    loop {
        if !is_pid1() {
            std::process::exit(0);
        }
        let Err(error) = power::reboot();
        eprintln!("reflash: the kernel refuses to reboot: {error}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Makes a panic of PID 1 visible and harmless: prints it to the console and the kernel log, syncs, waits `delay` so
/// that a person can read it, and reboots. Not returning matters: the runtime would abort, and the death of PID 1 is
/// a kernel panic which by default stands still for ever. In any other process the usual hook runs.
pub fn install_panic_hook(delay: Duration) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if !is_pid1() {
            return;
        }
        let text = format!("{panic}; this is a bug in reflash. Rebooting in {} s", delay.as_secs());
        if let Ok(kmsg) = Kmsg::open() {
            let _ = kmsg.write(Level::Error, &text);
        }
        // stdout is left alone: the panic may have happened while its lock was held. stderr has no buffer to flush.
        let _ = writeln!(io::stderr(), "\nreflash: {text}");
        power::sync_within(Duration::from_secs(10));
        std::thread::sleep(delay);
        loop {
            let _ = power::reboot();
            std::thread::sleep(Duration::from_secs(1));
        }
    }));
}
