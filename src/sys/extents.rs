//! Where the content of a file lies on its device.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The numbers of include/uapi/linux/fs.h and fiemap.h.
mod raw {
    use nix::{ioctl_readwrite_bad, request_code_readwrite};
    // The size in the number is that of the structure's head alone.
    ioctl_readwrite_bad!(fiemap, request_code_readwrite!(b'f', 11, 32), super::Request);
}

/// Extents that are asked for: a small file that was written at once has one.
const MOST: usize = 4;
/// Write what is dirty before the answer: content that has no place yet has no extent.
const FLAG_SYNC: u32 = 1;
/// No extent follows.
const EXTENT_LAST: u32 = 1;
/// The kernel put neighbours together.
const EXTENT_MERGED: u32 = 0x1000;

/// `struct fiemap` with room for its extents.
#[repr(C)]
#[derive(Default)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; MOST],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more: [u32; 3],
}

/// Returns where the first `size_bytes` of a file lie on the device of its file system, if they lie there in one piece
/// that may be overwritten: written once, not in the inode, not shared, compressed or encrypted.
///
/// # Errors
/// The kernel's error; [`io::ErrorKind::Unsupported`] when the content lies otherwise.
pub fn one_extent(file: &File, size_bytes: u64) -> io::Result<Range<u64>> {
    let count = u32::try_from(MOST).unwrap_or(u32::MAX);
    let mut request = Request { length: u64::MAX, flags: FLAG_SYNC, count, ..Request::default() };
    // SAFETY: the kernel reads the head, and writes the head and at most `count` extents, for which there is room.
    unsafe { raw::fiemap(file.as_raw_fd(), &raw mut request) }?;
    let otherwise = |why: String| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    if request.mapped != 1 {
        return otherwise(format!("its content lies in {} pieces, not in one", request.mapped));
    }
    let Extent { logical, physical, length, flags, .. } = request.extents[0];
    if flags & !EXTENT_MERGED != EXTENT_LAST {
        return otherwise(format!("its content cannot be overwritten in place (flags {flags:#x} of its extent)"));
    }
    if logical != 0 || length < size_bytes || physical == 0 {
        return otherwise(format!("{length} bytes at {logical} of it have a place, not its {size_bytes} bytes"));
    }
    match physical.checked_add(size_bytes) {
        Some(end) => Ok(physical..end),
        None => otherwise(format!("its place {physical} is no place")),
    }
}
