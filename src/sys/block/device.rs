//! One block device or image file, opened for positional reads and writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use super::aligned::ALIGNMENT_BYTES;
use super::ioctl;

/// Failure of an operation on a device.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Failure to open a device, or to ask for its properties or change them.
    #[error("cannot {action} {}{}", .path.display(), explain(.source))]
    Device {
        /// Action that was tried.
        action: &'static str,
        /// Path of the device.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Read or write that failed.
    #[error("cannot {action} {length} bytes at offset {offset} of {}{}", .path.display(), explain(.source))]
    Transfer {
        /// Action that was tried.
        action: &'static str,
        /// Path of the device.
        path: PathBuf,
        /// Offset on the device, bytes.
        offset: u64,
        /// Length of the transfer, bytes.
        length: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Transfer that is not aligned as the device needs it: a mistake of the caller.
    #[error(
        "transfer of {length} bytes at offset {offset} of {} is not aligned to {alignment} bytes, in memory or on disk",
        .path.display()
    )]
    Unaligned {
        /// Path of the device.
        path: PathBuf,
        /// Offset on the device, bytes.
        offset: u64,
        /// Length of the transfer, bytes.
        length: u64,
        /// Alignment that offset, length and buffer address must have, bytes.
        alignment: u32,
    },
}

fn explain(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => " (mounted or otherwise in use)",
        Some(libc::EIO) => " (the device reports an error; it may be failing, see the kernel log)",
        Some(libc::EROFS) => " (write-protected)",
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => " (the device is gone)",
        _ => "",
    }
}

/// Access that an open [`Device`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read access alone.
    Read,
    /// Reads and writes.
    Write,
    /// Reads and writes, and nothing else may mount it or open it this way meanwhile; fails when something has
    /// (`O_EXCL`). On a file the same as [`Access::Write`].
    WriteExclusive,
}

/// Way of transfers through or past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Transfers through the page cache.
    Buffered,
    /// Transfers past the page cache (`O_DIRECT`): what is read comes from the device. Transfers must be aligned to
    /// [`Device::alignment`].
    Direct,
}

/// An open block device, or a file that stands for one.
///
/// All transfers are positional, so threads may share it. Nothing is durable before [`Device::sync`].
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
    is_block: bool,
    caching: Caching,
    size_bytes: u64,
    logical_block_size: u32,
    physical_block_size: u32,
}

impl Device {
    /// Opens the device or file at `path`. A file on a file system without O_DIRECT is opened buffered instead: see
    /// [`Device::caching`].
    ///
    /// # Errors
    /// [`BlockError::Device`].
    pub fn open(path: &Path, access: Access, caching: Caching) -> Result<Self, BlockError> {
        let failed = |action| move |source| BlockError::Device { action, path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(failed("find"))?.file_type();
        let is_block = kind.is_block_device();
        let open = |caching| {
            // O_EXCL without O_CREAT has a meaning for block devices only.
            let exclusive = if is_block && access == Access::WriteExclusive { libc::O_EXCL } else { 0 };
            let direct = if caching == Caching::Direct { libc::O_DIRECT } else { 0 };
            OpenOptions::new().read(true).write(access != Access::Read).custom_flags(exclusive | direct).open(path)
        };
        let (file, caching) = match open(caching) {
            Err(error) if caching == Caching::Direct && !is_block && error.raw_os_error() == Some(libc::EINVAL) => {
                (open(Caching::Buffered).map_err(failed("open"))?, Caching::Buffered)
            }
            result => (result.map_err(failed("open"))?, caching),
        };
        let (size_bytes, logical_block_size, physical_block_size) = if is_block {
            (
                ioctl::size_bytes(&file).map_err(failed("ask the size of"))?,
                ioctl::logical_block_size(&file).map_err(failed("ask the block size of"))?,
                ioctl::physical_block_size(&file).map_err(failed("ask the block size of"))?,
            )
        } else {
            (file.metadata().map_err(failed("ask the size of"))?.len(), 512, 4096)
        };
        Ok(Self { path: path.to_owned(), file, is_block, caching, size_bytes, logical_block_size, physical_block_size })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device, not a file.
    pub fn is_block_device(&self) -> bool {
        self.is_block
    }

    /// Returns the way that transfers really take.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Size of the device when it was opened, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Smallest addressable unit; 512 for a file.
    pub fn logical_block_size(&self) -> u32 {
        self.logical_block_size
    }

    /// Unit that is written without reading first; 4096 for a file.
    pub fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    /// Returns the alignment of offset, length and memory address of every transfer, bytes; 1 when buffered.
    pub fn alignment(&self) -> u32 {
        match self.caching {
            Caching::Buffered => 1,
            Caching::Direct if self.is_block => self.logical_block_size,
            // A file needs the block size of the device below its file system, which is a page at most.
            Caching::Direct => ALIGNMENT_BYTES,
        }
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`BlockError::Transfer`], also at the end of the device; [`BlockError::Unaligned`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.check_alignment(buffer, offset)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| self.transfer_failed("read", offset, buffer.len() as u64, source))
    }

    /// Writes all of `buffer` at `offset`. On the medium only after [`Device::sync`].
    ///
    /// # Errors
    /// [`BlockError::Transfer`], also past the end of a block device; [`BlockError::Unaligned`].
    pub fn write_all_at(&self, buffer: &[u8], offset: u64) -> Result<(), BlockError> {
        self.check_alignment(buffer, offset)?;
        self.file
            .write_all_at(buffer, offset)
            .map_err(|source| self.transfer_failed("write", offset, buffer.len() as u64, source))
    }

    /// Makes every completed write durable, the device's own cache included.
    ///
    /// # Errors
    /// [`BlockError::Device`]; which writes were lost is then unknown.
    pub fn sync(&self) -> Result<(), BlockError> {
        self.file.sync_all().map_err(|source| self.failed("flush", source))
    }

    /// Makes the next buffered read come from the device: writes dirty pages back and forgets clean ones. For a file
    /// this is a request that the kernel may turn down for pages that a process has mapped.
    ///
    /// # Errors
    /// [`BlockError::Device`]; the flush of a device needs `CAP_SYS_ADMIN`.
    pub fn drop_cache(&self) -> Result<(), BlockError> {
        self.sync()?;
        if self.is_block {
            ioctl::drop_cache(&self.file).map_err(|source| self.failed("drop the cache of", source))
        } else {
            fadvise(&self.file, 0, None, Advice::DontNeed)
                .map_err(|source| self.failed("drop the cache of", source.into()))
        }
    }

    /// Makes the kernel read the partition table again.
    ///
    /// # Errors
    /// [`BlockError::Device`]: busy while a partition is in use, and on files.
    pub fn reread_partitions(&self) -> Result<(), BlockError> {
        ioctl::reread_partitions(&self.file).map_err(|source| self.failed("read the partition table again on", source))
    }

    /// Marks a range as unused (discards it). What it reads as afterwards is undefined.
    ///
    /// # Errors
    /// [`BlockError::Transfer`], with `EOPNOTSUPP` from devices that cannot; then nothing has changed.
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let result =
            if self.is_block { ioctl::discard(&self.file, offset, length) } else { self.punch(offset, length) };
        result.map_err(|source| self.transfer_failed("discard", offset, length, source))
    }

