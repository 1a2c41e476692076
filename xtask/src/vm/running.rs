//! A virtual machine that runs: what its serial console shows, its keyboard, its plugs and its power.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::screen::{Screen, Wait};

/// Lines of the serial console that an error shows.
const SHOWN_LINES: usize = 25;

/// A running virtual machine. Dropping it switches the machine off, as pulling the plug does.
pub struct RunningMachine {
    child: Child,
    input: ChildStdin,
    screen: Arc<Screen>,
    name: String,
    /// The directory of QEMU's monitor socket.
    sockets: TempDir,
    /// Path of the log with everything that the serial console showed.
    pub log_path: PathBuf,
}

impl RunningMachine {
    /// Follows the serial console of `child`, which is QEMU with a monitor socket in `sockets`.
    pub(super) fn new(
        name: &str,
        mut child: Child,
        log: File,
        log_path: PathBuf,
        sockets: TempDir,
        shown: bool,
    ) -> Result<Self> {
        let input = child.stdin.take().context("QEMU has no input")?;
        let mut output = child.stdout.take().context("QEMU has no output")?;
        let screen = Arc::new(Screen::default());
        let shared = Arc::clone(&screen);
        // Made before the thread, so that QEMU ends when the thread cannot be made.
        let machine = Self { child, input, screen, name: name.to_owned(), sockets, log_path };
        std::thread::Builder::new()
            .name(format!("serial {name}"))
            .spawn(move || shared.read_all(&mut output, log, shown))
            .context("start the thread that reads the serial console")?;
        Ok(machine)
    }

    /// Types text on the serial console.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).context("type on the serial console")
    }

    /// Waits until the console shows one of `patterns`, after the text that the previous wait ended with. Returns the
    /// number of the pattern, and the text up to its end.
    ///
    /// # Errors
    /// When the time is over or the machine ended: the last lines that the console showed.
    pub fn wait_for_any(&self, patterns: &[&str], timeout: Duration) -> Result<(usize, String)> {
        let (why, text) = match self.screen.wait_for_any(patterns, timeout) {
            Wait::Found { pattern, text } => return Ok((pattern, text)),
            Wait::Ended { unread } => ("ended", unread),
            Wait::TimedOut { unread } => ("did not show it", unread),
        };
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "the virtual machine {:?} {why} while waiting {} s for {patterns:?}; its last lines ({}):\n    {}",
            self.name,
            timeout.as_secs(),
            self.log_path.display(),
            lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ")
        );
    }

    /// Waits until the console shows one pattern. Returns the text up to its end.
    ///
    /// # Errors
    /// As [`wait_for_any`](Self::wait_for_any).
    pub fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], timeout).map(|(_, text)| text)
    }

    /// Presses the power button: the system shuts down in its own order.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn press_power_button(&self) -> Result<()> {
        self.command_monitor(&["system_powerdown"])
    }

    /// Pulls the network cable.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn unplug_network(&self) -> Result<()> {
        self.command_monitor(&["set_link net off"])
    }

    /// Plugs a USB drive with this content into one of the ports of
    /// [`add_usb_ports`](super::VirtualMachine::add_usb_ports).
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn plug_usb_drive(&self, content: &Path) -> Result<()> {
        let drive = format!("drive_add 0 if=none,id=stick,format=raw,readonly=on,file={}", content.display());
        self.command_monitor(&[&drive, "device_add usb-storage,id=plugged,bus=ports.0,drive=stick,removable=on"])
    }

    /// Pulls the USB drive out.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn pull_usb_drive(&self) -> Result<()> {
        self.command_monitor(&["device_del plugged"])
    }

    /// Takes the machine's own disk away, which must be on [`DiskBus::Usb`](super::DiskBus::Usb).
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn pull_disk(&self) -> Result<()> {
        self.command_monitor(&["device_del robot"])
    }

    /// Gives the machine its own disk back.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn plug_disk(&self, disk: &Path) -> Result<()> {
        let drive = format!("drive_add 0 if=none,id=late,format=raw,cache=unsafe,file={}", disk.display());
        self.command_monitor(&[&drive, "device_add usb-storage,id=robot,bus=xhci.0,drive=late,serial=disk0"])
    }

    /// Has the kernel kill every process but PID 1: a break on the serial console, and then SysRq's `i`. The kernel
    /// must run with `sysrq_always_enabled`.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn kill_processes(&mut self) -> Result<()> {
        self.command_monitor(&["chardev-send-break serial0"])?;
        self.type_text("i")
    }

    fn command_monitor(&self, commands: &[&str]) -> Result<()> {
        let mut monitor =
            UnixStream::connect(self.sockets.path().join("monitor")).context("connect to QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(10))).context("set a time limit for QEMU's monitor")?;
        // The monitor drops a command whose sender hangs up before it was carried out: wait for every prompt.
        wait_for_prompt(&mut monitor)?;
        for command in commands {
            monitor.write_all(format!("{command}\n").as_bytes()).with_context(|| format!("send QEMU {command:?}"))?;
            wait_for_prompt(&mut monitor)?;
        }
        Ok(())
    }

    /// Waits until the machine has switched itself off.
    ///
    /// # Errors
    /// When the machine still runs after `timeout`.
    pub fn wait_for_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.try_wait().context("wait for QEMU")?.is_none() {
            if Instant::now() >= deadline {
                bail!("the virtual machine {:?} still runs after {} s", self.name, timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Cuts the power, as pulling the plug does.
    pub fn cut_power(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_prompt(monitor: &mut UnixStream) -> Result<()> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.ends_with(b"\n(qemu) ") {
        let len = monitor.read(&mut buffer).context("wait for QEMU's monitor")?;
        anyhow::ensure!(len > 0, "QEMU's monitor hung up");
        answer.extend_from_slice(&buffer[..len]);
    }
    Ok(())
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        self.cut_power();
    }
}
