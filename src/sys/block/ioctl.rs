//! The block ioctls, each behind a safe function.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::c_int;

// The request numbers differ in type between C libraries (unsigned long in glibc, int in musl); nix's macros hide it.
mod raw {
    use nix::{ioctl_none, ioctl_read, ioctl_read_bad, ioctl_write_ptr_bad, request_code_none};
    ioctl_none!(blkrrpart, 0x12, 95);
    ioctl_none!(blkflsbuf, 0x12, 97);
    // These predate the convention that the number carries direction and size, hence "bad".
    ioctl_read_bad!(blksszget, request_code_none!(0x12, 104), super::c_int);
    ioctl_read_bad!(blkpbszget, request_code_none!(0x12, 123), super::c_int);
    ioctl_write_ptr_bad!(blkdiscard, request_code_none!(0x12, 119), [u64; 2]);
    ioctl_write_ptr_bad!(blkzeroout, request_code_none!(0x12, 127), [u64; 2]);
    // Declared with size_t although the kernel stores 64 bits; the same on the 64-bit machines we build for.
    ioctl_read!(blkgetsize64, 0x12, 114, usize);
}

const _: () = assert!(size_of::<usize>() == 8, "BLKGETSIZE64 writes 64 bits");

/// `BLKSSZGET`: the smallest unit the device can address, in bytes.
pub(super) fn logical_block_size(device: &File) -> io::Result<u32> {
    let mut size: c_int = 0;
    // SAFETY: the fd is open for the whole call, and the kernel writes exactly one int to the address of `size`.
    unsafe { raw::blksszget(device.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(io::Error::other)
}

/// `BLKPBSZGET`: the unit the device writes without reading first, in bytes.
pub(super) fn physical_block_size(device: &File) -> io::Result<u32> {
    let mut size: c_int = 0;
    // SAFETY: as in logical_block_size(); the kernel writes one unsigned int, which has the same size.
    unsafe { raw::blkpbszget(device.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(io::Error::other)
}

/// `BLKGETSIZE64`: the size in bytes.
pub(super) fn size_bytes(device: &File) -> io::Result<u64> {
    let mut size = 0usize;
    // SAFETY: the kernel writes 64 bits to the address of `size`, which has 64 bits (asserted above).
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size as u64)
}

/// `BLKFLSBUF`: writes and forgets the page cache of the device.
pub(super) fn drop_cache(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument, so the kernel touches none of our memory.
    unsafe { raw::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// `BLKRRPART`: reads the partition table again.
pub(super) fn reread_partitions(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument, so the kernel touches none of our memory.
    unsafe { raw::blkrrpart(device.as_raw_fd()) }?;
    Ok(())
}

/// `BLKDISCARD`: marks the range as unused. What the device then reads as is undefined.
pub(super) fn discard(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the kernel reads two u64 from `range`, which lives across the call, and writes nothing.
    unsafe { raw::blkdiscard(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// `BLKZEROOUT`: zeroes the range, by a command of the device where it has one.
pub(super) fn zero_out(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the kernel reads two u64 from `range`, which lives across the call, and writes nothing.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}
