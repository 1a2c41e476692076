//! Virtual machines: QEMU with a serial console that a program can read and type into.

mod accelerator;
mod running;
mod screen;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::json;

use crate::paths::Paths;
use accelerator::PROCESSORS;

pub use accelerator::{Accelerator, PROBE_CODE};
pub use running::RunningMachine;

/// The firmware that a virtual machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestFirmware {
    /// SeaBIOS, as on a BIOS machine.
    Bios,
    /// OVMF, without a saved variable store: as after a dead CMOS battery.
    Uefi,
}

/// The way a disk is attached to a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskBus {
    /// A virtio-blk device.
    Virtio,
    /// A SATA disk.
    Ahci,
    /// An NVMe drive.
    Nvme,
    /// A USB mass storage device.
    Usb,
    /// An SD card in an SDHCI slot, which to Linux is what an eMMC is.
    Sd,
}

/// A sector of a disk that cannot be read, or not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadSector {
    /// Number of the sector, in units of 512 bytes.
    pub number: u64,
    /// Whether writes fail, and not reads.
    pub fails_writes: bool,
}

/// A virtual machine that can be started.
#[derive(Debug, Clone)]
pub struct VirtualMachine {
    /// Name of the machine, and of its logs.
    pub name: String,
    /// Path of the disk image, raw.
    pub disk: PathBuf,
    /// The bus that the disk is attached to.
    pub bus: DiskBus,
    /// Size of the disk's logical blocks, bytes: 512 or 4096.
    pub block_bytes: u32,
    /// The firmware that the machine starts with.
    pub firmware: GuestFirmware,
    /// Size of the memory, MiB.
    pub memory_mib: u32,
    /// Time of the hardware clock, as QEMU's `-rtc base=`; `None` is the true time.
    pub rtc: Option<String>,
    /// Serial number of the product, for the host name.
    pub serial_number: String,
    /// File in which QEMU logs every write and flush of the disk, in the format of dm-log-writes.
    pub write_log: Option<PathBuf>,
    /// A sector of the disk that is broken.
    pub bad_sector: Option<BadSector>,
    /// Whether the disk refuses every write.
    pub read_only: bool,
    /// Directory for a network boot, with `boot.ipxe` in it.
    pub netboot: Option<PathBuf>,
    /// Whether the serial console is also shown on standard error, line by line, while the machine runs.
    pub show_screen: bool,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
}

impl VirtualMachine {
    /// A robot with 512 MiB, the smallest memory that is supported.
    #[must_use]
    pub fn robot(name: &str, disk: &Path) -> Self {
        Self {
            name: name.to_owned(),
            disk: disk.to_owned(),
            bus: DiskBus::Virtio,
            block_bytes: 512,
            firmware: GuestFirmware::Bios,
            memory_mib: 512,
            rtc: None,
            serial_number: "DEMO0001".to_owned(),
            write_log: None,
            bad_sector: None,
            read_only: false,
            netboot: None,
            show_screen: false,
            extra: Vec::new(),
        }
    }

    /// Adds a hardware watchdog that resets the machine.
    pub fn add_watchdog(&mut self) {
        self.extra.extend(["-device", "i6300esb", "-watchdog-action", "reset"].map(str::to_owned));
    }

    /// Adds USB ports for drives that are plugged in while the machine runs.
    pub fn add_usb_ports(&mut self) {
        self.extra.extend(["-device", "qemu-xhci,id=ports"].map(str::to_owned));
    }

