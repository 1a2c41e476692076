//! Mends the file system of the recovery partition, in the running system, which has e2fsck.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::MendError;
use crate::chain::chain;
use crate::disk::filesystem::{BACKUP_STEP_BYTES, Superblock, backup_superblock};
use crate::sys::block::in_use;
use crate::sys::mount::{self, Mount, MountError};
use crate::sys::process;

/// The program that repairs file systems. It looks for a second superblock only where file systems of the usual kind
/// have one.
const FSCK: &str = "/usr/sbin/e2fsck";
/// Directory on which the repaired file system is mounted for a look.
const LOOK: &str = "/run/reflash/look/recovery";
/// Bytes that are searched at once.
const READ_BYTES: usize = 1024 * 1024;
/// Exit statuses of e2fsck after which the file system is whole (e2fsck(8)).
const WHOLE: [i32; 3] = [0, 1, 2];

/// Repairs the file system on this device, which does not mount.
///
/// # Errors
/// [`MendError::RecoveryPartition`]: it is in use, or nothing of the file system can be found.
pub fn mend(device: &Path) -> Result<(), MendError> {
    let failed = |why: String| MendError::RecoveryPartition { device: device.to_owned(), why };
    if in_use(device).is_ok_and(|usage| usage.is_some()) {
        return Err(failed("it is in use".to_owned()));
    }
    let second = second_superblock(device).map_err(|error| failed(error.to_string()))?;
    let Some(Superblock { block, block_bytes }) = second else {
        let why = "it has no superblock left; provision the disk anew while the system still runs";
        return Err(failed(why.to_owned()));
    };
    let (block, block_bytes, path) = (block.to_string(), block_bytes.to_string(), device.to_string_lossy());
    let status = process::run_and_wait(Path::new(FSCK), &["-f", "-y", "-b", &block, "-B", &block_bytes, &path])
        .map_err(|error| failed(format!("{FSCK} cannot be started: {error}")))?;
    if !status.code().is_some_and(|code| WHOLE.contains(&code)) {
        return Err(failed(format!("{FSCK} ended with {status}; provision the disk anew while the system still runs")));
    }
    // Where the root directory was lost, all that was in it is in lost+found now, and GRUB finds none of it.
    if !has_slots(device).map_err(|error| failed(chain(&error)))? {
        let why = "its file system is repaired, but the folder of the slots has lost its name; provision the disk anew \
                   while the system still runs";
        return Err(failed(why.to_owned()));
    }
    Ok(())
}

/// Whether the repaired file system has the folder of the slots under its name.
fn has_slots(device: &Path) -> Result<bool, MountError> {
    let look = Path::new(LOOK);
    Mount::device(device, "ext4").read_only().data_only().on(look)?;
    let found = look.join("slots").is_dir();
    mount::unmount(look).or_else(|_| mount::detach(look))?;
    Ok(found)
}

/// The first of the other superblocks of the file system on this device.
fn second_superblock(device: &Path) -> io::Result<Option<Superblock>> {
    let file = File::open(device)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let length = match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(None),
            Ok(length) => length,
            // A part that cannot be read has no superblock.
            Err(_) => READ_BYTES,
        };
        for (at, block) in (offset..).step_by(BACKUP_STEP_BYTES).zip(buffer[..length].chunks(BACKUP_STEP_BYTES)) {
            if let Some(found) = backup_superblock(at, block) {
                return Ok(Some(found));
            }
        }
        buffer.fill(0);
        offset += length as u64;
    }
}
