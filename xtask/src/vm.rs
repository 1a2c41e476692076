//! Virtual machines: QEMU with a serial console that a program can read and type into.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::paths::Paths;

/// Firmware a machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, without a saved variable store: as after a dead CMOS battery.
    Uefi,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Virtio,
    /// SATA.
    Ahci,
    /// NVMe.
    Nvme,
    /// USB mass storage.
    Usb,
    /// An SD card in an SDHCI slot, which to Linux is what an eMMC is.
    Sd,
}

/// A machine to start.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Names its log.
    pub name: String,
    /// Disk image, raw.
    pub disk: PathBuf,
    /// How it is attached.
    pub bus: Bus,
    /// Its logical blocks, bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Firmware.
    pub firmware: Firmware,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// What the hardware clock says, as QEMU's `-rtc base=`; `None` is the true time.
    pub rtc: Option<String>,
    /// Serial number of the product, for the host name.
    pub serial_number: String,
    /// Where QEMU logs every write and flush of the disk, in dm-log-writes' format.
    pub write_log: Option<PathBuf>,
    /// A sector of the disk, in units of 512 bytes, that cannot be read.
    pub bad_sector: Option<u64>,
    /// A directory to start from by network boot, with `boot.ipxe` in it.
    pub netboot: Option<PathBuf>,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

impl Machine {
    /// A robot with 512 MiB, the smallest that is supported.
    #[must_use]
    pub fn robot(name: &str, disk: &Path) -> Self {
        Self {
            name: name.to_owned(),
            disk: disk.to_owned(),
            bus: Bus::Virtio,
            block_bytes: 512,
            firmware: Firmware::Bios,
            memory_mib: 512,
            rtc: None,
            serial_number: "DEMO0001".to_owned(),
            write_log: None,
            bad_sector: None,
            netboot: None,
            extra: Vec::new(),
        }
    }

    /// Gives it a hardware watchdog that resets it.
    pub fn add_watchdog(&mut self) {
        self.extra.extend(["-device", "i6300esb", "-watchdog-action", "reset"].map(str::to_owned));
    }

    /// Gives it USB ports for what is plugged in while it runs.
    pub fn add_usb_ports(&mut self) {
        self.extra.extend(["-device", "qemu-xhci,id=ports"].map(str::to_owned));
    }

