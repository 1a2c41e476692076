//! Mounts with named options, and the change into the real root of the system role.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};

/// `MS_NOSYMFOLLOW` of include/uapi/linux/mount.h, which nix does not have. A kernel before 5.10 ignores it.
const MS_NOSYMFOLLOW: nix::libc::c_ulong = 256;

/// Time for which a device that is busy is waited for: a check of a small partition, or the renewal of a slot.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A mount, unmount or change of root that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {target}{}", explain(.source))]
pub struct MountError {
    /// Action that was tried, with source and type, such as `mount /dev/sda3 (ext4, ro) on`.
    pub action: String,
    /// The mount point.
    pub target: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Explains an error of mount(2), which says little, by the causes that matter in recovery.
fn explain(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(nix::libc::ENODEV) => " (the kernel has no such file system; is its module in the initramfs?)",
        Some(nix::libc::EINVAL) => " (not such a file system, or damaged, or a refused option; see the kernel log)",
        Some(nix::libc::EBUSY) => " (in use)",
        _ => "",
    }
}

impl MountError {
    /// Whether something else uses what was to be mounted or unmounted: a moment later it may not.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::EBUSY)
    }

    fn new(action: impl Into<String>, target: &Path, source: impl Into<io::Error>) -> Self {
        Self { action: action.into(), target: target.to_owned(), source: source.into() }
    }
}

/// One mount to be made: what, and how. Ends with [`Mount::on`].
///
/// ```no_run
/// # use reflash::sys::mount::Mount;
/// Mount::device("/dev/vda4", "ext4").read_only().no_load().on("/recovery")?;
/// # Ok::<(), reflash::sys::mount::MountError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is mounted before on()"]
pub struct Mount {
    source: PathBuf,
    kind: String,
    flags: MsFlags,
    data: Vec<String>,
}

impl Mount {
    /// A file system on a block device.
    pub fn device(device: impl Into<PathBuf>, kind: &str) -> Self {
        Self { source: device.into(), kind: kind.to_owned(), flags: MsFlags::empty(), data: Vec::new() }
    }

    /// A file system without a device, such as `tmpfs` or `proc`.
    pub fn virtual_fs(kind: &str) -> Self {
        Self::device(kind, kind)
    }

    /// An overlay of the directories `lower`, the uppermost first, none of which is written.
    pub fn overlay<'a>(lower: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let lower: Vec<String> = lower.into_iter().map(|path| path.display().to_string()).collect();
        Self::virtual_fs("overlay").data(format!("lowerdir={}", lower.join(":")))
    }

    /// Has an overlay keep what changes in `upper`; `work` is an empty directory on the same file system.
    pub fn changes_in(self, upper: &Path, work: &Path) -> Self {
        self.data(format!("upperdir={}", upper.display())).data(format!("workdir={}", work.display()))
    }

    /// Mounts with `ro`.
    pub fn read_only(mut self) -> Self {
        self.flags |= MsFlags::MS_RDONLY;
        self
    }

    /// `noload`: ext4 does not replay its journal, so that a read-only mount really writes nothing.
    pub fn no_load(self) -> Self {
        self.data("noload")
    }

    /// `nosuid,nodev,noexec,nosymfollow`: data only. An ext4 file system can have it in its superblock that the kernel
    /// panics at its first fault, mounted read-only too: `errors=continue`, the default of most, is put before that.
    pub fn data_only(mut self) -> Self {
        self.flags |= data_only();
        if self.kind == "ext4" { self.data("errors=continue") } else { self }
    }

    /// Mounts a device that other processes may have mounted, in mount namespaces of their own. All of them share what
    /// the kernel knows of its file system, and the kernel refuses a mount that can be written beside one that cannot,
    /// and the other way round. So this is mounted as the others are, and then made writable, or read-only for this
    /// mount alone. What is busy for another reason, as by a check, is waited for.
    ///
    /// # Errors
    /// [`MountError`]; it [is busy](MountError::is_busy) after some seconds of that.
    pub fn on_shared(&self, target: &Path) -> Result<(), MountError> {
        let began = Instant::now();
        loop {
            let failed = match self.on(target) {
                Err(busy) if busy.is_busy() => self.as_others(target).err(),
                done => return done,
            };
            match failed {
                Some(busy) if busy.is_busy() && began.elapsed() < BUSY_LIMIT => std::thread::sleep(BUSY_PAUSE),
                failed => return failed.map_or(Ok(()), Err),
            }
        }
    }

    fn as_others(&self, target: &Path) -> Result<(), MountError> {
        let others = Self { flags: self.flags ^ MsFlags::MS_RDONLY, ..self.clone() };
        others.on(target)?;
        let done = if self.flags.contains(MsFlags::MS_RDONLY) {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | self.flags;
            flagged(None, target, flags, "make read-only")
        } else {
            remount_writable(target)
        };
        done.inspect_err(|_| drop(detach(target)))
    }

    /// Mounts with `noexec`.
    pub fn no_exec(mut self) -> Self {
        self.flags |= MsFlags::MS_NOEXEC;
        self
    }

    /// Mounts with `nosuid`.
    pub fn no_suid(mut self) -> Self {
        self.flags |= MsFlags::MS_NOSUID;
        self
    }

    /// Mounts with `nodev`.
    pub fn no_dev(mut self) -> Self {
        self.flags |= MsFlags::MS_NODEV;
        self
    }

    /// An option of the file system itself, such as `mode=0755` or `errors=remount-ro`.
    pub fn data(mut self, option: impl Into<String>) -> Self {
        self.data.push(option.into());
        self
    }

    /// Mounts on `target`, which is created if it is missing.
    ///
    /// # Errors
    /// [`MountError`] with device, type and target.
    pub fn on(&self, target: impl AsRef<Path>) -> Result<(), MountError> {
        let target = target.as_ref();
        let data = self.data.join(",");
        let how = if self.flags.contains(MsFlags::MS_RDONLY) { "ro" } else { "rw" };
        let action = || format!("mount {} ({}, {how}) on", self.source.display(), self.kind);
        fs::create_dir_all(target).map_err(|source| MountError::new(action(), target, source))?;
        nix::mount::mount(
            Some(&self.source),
            target,
            Some(self.kind.as_str()),
            self.flags | MsFlags::MS_SILENT,
            Some(data.as_str()),
        )
        .map_err(|source| MountError::new(action(), target, source))
    }
}

