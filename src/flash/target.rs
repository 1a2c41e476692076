//! What an image is written to: one narrow trait over a partition, a file, or a test's memory.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use crate::release::digest::is_zero;
/// Memory as transfers past the page cache want it.
pub use crate::sys::block::AlignedBuf;
use crate::sys::block::{Access, BlockError, Caching, Device};

/// A block target. All offsets and lengths are multiples of 4096 bytes.
///
/// Methods take `&self`: readers and the writer run in parallel, on ranges that do not overlap.
pub trait BlockTarget: Sync {
    /// Device or file, for people.
    fn name(&self) -> &str;

    /// Which piece of hardware that is, for whoever has to replace it.
    fn identity(&self) -> String {
        self.name().to_owned()
    }

    /// Size, bytes.
    fn size_bytes(&self) -> u64;

    /// Reads what the medium holds, past the page cache.
    ///
    /// # Errors
    /// The device's error, or [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `content`. Durable only after [`flush`](Self::flush).
    ///
    /// # Errors
    /// The device's error; part of the content may have been written.
    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()>;

    /// Makes the range read as zeros, by the cheapest means that guarantees it. Durable only after a flush.
    ///
    /// # Errors
    /// The device's error; part of the range may have been zeroed.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Tells the device that the range holds nothing of use: good for flash memory, and most then no longer give the old content
    /// out. A hint, which the device need not take; what the range reads as afterwards is undefined.
    ///
    /// # Errors
    /// The device's error, or that it takes no such hints.
    fn discard(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns when everything written before is on the medium, volatile caches of the device included.
    ///
    /// # Errors
    /// The device's error: nothing written since the last flush can be relied on.
    fn flush(&self) -> io::Result<()>;
}

/// A block device or image file, opened for this program alone and past the page cache.
#[derive(Debug)]
pub struct DeviceTarget {
    device: Device,
    name: String,
    disk: Option<String>,
}

impl DeviceTarget {
    /// Opens it for writing. Refused while it is mounted or otherwise in use.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn open(path: &Path) -> Result<Self, BlockError> {
        Self::with(path, Access::WriteExclusive)
    }

    /// Opens it for reading only; a mounted device can be read.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn open_read_only(path: &Path) -> Result<Self, BlockError> {
        Self::with(path, Access::Read)
    }

    /// Adds what is known of the disk it is on.
    #[must_use]
    pub fn on_disk(self, disk: &str) -> Self {
        Self { disk: Some(disk.to_owned()), ..self }
    }

    fn with(path: &Path, access: Access) -> Result<Self, BlockError> {
        let device = Device::open(path, access, Caching::Direct)?;
        let target = Self { device, name: path.display().to_string(), disk: None };
        if target.device.caching() == Caching::Buffered {
            // A file system without direct I/O: what was cached before must not be taken for what is stored.
            target.device.drop_cache()?;
        }
        Ok(target)
    }
}

impl BlockTarget for DeviceTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> String {
        match &self.disk {
            Some(disk) => format!("{} of the disk {disk}", self.name),
            None => self.name.clone(),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(buffer, offset).map_err(cause)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.device.write_all_at(content, offset).map_err(cause)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        if self.device.zero_out(range.start, range.end - range.start).is_ok() {
            return Ok(());
        }
        // File systems without hole punching, and whatever else refuses: plain zeros always work.
        let zeros = AlignedBuf::zeroed((range.end - range.start).min(1024 * 1024) as usize);
        let mut offset = range.start;
        while offset < range.end {
            let len = (range.end - offset).min(zeros.len() as u64) as usize;
            self.write_at(offset, &zeros[..len])?;
            offset += len as u64;
        }
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.device.discard(range.start, range.end - range.start).map_err(cause)
    }

    fn flush(&self) -> io::Result<()> {
        match self.device.caching() {
            Caching::Direct => self.device.sync(),
            // Then the read-back that follows a flush reads the medium here too.
            Caching::Buffered => self.device.drop_cache(),
        }
        .map_err(cause)
    }
}

/// The device's own answer; the caller's error already names device and offset.
fn cause(error: BlockError) -> io::Error {
    match error {
        BlockError::Device { source, .. } | BlockError::Transfer { source, .. } => source,
        other => io::Error::other(other),
    }
}

/// A part of a target: a partition of a disk that has no table yet.
pub struct Window<'a> {
    /// What it is a part of.
    pub target: &'a dyn BlockTarget,
    /// Which part, bytes.
    pub range: Range<u64>,
    /// What it is, for people.
    pub name: String,
}

impl Window<'_> {
    /// Where `len` bytes at `offset` lie on the whole, if they lie within this part.
    fn within(&self, offset: u64, len: u64) -> io::Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(self.range.start + offset),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl BlockTarget for Window<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> String {
        format!("the {} partition of {}", self.name, self.target.identity())
    }

    fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.target.read_at(self.within(offset, buffer.len() as u64)?, buffer)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.target.write_at(self.within(offset, content.len() as u64)?, content)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        let start = self.within(range.start, len)?;
        self.target.zero(start..start + len)
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        let start = self.within(range.start, len)?;
        self.target.discard(start..start + len)
    }

    fn flush(&self) -> io::Result<()> {
        self.target.flush()
    }
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum CopyError {
    /// What was copied.
    Read(io::Error),
    /// The target.
    Write(io::Error),
}

/// Copies `content`, a multiple of 4096 bytes, to `offset` and on. Zeros in it are zeroed there. Durable only after a
/// flush.
///
/// # Errors
/// [`CopyError`].
pub fn copy_blocks(mut content: impl Read, target: &dyn BlockTarget, mut offset: u64) -> Result<(), CopyError> {
    const STEP_BYTES: usize = 1024 * 1024;
    let mut buffer = AlignedBuf::zeroed(STEP_BYTES);
    loop {
        let mut len = 0;
        while len < STEP_BYTES {
            match content.read(&mut buffer[len..]).map_err(CopyError::Read)? {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 {
            return Ok(());
        }
        let end = offset + len as u64;
        let written =
            if is_zero(&buffer[..len]) { target.zero(offset..end) } else { target.write_at(offset, &buffer[..len]) };
        written.map_err(CopyError::Write)?;
        offset = end;
    }
}