    /// Starts the machine.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(&self) -> Result<RunningMachine> {
        let logs = Paths::of_checkout().work().join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let create = |name: String| -> Result<(PathBuf, File)> {
            let path = logs.join(name);
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            Ok((path, file))
        };
        let (log_path, log) = create(format!("{}.serial.log", self.name))?;
        let (_, errors) = create(format!("{}.qemu.log", self.name))?;
        // Below /tmp, since a socket's path is limited to 108 bytes wherever the checkout is.
        let sockets = tempfile::Builder::new().prefix("reflash-vm").tempdir().context("make a directory")?;
        let monitor = sockets.path().join("monitor");
        let child = self
            .command()
            .args(["-monitor", &format!("unix:{},server,nowait", monitor.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("start qemu-system-x86_64")?;
        RunningMachine::new(&self.name, child, log, log_path, sockets, self.show_screen)
    }

    /// The disk, and what lies between it and the machine. A flush never waits for the host's own disk.
    fn block_device(&self) -> serde_json::Value {
        let file =
            |path: &Path| json!({ "driver": "file", "filename": path, "cache": { "direct": false, "no-flush": true } });
        let mut disk = file(&self.disk);
        if let Some(BadSector { number, fails_writes }) = self.bad_sector {
            let (event, kind) = if fails_writes { ("write_aio", "write") } else { ("read_aio", "read") };
            let error = json!({ "event": event, "iotype": kind, "sector": number, "errno": 5, "once": false });
            disk = json!({ "driver": "blkdebug", "image": disk, "inject-error": [error] });
        }
        // blkdebug is notified of reads by the format above it.
        disk = json!({ "driver": "raw", "file": disk });
        if let Some(log) = &self.write_log {
            disk = json!({ "driver": "blklogwrites", "log-super-update-interval": 1, "file": disk, "log": file(log) });
        }
        disk["node-name"] = "disk".into();
        disk
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", Accelerator::of_this_machine().argument()]).args(PROCESSORS);
        command.args(["-m", &format!("{}M", self.memory_mib), "-display", "none", "-serial", "stdio"]);
        self.add_disk(&mut command);
        let tftp = self.netboot.as_ref().map(|root| format!(",tftp={},bootfile=boot.ipxe", root.display()));
        command.args(["-netdev", &format!("user,id=net{}", tftp.as_deref().unwrap_or_default())]);
        let first = if tftp.is_some() { ",bootindex=0" } else { "" };
        command.args(["-device", &format!("virtio-net-pci,netdev=net{first}")]);
        command.args(["-smbios", &format!("type=1,product=reflash demo,serial={}", self.serial_number)]);
        if self.firmware == GuestFirmware::Uefi {
            command.args(["-bios", "/usr/share/ovmf/OVMF.fd"]);
        }
        if let Some(rtc) = &self.rtc {
            command.args(["-rtc", &format!("base={rtc},clock=vm")]);
        }
        command.args(&self.extra);
        command
    }

    fn add_disk(&self, command: &mut Command) {
        if self.write_log.is_none() && self.bad_sector.is_none() {
            let read_only = if self.read_only { ",readonly=on" } else { "" };
            let disk = format!("file={},if=none,id=disk,format=raw,cache=unsafe{read_only}", self.disk.display());
            command.args(["-drive", &disk]);
        } else {
            command.args(["-blockdev", &self.block_device().to_string()]);
        }
        let (controller, device) = match self.bus {
            DiskBus::Virtio => (None, "virtio-blk-pci"),
            DiskBus::Ahci => (Some("ahci,id=ahci"), "ide-hd,bus=ahci.0"),
            DiskBus::Nvme => (None, "nvme"),
            DiskBus::Usb => (Some("qemu-xhci,id=xhci"), "usb-storage,bus=xhci.0"),
            DiskBus::Sd => (Some("sdhci-pci"), "sd-card"),
        };
        if let Some(controller) = controller {
            command.args(["-device", controller]);
        }
        let mut device = format!("{device},id=robot,drive=disk");
        if self.bus != DiskBus::Sd {
            // The firmware tries this disk before every other one, and after a boot medium or the network.
            device += ",serial=disk0,bootindex=1";
        }
        if self.block_bytes != 512 {
            device += &format!(",logical_block_size={0},physical_block_size={0}", self.block_bytes);
        }
        command.args(["-device", &device]);
    }
}
