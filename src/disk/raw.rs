//! A disk as a whole, written in place while its partitions may be in use: its table, its boot code.

use std::io;
use std::path::Path;

use crate::sys::block::{Access, AlignedBuf, BlockError, Caching, Device};

/// A disk that is read and written past every cache, in whole logical blocks.
pub trait RawDisk: Sync {
    /// Size of the disk, bytes.
    fn size_bytes(&self) -> u64;

    /// Logical block size, bytes: offsets and lengths are multiples of it.
    fn block_bytes(&self) -> u32;

    /// Fills the buffer with what the medium holds.
    ///
    /// # Errors
    /// The device's, also beyond its end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `content`; durable after a [`flush`](Self::flush).
    ///
    /// # Errors
    /// The device's.
    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()>;

    /// Returns once everything that was written is on the medium.
    ///
    /// # Errors
    /// The device's.
    fn flush(&self) -> io::Result<()>;
}

/// The device of a whole disk, or a file that stands for one.
#[derive(Debug)]
pub struct WholeDisk(Device);

impl WholeDisk {
    /// Opens the disk for writing, also while partitions of it are mounted. Only places that no file system uses may
    /// be written.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn open(path: &Path) -> Result<Self, BlockError> {
        Device::open(path, Access::Write, Caching::Direct).map(Self)
    }

    /// Opens the disk for reading alone.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn open_read_only(path: &Path) -> Result<Self, BlockError> {
        Device::open(path, Access::Read, Caching::Direct).map(Self)
    }

    /// Makes the kernel read the partition table again, so that it has a device for each partition.
    ///
    /// # Errors
    /// [`BlockError`]: a partition is in use.
    pub fn reread_partitions(&self) -> Result<(), BlockError> {
        self.0.reread_partitions()
    }
}

impl RawDisk for WholeDisk {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.0.logical_block_size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // A file needs a larger alignment than its blocks have: the pages around are read too.
        let page = u64::from(self.0.alignment());
        let start = offset - offset % page;
        let end = (offset + buffer.len() as u64).next_multiple_of(page);
        let mut whole = AlignedBuf::zeroed(usize::try_from(end - start).map_err(io::Error::other)?);
        self.0.read_exact_at(&mut whole, start).map_err(io::Error::other)?;
        let skipped = usize::try_from(offset - start).map_err(io::Error::other)?;
        buffer.copy_from_slice(&whole[skipped..skipped + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let page = u64::from(self.0.alignment());
        let start = offset - offset % page;
        let end = (offset + content.len() as u64).next_multiple_of(page);
        let mut whole = AlignedBuf::zeroed(usize::try_from(end - start).map_err(io::Error::other)?);
        if end - start != content.len() as u64 {
            self.0.read_exact_at(&mut whole, start).map_err(io::Error::other)?;
        }
        let skipped = usize::try_from(offset - start).map_err(io::Error::other)?;
        whole[skipped..skipped + content.len()].copy_from_slice(content);
        self.0.write_all_at(&whole, start).map_err(io::Error::other)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.sync().map_err(io::Error::other)
    }
}
