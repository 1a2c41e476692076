//! The target that an image is written to: one narrow trait over a partition, a file, or a test's memory.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::release::digest::{Digest, is_zero};
/// A buffer aligned as transfers past the page cache need it.
pub use crate::sys::block::AlignedBuf;
use crate::sys::block::{Access, BlockError, Caching, Device};

/// Bytes that are copied or zeroed at a time.
const COPY_BYTES: usize = 1024 * 1024;

/// A block device, or something that can be written like one. All offsets and lengths are multiples of 4096 bytes.
///
/// Methods take `&self`, because readers and the writer run in parallel, on ranges that do not overlap.
pub trait BlockTarget: Sync {
    /// Returns the name of the device or file, for people.
    fn name(&self) -> &str;

    /// Returns which piece of hardware this is, for the person who has to replace it.
    fn identity(&self) -> String {
        self.name().to_owned()
    }

    /// Size of the target, bytes.
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

    /// Makes the range read as zeros, by the cheapest means that promises it: a command of the device where it has one.
    /// Durable only after a flush. Some devices answer that they have zeroed and have not, so the range is read back,
    /// and [`write_zeros`] is for those.
    ///
    /// # Errors
    /// The device's error; part of the range may have been zeroed.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Advises the device that the content of the range is no longer needed. Flash memory lasts longer for it, and most
    /// devices then no longer return the old content.
    ///
    /// A device may ignore the advice, and what the range reads as afterwards is undefined.
    ///
    /// # Errors
    /// The device's error, or [`io::ErrorKind::Unsupported`] where the device takes no such advice.
    fn discard(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Flushes everything written before to the medium, volatile caches of the device included, and returns when it is
    /// there.
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
    /// Whether the device refused to zero. It is not asked again: some take seconds to refuse.
    refuses_to_zero: AtomicBool,
}

impl DeviceTarget {
    /// Opens a device or file for writing. That is refused while it is mounted or otherwise in use.
    ///
    /// # Errors
    /// [`BlockError`] says why it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, BlockError> {
        Self::open_with(path, Access::WriteExclusive)
    }

    /// Opens a device or file for reading only; a mounted device can be read.
    ///
    /// # Errors
    /// [`BlockError`] says why it cannot be opened.
    pub fn open_read_only(path: &Path) -> Result<Self, BlockError> {
        Self::open_with(path, Access::Read)
    }

    /// Adds a description of the disk that the device is on, for [`identity`](BlockTarget::identity).
    #[must_use]
    pub fn on_disk(self, disk: &str) -> Self {
        Self { disk: Some(disk.to_owned()), ..self }
    }

    fn open_with(path: &Path, access: Access) -> Result<Self, BlockError> {
        let device = Device::open(path, access, Caching::Direct)?;
        let target =
            Self { device, name: path.display().to_string(), disk: None, refuses_to_zero: AtomicBool::new(false) };
        if target.device.caching() == Caching::Buffered {
            // The file system has no direct I/O. What was cached before must not be taken for what is stored.
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
        self.device.read_exact_at(buffer, offset).map_err(device_error)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.device.write_all_at(content, offset).map_err(device_error)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        if !self.refuses_to_zero.load(Ordering::Relaxed) {
            if self.device.zero_out(range.start, range.end - range.start).is_ok() {
                return Ok(());
            }
            // File systems without hole punching refuse, and so may devices.
            self.refuses_to_zero.store(true, Ordering::Relaxed);
        }
        write_zeros(self, range)
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.device.discard(range.start, range.end - range.start).map_err(device_error)
    }

    fn flush(&self) -> io::Result<()> {
        match self.device.caching() {
            Caching::Direct => self.device.sync(),
            // The cache is dropped, so that the read-back that follows a flush reads the medium here too.
            Caching::Buffered => self.device.drop_cache(),
        }
        .map_err(device_error)
    }
}

/// Returns the device's own error, because the caller's error already names device and offset.
fn device_error(error: BlockError) -> io::Error {
    match error {
        BlockError::Device { source, .. } | BlockError::Transfer { source, .. } => source,
        other => io::Error::other(other),
    }
}

/// A part of a target, such as a partition of a disk that has no table yet.
pub struct Window<'a> {
    /// Target that the window is a part of.
    pub target: &'a dyn BlockTarget,
    /// Bytes of the target that the window covers.
    pub range: Range<u64>,
    /// Name of the window, for people.
    pub name: String,
}