    /// Starts it.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(&self) -> Result<Running> {
        let logs = Paths::of_checkout().work().join("logs");
        std::fs::create_dir_all(&logs)?;
        let log_path = logs.join(format!("{}.serial.log", self.name));
        let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
        let errors = File::create(logs.join(format!("{}.qemu.log", self.name)))?;
        // Below /tmp, since a socket's path is limited to 108 bytes wherever the checkout is.
        let sockets = tempfile::Builder::new().prefix("reflash-vm").tempdir().context("make a directory")?;
        let monitor = sockets.path().join("monitor");
        let mut child = self
            .command()
            .args(["-monitor", &format!("unix:{},server,nowait", monitor.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("start qemu-system-x86_64")?;
        let input = child.stdin.take().context("QEMU has no input")?;
        let mut output = child.stdout.take().context("QEMU has no output")?;
        let screen = Arc::new(Screen::default());
        let shared = Arc::clone(&screen);
        std::thread::spawn(move || shared.read_all(&mut output, log));
        Ok(Running { child, input, screen, log_path, monitor, _sockets: sockets, name: self.name.clone() })
    }

    /// The disk, and what lies between it and the machine. The host's own disk is never waited for.
    fn block_device(&self) -> serde_json::Value {
        let file =
            |path: &Path| json!({ "driver": "file", "filename": path, "cache": { "direct": false, "no-flush": true } });
        let mut disk = file(&self.disk);
        if let Some(sector) = self.bad_sector {
            let error = json!({ "event": "read_aio", "iotype": "read", "sector": sector, "errno": 5, "once": false });
            disk = json!({ "driver": "blkdebug", "image": disk, "inject-error": [error] });
        }
        // blkdebug hears of reads from the format above it.
        disk = json!({ "driver": "raw", "file": disk });
        if let Some(log) = &self.write_log {
            disk = json!({ "driver": "blklogwrites", "log-super-update-interval": 1, "file": disk, "log": file(log) });
        }
        disk["node-name"] = "disk".into();
        disk
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            &format!("{}M", self.memory_mib),
        ]);
        command.args(["-display", "none", "-serial", "stdio"]);
        if self.write_log.is_none() && self.bad_sector.is_none() {
            let disk = format!("file={},if=none,id=disk,format=raw,cache=unsafe", self.disk.display());
            command.args(["-drive", &disk]);
        } else {
            command.args(["-blockdev", &self.block_device().to_string()]);
        }
        let (controller, device) = match self.bus {
            Bus::Virtio => (None, "virtio-blk-pci"),
            Bus::Ahci => (Some("ahci,id=ahci"), "ide-hd,bus=ahci.0"),
            Bus::Nvme => (None, "nvme"),
            Bus::Usb => (Some("qemu-xhci,id=xhci"), "usb-storage,bus=xhci.0"),
            Bus::Sd => (Some("sdhci-pci"), "sd-card"),
        };
        if let Some(controller) = controller {
            command.args(["-device", controller]);
        }
        let mut device = format!("{device},drive=disk");
        if self.bus != Bus::Sd {
            // Before every other disk, behind what it may be started from besides.
            device += ",serial=disk0,bootindex=1";
        }
        if self.block_bytes != 512 {
            device += &format!(",logical_block_size={0},physical_block_size={0}", self.block_bytes);
        }
        command.args(["-device", &device]);
        let tftp = self.netboot.as_ref().map(|root| format!(",tftp={},bootfile=boot.ipxe", root.display()));
        command.args(["-netdev", &format!("user,id=net{}", tftp.as_deref().unwrap_or_default())]);
        let first = if tftp.is_some() { ",bootindex=0" } else { "" };
        command.args(["-device", &format!("virtio-net-pci,netdev=net{first}")]);
        command.args(["-smbios", &format!("type=1,product=reflash demo,serial={}", self.serial_number)]);
        if self.firmware == Firmware::Uefi {
            command.args(["-bios", "/usr/share/ovmf/OVMF.fd"]);
        }
        if let Some(rtc) = &self.rtc {
            command.args(["-rtc", &format!("base={rtc},clock=vm")]);
        }
        command.args(&self.extra);
        command
    }
}

/// A running machine. It is switched off, as by pulling the plug, when this is dropped.
pub struct Running {
    child: Child,
    input: ChildStdin,
    screen: Arc<Screen>,
    name: String,
    monitor: PathBuf,
    _sockets: tempfile::TempDir,
    /// Everything its serial line said.
    pub log_path: PathBuf,
}

/// What the serial line has said and nobody has waited for yet.
#[derive(Default)]
struct Screen {
    state: Mutex<ScreenState>,
    changed: Condvar,
}

#[derive(Default)]
struct ScreenState {
    unread: VecDeque<u8>,
    closed: bool,
}

impl Screen {
    fn read_all(&self, output: &mut impl Read, mut log: File) {
        let mut buffer = [0; 4096];
        let mut filter = EscapeFilter::default();
        loop {
            let len = output.read(&mut buffer).unwrap_or(0);
            // The log is for people who look after a failure; a full disk must not stop the machine.
            let _ = log.write_all(&buffer[..len]);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.unread.extend(buffer[..len].iter().filter(|byte| filter.passes(**byte)));
            state.closed |= len == 0;
            self.changed.notify_all();
            if len == 0 {
                return;
            }
        }
    }
}

/// Takes terminal control sequences out, so that text is found however GRUB's menu paints it.
#[derive(Default)]
struct EscapeFilter {
    inside: bool,
    bracket: bool,
}

impl EscapeFilter {
    fn passes(&mut self, byte: u8) -> bool {
        match (self.inside, byte) {
            (false, 0x1b) => (self.inside, self.bracket) = (true, false),
            (false, _) => return byte != b'\r',
            (true, b'[') if !self.bracket => self.bracket = true,
            // Intermediate bytes, as in the choice of a character set.
            (true, 0x20..=0x2f) => {}
            // ECMA-48: a control sequence ends with a byte from 0x40 to 0x7e; other escapes have one byte.
            (true, 0x40..=0x7e) => self.inside = false,
            (true, _) => self.inside = self.bracket,
        }
        false
    }
}

