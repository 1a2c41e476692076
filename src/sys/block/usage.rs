//! Use of a disk or partition by something else.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys::mount;

/// Finds out what uses the block device or, when it is a disk, one of its partitions: `mounted on /x`, `used by dm-0`,
/// `swap`. `None` when nothing does; always for a plain file, which the kernel does not guard.
///
/// # Errors
/// `path`, `/proc` or `/sys` cannot be read.
pub fn in_use(path: &Path) -> io::Result<Option<String>> {
    let metadata = fs::metadata(path)?;
    if !metadata.file_type().is_block_device() {
        return Ok(None);
    }
    let number = device_number(metadata.rdev());
    let directory = PathBuf::from(format!("/sys/dev/block/{number}")).canonicalize()?;
    let mut devices = vec![(number, directory.clone())];
    for entry in fs::read_dir(&directory)?.flatten() {
        if entry.path().join("partition").exists()
            && let Ok(number) = fs::read_to_string(entry.path().join("dev"))
        {
            devices.push((number.trim().to_owned(), entry.path()));
        }
    }
    let mounts = mount::mounted()?;
    let swaps = swaps();
    for (number, directory) in devices {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let node = Path::new("/dev").join(&name);
        // btrfs and overlays show numbers of their own, so the source counts too.
        if let Some(mount) = mounts.iter().find(|mount| mount.device == number || mount.source == node) {
            return Ok(Some(format!("{} is mounted on {}", node.display(), mount.target.display())));
        }
        if let Some(holder) = fs::read_dir(directory.join("holders")).ok().and_then(|mut holders| holders.next()) {
            return Ok(Some(format!("{} is used by {}", node.display(), holder?.file_name().display())));
        }
        if swaps.contains(&number) {
            return Ok(Some(format!("{} is swap space", node.display())));
        }
    }
    // Whoever mounted it may have mounts of its own, which no list shows: the kernel knows.
    let flags = nix::libc::O_EXCL | nix::libc::O_NONBLOCK;
    let exclusive = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let is_busy = exclusive.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY));
    Ok(is_busy.then(|| format!("{} is used by another program", path.display())))
}

/// Device numbers of the active swap devices.
fn swaps() -> Vec<String> {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    paths.filter_map(|path| Some(device_number(fs::metadata(path).ok()?.rdev()))).collect()
}

fn device_number(device: u64) -> String {
    format!("{}:{}", nix::libc::major(device), nix::libc::minor(device))
}