impl Window<'_> {
    /// Returns the offset on the target of `len` bytes at `offset`, if they lie within the window.
    fn target_offset(&self, offset: u64, len: u64) -> io::Result<u64> {
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
        self.target.read_at(self.target_offset(offset, buffer.len() as u64)?, buffer)
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.target.write_at(self.target_offset(offset, content.len() as u64)?, content)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        let start = self.target_offset(range.start, len)?;
        self.target.zero(start..start + len)
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        let start = self.target_offset(range.start, len)?;
        self.target.discard(start..start + len)
    }

    fn flush(&self) -> io::Result<()> {
        self.target.flush()
    }
}

/// Writes zeros to the range as any other content is written, which every device can.
///
/// # Errors
/// The device's error; part of the range may have been written.
pub fn write_zeros(target: &dyn BlockTarget, range: Range<u64>) -> io::Result<()> {
    let zeros = AlignedBuf::zeroed(COPY_BYTES);
    let mut offset = range.start;
    while offset < range.end {
        let len = usize::try_from(range.end - offset).map_or(COPY_BYTES, |rest| rest.min(COPY_BYTES));
        target.write_at(offset, &zeros[..len])?;
        offset += len as u64;
    }
    Ok(())
}

/// The side of a copy that failed.
#[derive(Debug)]
pub enum CopyError {
    /// The content could not be read.
    Read(io::Error),
    /// The target could not be written, or does not keep what is written.
    Write(io::Error),
}

/// A piece that was copied.
struct Copied {
    offset: u64,
    len: usize,
    digest: Digest,
    is_zero: bool,
}

/// Copies `content`, a multiple of 4096 bytes, to the target from `offset` on, flushes it and reads it back. Zeros are
/// zeroed there, and written where the target says that it has zeroed and has not.
///
/// # Errors
/// [`CopyError`] says which side failed.
pub fn copy_blocks(mut content: impl Read, target: &dyn BlockTarget, mut offset: u64) -> Result<(), CopyError> {
    let mut buffer = AlignedBuf::zeroed(COPY_BYTES);
    let mut copied = Vec::new();
    loop {
        let mut len = 0;
        while len < COPY_BYTES {
            match content.read(&mut buffer[len..]).map_err(CopyError::Read)? {
                0 => break,
                more => len += more,
            }
        }
        if len == 0 {
            break;
        }
        let (piece, end) = (&buffer[..len], offset + len as u64);
        let is_zero = is_zero(piece);
        let written = if is_zero { target.zero(offset..end) } else { target.write_at(offset, piece) };
        written.map_err(CopyError::Write)?;
        copied.push(Copied { offset, len, digest: Digest::of(piece), is_zero });
        offset = end;
    }
    read_copy_back(target, &mut buffer, &copied).map_err(CopyError::Write)
}

/// Flushes what was copied and reads it back, and writes zeros where the target was to zero and did not.
fn read_copy_back(target: &dyn BlockTarget, buffer: &mut AlignedBuf, copied: &[Copied]) -> io::Result<()> {
    let mut is_right = |piece: &Copied| {
        let content = &mut buffer[..piece.len];
        target.read_at(piece.offset, content).is_ok() && Digest::of(content) == piece.digest
    };
    target.flush()?;
    let wrong: Vec<&Copied> = copied.iter().filter(|piece| !is_right(piece)).collect();
    let (not_zeroed, mut lost): (Vec<&Copied>, Vec<&Copied>) = wrong.into_iter().partition(|piece| piece.is_zero);
    if !not_zeroed.is_empty() {
        not_zeroed.iter().try_for_each(|it| write_zeros(target, it.offset..it.offset + it.len as u64))?;
        target.flush()?;
        lost.extend(not_zeroed.into_iter().filter(|piece| !is_right(piece)));
    }
    match lost.first() {
        None => Ok(()),
        Some(piece) => Err(io::Error::other(format!(
            "{} bytes at offset {} read back wrong, and {} more pieces of {COPY_BYTES} bytes; the disk is failing, \
             replace it",
            piece.len,
            piece.offset,
            lost.len() - 1
        ))),
    }
}
