//! A small system for tests: the recovery kernel, and an initramfs of busybox and the agent. It starts in seconds where
//! Debian takes half a minute under emulation, so that a test can afford dozens of boots. GRUB, the boot environment,
//! the release and the recovery are the real ones; only what runs afterwards is small, and fails as a test wants it to.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::initramfs::{self, ArchiveEntry, InitramfsContent, Missing};
use crate::kernel;
use crate::paths::Paths;
use crate::step::run;

/// Behaviour of the system once its kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Calls its boot good, says `tiny system VERSION is up`, and opens a shell on the serial line.
    Good,
    /// Comes up, never calls its boot good, and restarts after two seconds, as a crashing application would make it.
    NeverGood,
    /// Calls its first boot good, as `Good`, and makes the kernel panic in every later one. A safe start comes up. Its
    /// version is its serial.
    GoodOnce,
    /// Makes the kernel panic.
    Panic,
    /// Arms a watchdog, as systemd would, and then hangs.
    Hang,
}

/// Specification of a test system.
#[derive(Debug, Clone)]
pub struct TestSystem<'a> {
    /// Version that the system prints.
    pub version: &'a str,
    /// Behaviour once the kernel runs.
    pub behaviour: Behaviour,
    /// Size of the image, MiB; at least [`MIN_MIB`].
    pub image_mib: u32,
    /// Incompressible data in it, MiB; differs between versions.
    pub padding_mib: u32,
}

/// Room for kernel, initramfs and the file system itself.
pub const MIN_MIB: u32 = 24;

/// Groups of `initramfs/modules.toml` that lead to a disk and to a watchdog.
const GROUPS: &[&str] = &["filesystems", "virtio", "ata", "nvme", "mmc", "usb", "watchdog"];

/// The UUID of every tiny system's file system: the same inputs give the same image.
const UUID: &str = "7459de1a-0000-4000-8000-000000000001";

/// Writes the image of a tiny system to `out`, around the agent in `agent`.
///
/// # Errors
/// When a part is missing or a tool fails.
pub fn build(paths: &Paths, spec: &TestSystem<'_>, agent: &Path, out: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("make a directory")?;
    let kernel = kernel::fetch(paths)?;
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("boot"))?;
    let init = scratch.path().join("init");
    fs::write(&init, script(spec))?;
    let program = |from: &Path, to: &str| -> Result<ArchiveEntry> {
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        Ok(ArchiveEntry::file(to, content, 0o755))
    };
    let content = InitramfsContent {
        role: "system",
        init: &init,
        kernel: &kernel,
        modules: initramfs::modules_of_groups(GROUPS)?,
        missing: Missing::Refuse,
        files: vec![program(Path::new("/bin/busybox"), "/bin/busybox")?, program(agent, "/bin/reflash")?],
        level: Some(initramfs::LEVEL),
    };
    initramfs::build(&content, &tree.join("boot/initramfs.img"))?;
    fs::copy(&kernel.vmlinuz, tree.join("boot/vmlinuz")).context("copy the kernel")?;
    fs::write(
        tree.join("boot/reflash.cfg"),
        "set system_linux=/boot/vmlinuz\nset system_initrd=/boot/initramfs.img\nset system_args=quiet\n",
    )?;
    let mut padding = vec![0; spec.padding_mib as usize * 1024 * 1024];
    let mut reader = blake3::Hasher::new().update(spec.version.as_bytes()).finalize_xof();
    reader.fill(&mut padding);
    fs::write(tree.join("padding"), padding)?;
    let mut command = Command::new("mke2fs");
    command.env("E2FSPROGS_FAKE_TIME", "1").env("LC_ALL", "C");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^inline_data", "-U", UUID]);
    command.arg("-E").arg(format!("lazy_itable_init=0,nodiscard,root_owner=0:0,hash_seed={UUID}"));
    command.arg("-d").arg(&tree).arg(out).arg(format!("{}m", spec.image_mib.max(MIN_MIB)));
    let _ = fs::remove_file(out);
    run("mke2fs-tiny", &mut command)
}

/// Script that runs as PID 1. Drivers are loaded twice over, since a controller's driver brings up devices with drivers
/// of their own. An SD card has no file `modalias`: its alias is in `uevent`.
fn script(spec: &TestSystem<'_>) -> String {
    let version = spec.version;
    let then = match spec.behaviour {
        Behaviour::Good => format!(
            "/bin/reflash good\necho \"tiny system {version} is up\"\n\
             while :; do /bin/busybox setsid -c /bin/busybox sh; done\n"
        ),
        Behaviour::GoodOnce => format!(
            "if grep -q reflash.safe= /proc/cmdline; then\n\
             echo \"tiny system {version} is up in a safe start\"\n\
             elif reflash env | grep -qE '^reflash_was_good=1|^reflash_good={version}$'; then\n\
             {}else\n\
             /bin/reflash good\necho \"tiny system {version} is up\"\n\
             fi\n\
             while :; do /bin/busybox setsid -c /bin/busybox sh; done\n",
            panics(&format!("tiny system {version} panics from now on"))
        ),
        Behaviour::NeverGood => {
            format!("echo \"tiny system {version} does not call itself good\"\nsleep 2\nreboot -f\n")
        }
        Behaviour::Panic => panics(&format!("tiny system {version} panics")),
        // busybox' watchdog arms it and feeds it from the background until it is killed.
        Behaviour::Hang => format!(
            "watchdog -T 10 -t 3 /dev/watchdog\nsleep 1\nkillall -9 watchdog\n\
             echo \"tiny system {version} hangs\"\nwhile :; do sleep 1000; done\n"
        ),
    };
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         /bin/busybox mount -t devtmpfs dev /dev\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         exec </dev/ttyS0 >/dev/ttyS0 2>&1\n\
         modprobe crc32c-generic; modprobe ext4\n\
         [ ! -d /sys/firmware/efi ] || modprobe efivarfs\n\
         for round in 1 2 3 4 5 6 7 8; do\n\
         find /sys/devices -name uevent -exec sed -n s/^MODALIAS=//p {{}} + | sort -u | while read -r alias; do\n\
         modprobe -q \"$alias\" 2>/dev/null\n\
         done\n\
         sleep 0.3\n\
         [ $round = 1 ] || ! reflash env >/dev/null 2>&1 || break\n\
         done\n\
         {then}"
    )
}

/// Commands that say something and make the kernel panic. The text goes through the kernel's log, which reaches the
/// serial line before the write returns; what is written to the terminal is sent later, and a panic may overtake it.
fn panics(text: &str) -> String {
    format!("echo \"<1>{text}\" >/dev/kmsg\necho c >/proc/sysrq-trigger\n")
}
