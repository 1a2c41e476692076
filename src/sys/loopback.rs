//! Loop devices: a part of a disk, or of a file that stands for one, as a block device of its own. Needs no partition
//! table, which an unfinished disk does not have yet.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::libc;

/// The numbers of include/uapi/linux/loop.h.
mod raw {
    use nix::{ioctl_none_bad, ioctl_write_ptr_bad};
    ioctl_none_bad!(get_free, 0x4c82);
    ioctl_write_ptr_bad!(configure, 0x4c0a, super::LoopConfig);
}

/// `LO_FLAGS_AUTOCLEAR`: the kernel frees the device after its last user.
const AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_READ_ONLY`.
const READ_ONLY: u32 = 1;
/// Number of attempts: another program may take a free device first.
const ATTEMPTS: u32 = 16;

/// `struct loop_config`, with `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// A loop device. It goes away when this is dropped and its file system unmounted.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    _device: File,
}

impl Loop {
    /// Shows `range` (bytes) of `backing` as a device with logical blocks of `block_size` bytes.
    ///
    /// # Errors
    /// The kernel has no loop devices or none that is free, or `backing` cannot be opened for writing.
    pub fn of(backing: &Path, range: Range<u64>, block_size: u32) -> io::Result<Self> {
        Self::over(&OpenOptions::new().read(true).write(true).open(backing)?, range, block_size, AUTOCLEAR)
    }

    /// Shows all of `backing`, which may be in use, as a device with blocks of 512 bytes that refuses writes.
    ///
    /// # Errors
    /// The kernel has no loop devices or none that is free, or `backing` cannot be opened.
    pub fn to_read(backing: &Path) -> io::Result<Self> {
        Self::over(&File::open(backing)?, 0..0, 512, AUTOCLEAR | READ_ONLY)
    }

    /// Without an end (`0..0`) all of the file is shown.
    fn over(backing: &File, range: Range<u64>, block_size: u32, flags: u32) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let descriptor = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
        let config = LoopConfig {
            fd: descriptor,
            block_size,
            device: 0,
            inode: 0,
            real_device: 0,
            offset: range.start,
            size_limit: range.end - range.start,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            names_and_key: [0; 160],
            init: [0; 2],
            reserved: [0; 8],
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            // SAFETY: takes no argument.
            let number = unsafe { raw::get_free(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            // SAFETY: the kernel reads one `struct loop_config`, which `LoopConfig` is.
            match unsafe { raw::configure(device.as_raw_fd(), &raw const config) } {
                Ok(_) => return Ok(Self { path, _device: device }),
                Err(nix::errno::Errno::EBUSY) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The device node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

const _: () = assert!(size_of::<LoopConfig>() == 8 + 232 + 64 && size_of::<libc::c_int>() == 4);
