//! The mounted system partition, read at leisure and never written: what would be written to it is only checked.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::flash::target::BlockTarget;

/// Most bytes per second that are read: at idle priority some disks and schedulers give all the same, and a robot that
/// writes its log must not wait for a comparison of two gigabytes.
const BYTES_PER_S: u64 = 64 << 20;

/// A target that reads another one slowly, and takes every write without carrying it out.
pub(super) struct Unhurried<'a>(pub(super) &'a dyn BlockTarget);

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
        let began = Instant::now();
        self.0.read_at(offset, buffer)?;
        // As long as it took: the disk is somebody else's for half of the time at least.
        let share = Duration::from_nanos((buffer.len() as u64).saturating_mul(1_000_000_000 / BYTES_PER_S));
        std::thread::sleep(began.elapsed().max(share));
        Ok(())
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
