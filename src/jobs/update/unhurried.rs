//! A partition of a robot that works meanwhile: read and written at leisure, or never written.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::flash::target::BlockTarget;

/// Most bytes per second that are read or written: at idle priority some disks and schedulers give all the same, and a
/// robot that writes its log must not wait for a comparison of two gigabytes.
const BYTES_PER_S: u64 = 64 << 20;
/// Largest part that is read, written or zeroed at once: nothing of the robot gets in between, on the disk nor, in a
/// kernel that does not preempt itself (Debian's, PREEMPT_VOLUNTARY), on the processor that copies it.
const AT_ONCE_BYTES: u32 = 128 << 10;

/// A target that reads and writes another one slowly.
pub(super) struct Unhurried<'a>(pub(super) &'a dyn BlockTarget);

/// Does something with `bytes` of a disk, and leaves the disk alone for as long as it took: it is somebody else's for
/// half of the time at least.
fn at_leisure<T>(bytes: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    let done = work()?;
    let share = Duration::from_nanos(bytes.saturating_mul(1_000_000_000 / BYTES_PER_S));
    std::thread::sleep(began.elapsed().max(share));
    Ok(done)
}

impl BlockTarget for Unhurried<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for part in buffer.chunks_mut(AT_ONCE_BYTES as usize) {
            let length = part.len() as u64;
            at_leisure(length, || self.0.read_at(at, part))?;
            at += length;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for part in content.chunks(AT_ONCE_BYTES as usize) {
            at_leisure(part.len() as u64, || self.0.write_at(at, part))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + u64::from(AT_ONCE_BYTES));
            at_leisure(end - at, || self.0.zero(at..end))?;
            at = end;
        }
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.0.discard(range)
    }

    fn flush(&self) -> io::Result<()> {
        at_leisure(0, || self.0.flush())
    }
}

/// A target that takes every write without carrying it out: what would be written is only checked.
pub(super) struct Untouched<'a>(pub(super) &'a dyn BlockTarget);

impl BlockTarget for Untouched<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, _offset: u64, _content: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