impl Running {
    /// Types text on the serial line.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).context("type on the serial line")
    }

    /// Waits until one of `patterns` was said after what was waited for before; tells which, and what came with it.
    ///
    /// # Errors
    /// When the time is over or the machine ended: the last lines it said.
    pub fn wait_for_any(&self, patterns: &[&str], timeout: Duration) -> Result<(usize, String)> {
        let deadline = Instant::now() + timeout;
        let mut state = self.screen.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(state.unread.make_contiguous()).into_owned();
            let first =
                (0..patterns.len()).filter_map(|n| text.find(patterns[n]).map(|at| (at + patterns[n].len(), n))).min();
            if let Some((end, pattern)) = first {
                let taken = text[..end].to_owned();
                // Lossy text may be longer than its bytes: drop what the kept tail leaves.
                let rest = text.as_bytes()[end..].to_vec();
                state.unread = rest.into();
                return Ok((pattern, taken));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "ended" } else { "was silent about it" };
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "the machine {:?} {why} while waiting {} s for {patterns:?}; its last lines ({}):\n    {}",
                    self.name,
                    timeout.as_secs(),
                    self.log_path.display(),
                    tail.join("\n    ")
                );
            }
            state = self.screen.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for one pattern.
    ///
    /// # Errors
    /// As [`wait_for_any`](Self::wait_for_any).
    pub fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait_for_any(&[pattern], timeout).map(|(_, text)| text)
    }

    /// Presses the power button: the system shuts down in its own order.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn press_power_button(&self) -> Result<()> {
        self.tell_monitor(&["system_powerdown"])
    }

    /// Pulls the network cable.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn unplug_network(&self) -> Result<()> {
        self.tell_monitor(&["set_link net off"])
    }

    /// Plugs a stick with this content into one of the [`Machine::add_usb_ports`].
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn plug_stick(&self, content: &Path) -> Result<()> {
        let drive = format!("drive_add 0 if=none,id=stick,format=raw,readonly=on,file={}", content.display());
        self.tell_monitor(&[&drive, "device_add usb-storage,id=plugged,bus=ports.0,drive=stick,removable=on"])
    }

    /// Pulls it out.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn pull_stick(&self) -> Result<()> {
        self.tell_monitor(&["device_del plugged"])
    }

    fn tell_monitor(&self, commands: &[&str]) -> Result<()> {
        let mut monitor = UnixStream::connect(&self.monitor).context("connect to QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
        // The monitor forgets a command whose sender is gone before it was carried out: wait for every prompt.
        wait_for_prompt(&mut monitor)?;
        for command in commands {
            monitor.write_all(format!("{command}\n").as_bytes()).with_context(|| format!("tell QEMU {command:?}"))?;
            wait_for_prompt(&mut monitor)?;
        }
        Ok(())
    }

    /// Waits until the machine has switched itself off.
    ///
    /// # Errors
    /// When it still runs after the time.
    pub fn wait_for_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                bail!("the machine {:?} still runs after {} s", self.name, timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Process ID of QEMU.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Pulls the plug.
    pub fn cut_power(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_prompt(monitor: &mut UnixStream) -> Result<()> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while !said.ends_with(b"\n(qemu) ") {
        let len = monitor.read(&mut buffer).context("wait for QEMU's monitor")?;
        anyhow::ensure!(len > 0, "QEMU's monitor hung up");
        said.extend_from_slice(&buffer[..len]);
    }
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cut_power();
    }
}

#[cfg(test)]
mod tests {
    use super::EscapeFilter;

    #[test]
    fn menus_become_plain_text() {
        let mut filter = EscapeFilter::default();
        let painted = b"\x1b[0m\x1b[30;47m*Start\x1b[5;3H\x1b(B the\r\n system";
        let text: Vec<u8> = painted.iter().copied().filter(|byte| filter.passes(*byte)).collect();
        assert_eq!(String::from_utf8(text).unwrap(), "*Start the\n system");
    }
}
