//! Which accelerator virtual machines use: KVM where a probe boot shows that it runs a guest, otherwise emulation.
//!
//! The presence of `/dev/kvm` proves nothing. Inside another virtual machine it may exist and yet make QEMU abort, or
//! start a guest that hangs. So a guest is started, and has to show that it ran.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Time for the firmware to start and to load the boot sector. KVM needs 0.3 s, emulation on a busy machine 2 s. A
/// machine whose KVM is slower than that is emulated, which takes longer and works all the same.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// QEMU's arguments for the processors of every virtual machine, the one of the probe included.
pub(super) const PROCESSORS: [&str; 4] = ["-cpu", "max", "-smp", "2"];

/// Size of a boot sector, bytes.
const SECTOR_BYTES: usize = 512;

/// The machine code of the probe, which the firmware runs in real mode. QEMU's device for debug exits ends QEMU with
/// the status `value << 1 | 1` when a guest writes to it. A text on the serial line would need a thread that reads it.
pub const PROBE_CODE: &[u8] = &[
    0xb0, 0x10, // mov al, 0x10
    0xe6, 0xf4, // out 0xf4, al
    0xfa, // cli
    0xf4, // hlt
];

/// The status that [`PROBE_CODE`] ends QEMU with; QEMU's own failures have the status 1 or a signal.
const PROBE_STATUS: i32 = 0x10 << 1 | 1;

/// The means by which the instructions of a guest are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, through Linux' KVM.
    Kvm,
    /// QEMU's own translator, which runs everywhere.
    Emulation,
}

impl Accelerator {
    /// The accelerator for this machine: found out once per process, and announced on standard error then.
    #[must_use]
    pub fn of_this_machine() -> Self {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        *FOUND.get_or_init(|| match Self::Kvm.probe(PROBE_CODE, PROBE_DEADLINE) {
            Ok(()) => {
                eprintln!("  virtual machines run under KVM");
                Self::Kvm
            }
            Err(reason) => {
                eprintln!("  virtual machines are emulated, because KVM does not run a guest here: {reason:#}");
                Self::Emulation
            }
        })
    }

    /// The value of QEMU's option `-accel`.
    #[must_use]
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg,thread=multi",
        }
    }

    /// Boots a disk whose boot sector is `code`, on the processors that every virtual machine has, and waits until the
    /// guest ends QEMU as [`PROBE_CODE`] does. QEMU does not outlive the call.
    ///
    /// # Errors
    /// When QEMU cannot be started, ends in another way (with the first line of its messages), or still runs after
    /// `deadline`.
    pub fn probe(self, code: &[u8], deadline: Duration) -> Result<()> {
        if self == Self::Kvm {
            ensure!(Path::new("/dev/kvm").exists(), "there is no /dev/kvm");
        }
        let directory = tempfile::Builder::new().prefix("reflash-probe").tempdir().context("make a directory")?;
        let (disk, messages) = (directory.path().join("disk.img"), directory.path().join("qemu.log"));
        std::fs::write(&disk, boot_sector(code)?).with_context(|| format!("write {}", disk.display()))?;
        let log = File::create(&messages).with_context(|| format!("create {}", messages.display()))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", self.argument()])
            .args(PROCESSORS)
            .args(["-m", "64M", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            .args(["-drive", &format!("file={},if=ide,format=raw", disk.display())])
            // An abort may leave a core file in the current directory; there it goes away with the rest.
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut qemu = Guest(command.spawn().context("start qemu-system-x86_64")?);
        let Some(status) = qemu.ended_within(deadline)? else {
            bail!("the boot sector did not run within {} s", deadline.as_secs());
        };
        if status.code() == Some(PROBE_STATUS) {
            return Ok(());
        }
        let messages = std::fs::read(&messages).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        bail!("QEMU ended with {status}: {}", messages.lines().next().unwrap_or("it gave no reason"))
    }
}

/// A disk of one sector that BIOS firmware starts from.
fn boot_sector(code: &[u8]) -> Result<[u8; SECTOR_BYTES]> {
    let mut sector = [0; SECTOR_BYTES];
    let (room, signature) = sector.split_at_mut(SECTOR_BYTES - 2);
    signature.copy_from_slice(&[0x55, 0xaa]);
    let room = room.get_mut(..code.len()).context("the code is larger than a boot sector")?;
    room.copy_from_slice(code);
    Ok(sector)
}

/// QEMU while it is probed. It is killed when this is dropped.
struct Guest(Child);

impl Guest {
    fn ended_within(&mut self, deadline: Duration) -> Result<Option<std::process::ExitStatus>> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().context("wait for QEMU")? {
                return Ok(Some(status));
            }
            if started.elapsed() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
