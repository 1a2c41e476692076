//! Requests to the kernel about a mounted ext4 file system: give it an identity, let it grow, say what is free. No tool
//! is needed for any.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The numbers of fs/ext4/ext4.h.
mod raw {
    use nix::{ioctl_write_ptr, ioctl_write_ptr_bad, request_code_write};
    ioctl_write_ptr!(resize_fs, b'f', 16, u64);
    // The size in the number is that of the structure's head alone.
    ioctl_write_ptr_bad!(set_uuid, request_code_write!(b'f', 44, 8), super::FsUuid);
}

/// `struct fsuuid` with the UUID behind it.
#[repr(C)]
struct FsUuid {
    len: u32,
    flags: u32,
    uuid: [u8; 16],
}

/// Gives the file system mounted on `directory` a random UUID (RFC 9562, 5.4). It must have been made with
/// `metadata_csum_seed`.
///
/// # Errors
/// The kernel's error; before Linux 6.0 the kernel cannot change the UUID.
pub fn new_uuid(directory: &Path) -> io::Result<()> {
    let uuid = uuid::Builder::from_random_bytes(super::random::bytes()?).into_uuid().into_bytes();
    let argument = FsUuid { len: 16, flags: 0, uuid };
    let mounted = File::open(directory)?;
    // SAFETY: the kernel reads the head and as many bytes of the UUID as it says.
    unsafe { raw::set_uuid(mounted.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Lets the file system mounted on `directory` grow to `size_bytes`, that of its partition. One that has this size
/// already stays as it is.
///
/// # Errors
/// The kernel's error: a damaged file system does not grow, and none grows without `CAP_SYS_RESOURCE`.
pub fn grow(directory: &Path, size_bytes: u64) -> io::Result<()> {
    let block_size = nix::sys::statvfs::statvfs(directory)?.fragment_size();
    let blocks = size_bytes / block_size;
    let mounted = File::open(directory)?;
    // SAFETY: the kernel reads one u64.
    unsafe { raw::resize_fs(mounted.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Whether the kernel says by this error that a file system is damaged, or that one of its checksums is wrong.
#[must_use]
pub fn is_damage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EUCLEAN | nix::libc::EBADMSG))
}

/// Room that is free in a file system for a process without limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Number of free inodes.
    pub inodes: u64,
    /// Free bytes, with those that only root may use, and without those that no process gets.
    pub bytes: u64,
}

/// Most blocks that ext4 keeps for its own bookkeeping, beside a fiftieth of all (`ext4_calculate_resv_clusters` in
/// fs/ext4/super.c). They count as free, and no process gets them.
const MAX_OWN_BLOCKS: u64 = 4096;

/// Returns what is free in the file system of `directory`.
///
/// # Errors
/// The kernel's error.
pub fn free(directory: &Path) -> io::Result<Free> {
    let found = nix::sys::statvfs::statvfs(directory)?;
    let own = (found.blocks() / 50).min(MAX_OWN_BLOCKS);
    let blocks = found.blocks_free().saturating_sub(own);
    // A file system in memory without a limit has no blocks at all (ramfs), and takes what there is.
    let bytes = if found.blocks() == 0 { u64::MAX } else { blocks.saturating_mul(found.fragment_size()) };
    Ok(Free { inodes: found.files_free(), bytes })
}