/// Flags of a file system from which nothing is started, and whose symbolic links lead nowhere.
fn data_only() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::from_bits_retain(MS_NOSYMFOLLOW)
}

/// Makes `source` visible at `target` too, without what is mounted below it.
///
/// # Errors
/// [`MountError`].
pub fn bind(source: &Path, target: &Path) -> Result<(), MountError> {
    flagged(Some(source), target, MsFlags::MS_BIND, "bind")
}

/// Moves the mount at `source` to `target`.
///
/// # Errors
/// [`MountError`].
pub fn move_to(source: &Path, target: &Path) -> Result<(), MountError> {
    flagged(Some(source), target, MsFlags::MS_MOVE, "move")
}

/// Makes an existing mount read-only, for all of its file system.
///
/// # Errors
/// [`MountError`]; `EBUSY` when files are open for writing.
pub fn remount_read_only(target: &Path) -> Result<(), MountError> {
    flagged(None, target, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, "make read-only")
}

/// Makes an existing mount writable, for data only: a remount takes away every flag that it does not repeat.
///
/// # Errors
/// [`MountError`].
pub fn remount_writable(target: &Path) -> Result<(), MountError> {
    flagged(None, target, MsFlags::MS_REMOUNT | data_only(), "make writable")
}

fn flagged(source: Option<&Path>, target: &Path, flags: MsFlags, verb: &str) -> Result<(), MountError> {
    let none: Option<&str> = None;
    nix::mount::mount(source, target, none, flags, none).map_err(|error| {
        let action = source.map_or_else(|| verb.to_owned(), |source| format!("{verb} {} to", source.display()));
        MountError::new(action, target, error)
    })
}

/// Unmounts; everything written is on the device afterwards.
///
/// # Errors
/// [`MountError`]; `EBUSY` while something is open below it.
pub fn unmount(target: impl AsRef<Path>) -> Result<(), MountError> {
    let target = target.as_ref();
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(|error| MountError::new("unmount", target, error))
}