    /// Zeroes a range, without a transfer where the device can; the range must be aligned to the logical block.
    ///
    /// # Errors
    /// [`BlockError::Transfer`].
    pub fn zero_out(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let result =
            if self.is_block { ioctl::zero_out(&self.file, offset, length) } else { self.punch(offset, length) };
        result.map_err(|source| self.transfer_failed("zero", offset, length, source))
    }

    /// The open file, for readers that want `Read + Seek`. Its position is shared.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, length)?)
    }

    fn check_alignment(&self, buffer: &[u8], offset: u64) -> Result<(), BlockError> {
        let alignment = u64::from(self.alignment());
        let aligned = |value: u64| value.is_multiple_of(alignment);
        if aligned(offset) && aligned(buffer.len() as u64) && aligned(buffer.as_ptr().addr() as u64) {
            return Ok(());
        }
        Err(BlockError::Unaligned {
            path: self.path.clone(),
            offset,
            length: buffer.len() as u64,
            alignment: self.alignment(),
        })
    }

    fn failed(&self, action: &'static str, source: io::Error) -> BlockError {
        BlockError::Device { action, path: self.path.clone(), source }
    }

    fn transfer_failed(&self, action: &'static str, offset: u64, length: u64, source: io::Error) -> BlockError {
        BlockError::Transfer { action, path: self.path.clone(), offset, length, source }
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, BlockError, Caching, Device};
    use crate::sys::block::AlignedBuf;
    use std::io::Write;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xaa; bytes]).unwrap();
        file
    }

    #[test]
    fn a_file_is_read_written_and_zeroed_in_place() {
        let file = image(1 << 16);
        for caching in [Caching::Buffered, Caching::Direct] {
            let device = Device::open(file.path(), Access::WriteExclusive, caching).unwrap();
            assert_eq!((device.size_bytes(), device.is_block_device()), (1 << 16, false));
            let mut buffer = AlignedBuf::zeroed(4096);
            buffer.fill(0x55);
            device.write_all_at(&buffer, 8192).unwrap();
            device.zero_out(12288, 4096).unwrap();
            device.drop_cache().unwrap();
            let mut back = AlignedBuf::zeroed(1 << 16);
            device.read_exact_at(&mut back, 0).unwrap();
            assert!(back[..8192].iter().all(|byte| *byte == 0xaa));
            assert!(back[8192..12288].iter().all(|byte| *byte == 0x55));
            assert!(back[12288..16384].iter().all(|byte| *byte == 0));
            assert!(back[16384..].iter().all(|byte| *byte == 0xaa));
        }
    }

    #[test]
    fn errors_name_file_offset_and_length() {
        let file = image(4096);
        let device = Device::open(file.path(), Access::Read, Caching::Buffered).unwrap();
        let error = device.read_exact_at(&mut [0; 100], 4090).unwrap_err();
        assert!(error.to_string().starts_with("cannot read 100 bytes at offset 4090 of "), "{error}");
        assert!(matches!(device.write_all_at(&[0; 4], 0), Err(BlockError::Transfer { action: "write", .. })));
        let missing = Device::open("/no/such/device".as_ref(), Access::Read, Caching::Direct).unwrap_err();
        assert!(missing.to_string().contains("/no/such/device"), "{missing}");
    }

    #[test]
    fn a_direct_transfer_must_be_aligned() {
        let file = image(8192);
        let device = Device::open(file.path(), Access::Read, Caching::Direct).unwrap();
        if device.caching() == Caching::Direct {
            let mut buffer = AlignedBuf::zeroed(8192);
            assert!(matches!(device.read_exact_at(&mut buffer[..100], 0), Err(BlockError::Unaligned { .. })));
            assert!(matches!(device.read_exact_at(&mut buffer[..4096], 100), Err(BlockError::Unaligned { .. })));
            device.read_exact_at(&mut buffer[..4096], 4096).unwrap();
        }
    }
}
