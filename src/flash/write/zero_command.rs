//! What is known of a device's command to zero, which it may not carry out.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::flash::target::{BlockTarget, write_zeros};
use crate::release::digest::is_zero;

/// What is known of the device's command to zero.
#[derive(Debug, Default)]
pub(super) struct Zeroing {
    is_tried: AtomicBool,
    is_avoided: AtomicBool,
    has_lied: AtomicBool,
}

impl Zeroing {
    /// Zeroing that does not use the command at all.
    pub(super) fn by_writing() -> Self {
        Self { is_avoided: AtomicBool::new(true), ..Self::default() }
    }

    /// Notes that a range which was zeroed does not read as zeros. From now on zeros are written.
    pub(super) fn note_lie(&self) {
        // Zeros that were written and read back wrong say nothing of the command.
        if !self.is_avoided.swap(true, Ordering::Relaxed) {
            self.has_lied.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the device said that it had zeroed and had not.
    pub(super) fn has_lied(&self) -> bool {
        self.has_lied.load(Ordering::Relaxed)
    }

    pub(super) fn zero(&self, target: &dyn BlockTarget, range: Range<u64>) -> io::Result<()> {
        if self.is_avoided.load(Ordering::Relaxed) { write_zeros(target, range) } else { target.zero(range) }
    }

    /// Whether the next range is the first one, by which the command is tried.
    pub(super) fn is_trial(&self) -> bool {
        !self.is_avoided.load(Ordering::Relaxed) && !self.is_tried.swap(true, Ordering::Relaxed)
    }

    /// Zeroes the first range and reads it back. If it does not read as zeros, they are written.
    pub(super) fn try_command(&self, target: &dyn BlockTarget, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        self.zero(target, range.clone())?;
        // Before a flush the device could answer from its own memory.
        target.flush()?;
        if target.read_at(range.start, buffer).is_ok() && is_zero(buffer) {
            return Ok(());
        }
        self.note_lie();
        write_zeros(target, range)
    }
}