/// Takes away what is mounted there, also while something is open below it.
///
/// # Errors
/// [`MountError`]; nothing is mounted there.
pub fn detach(target: impl AsRef<Path>) -> Result<(), MountError> {
    let (target, flags) = (target.as_ref(), MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
    nix::mount::umount2(target, flags).map_err(|error| MountError::new("unmount", target, error))
}

/// Whether what is mounted on `target` can only be read: an overlay is, whatever was asked for, when its work directory
/// cannot be used.
///
/// # Errors
/// The kernel's error.
pub fn is_read_only(target: &Path) -> io::Result<bool> {
    Ok(nix::sys::statvfs::statvfs(target)?.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Takes away everything that is mounted on `target` and below, the latest first. What cannot be taken away stays.
pub fn detach_below(target: &Path) {
    for mount in mounted().unwrap_or_default().iter().rev() {
        if mount.target.starts_with(target) {
            let _ = detach(&mount.target);
        }
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Device number as `major:minor`.
    pub device: String,
    /// Path of the mount point.
    pub target: PathBuf,
    /// File system type.
    pub kind: String,
    /// Source of the mount, such as `/dev/vda3`.
    pub source: PathBuf,
}

impl Mounted {
    /// Whether it keeps a file system on a block device from being unmounted: it is one, or an overlay of directories
    /// of one.
    fn lies_on_disk(&self) -> bool {
        self.source.starts_with("/dev") || self.kind == "overlay"
    }
}

/// Every mount of this mount namespace, in the order it was made.
///
/// # Errors
/// `/proc` is not mounted.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse_mountinfo).collect())
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`, see proc(5).
fn parse_mountinfo(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let device = left.nth(2)?.to_owned();
    let target = unescape(left.nth(1)?);
    let mut right = right.split(' ');
    Some(Mounted { device, target, kind: right.next()?.to_owned(), source: unescape(right.next()?) })
}

/// Undoes `\040` and the like.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| text.get(at + 1..at + 4)).flatten();
        if let Some(value) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(value);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    OsString::from_vec(out).into()
}

/// Unmounts every file system that lies on a block device, and every overlay, the latest first; what is busy becomes
/// read-only. The last thing before a reboot: problems are passed over because nothing can be done about them any more.
pub fn release_disks() {
    for mount in mounted().unwrap_or_default().iter().rev() {
        if mount.lies_on_disk() && mount.target != Path::new("/") && unmount(&mount.target).is_err() {
            let _ = remount_read_only(&mount.target);
        }
    }
}

/// Leaves the initramfs for the system: moves `/dev`, `/proc`, `/sys` and `/run` below `new_root`, makes it the root,
/// frees the memory of the initramfs, and replaces this process by `init`, which keeps being PID 1.
///
/// Returns only the error. Up to the point where the mounts are moved nothing has changed.
///
/// # Errors
/// [`MountError`] naming the step.
pub fn switch_root(new_root: &Path, init: &Path, arguments: &[&str]) -> Result<Infallible, MountError> {
    let failed = |action: &str, source: io::Error| MountError::new(action, new_root, source);
    let inside = new_root.join(init.strip_prefix("/").unwrap_or(init));
    // A symbolic link is judged as it will be seen: absolute targets point into the new root.
    inside.symlink_metadata().map_err(|source| MountError::new("switch to", &inside, source))?;
    let old_root = fs::File::open("/").map_err(|source| failed("open the initramfs before switching to", source))?;
    let present = mounted().map_err(|source| failed("read the mounts before switching to", source))?;
    for name in ["dev", "proc", "sys", "run"] {
        let from = Path::new("/").join(name);
        if present.iter().any(|mount| mount.target == from) {
            move_to(&from, &new_root.join(name))?;
        }
    }
    let step = |action: &str, result: nix::Result<()>| result.map_err(|source| failed(action, source.into()));
    step("enter", nix::unistd::chdir(new_root))?;
    move_to(Path::new("."), Path::new("/"))?;
    step("change the root to", nix::unistd::chroot("."))?;
    step("enter", nix::unistd::chdir("/"))?;
    // /proc came along, and its link reaches the old root although no path does any more.
    free_initramfs(&PathBuf::from(format!("/proc/self/fd/{}", old_root.as_raw_fd())));
    drop(old_root);
    super::signals::unblock().map_err(|source| failed("unblock signals before starting", source))?;
    let source = Command::new(init).args(arguments).exec();
    Err(MountError::new("start", init, source))
}

/// Deletes the files of the initramfs, whose memory is otherwise lost until the next boot. Never leaves its file
/// system, and refuses to start on one that is not in memory.
fn free_initramfs(root: &Path) {
    let in_memory = nix::sys::statfs::statfs(root).is_ok_and(|fs| {
        // initramfs is ramfs or tmpfs, depending on the kernel's configuration and root= argument.
        [nix::sys::statfs::TMPFS_MAGIC, nix::sys::statfs::FsType(0x8584_58f6)].contains(&fs.filesystem_type())
    });
    let Ok(device) = fs::metadata(root).map(|root| root.dev()) else { return };
    if in_memory {
        delete_below(root, device);
    }
}

fn delete_below(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        // A file that cannot be deleted costs a little memory, and there is no log yet in which to report it.
        if metadata.is_dir() {
            delete_below(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mounted, parse_mountinfo};

    #[test]
    fn mountinfo_lines_are_read_with_and_without_optional_fields() {
        let plain = "36 35 98:0 / /mnt/with\\040space rw,noatime - ext4 /dev/vda3 rw,errors=continue";
        let shared = "36 35 98:0 / /mnt/with\\040space rw,noatime shared:1 master:2 - ext4 /dev/vda3 rw";
        let expected = Mounted {
            device: "98:0".into(),
            target: "/mnt/with space".into(),
            kind: "ext4".into(),
            source: "/dev/vda3".into(),
        };
        assert_eq!(parse_mountinfo(plain), Some(expected.clone()));
        assert_eq!(parse_mountinfo(shared), Some(expected));
        assert_eq!(parse_mountinfo("nonsense"), None);
    }

    /// As on a robot whose process died when all file systems had been put together: the next one can begin again only
    /// when the overlay of /etc has been taken away, which names no device.
    #[test]
    fn everything_that_holds_a_disk_is_released() {
        for (line, expected) in [
            ("1 0 0:1 / / rw - rootfs rootfs rw", false),
            ("2 1 0:5 / /dev rw - devtmpfs devtmpfs rw", false),
            ("3 1 254:5 / /sysroot ro - ext4 /dev/vda5 ro", true),
            ("4 3 254:6 /var /sysroot/var rw - ext4 /dev/vda6 rw", true),
            ("5 3 0:30 / /sysroot/etc rw - overlay overlay rw,lowerdir=/sysroot/etc", true),
        ] {
            assert_eq!(parse_mountinfo(line).unwrap().lies_on_disk(), expected, "{line}");
        }
    }
}
