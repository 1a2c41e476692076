//! The only way to [`Verified`], which proves that every chunk was read back from the medium, past the page cache, and
//! is right.

use crate::flash::plan::Comparison;
use crate::flash::readback::Scan;
use crate::flash::target::BlockTarget;
use crate::flash::write::Written;
use crate::record::progress::Done;

/// Proof that every byte of the image was read back from the medium and is right. Only
/// [`crate::jobs::recovery`] takes it, to make the system bootable.
#[derive(Debug)]
pub struct Verified(());

impl Verified {
    /// Returns the proof if every chunk is right.
    ///
    /// # Errors
    /// The comparison, from which the next write can be planned.
    pub fn from_scan(scan: Scan<'_>) -> Result<Self, Comparison> {
        let comparison = scan.into_comparison();
        if comparison.all_right() { Ok(Self(())) } else { Err(comparison) }
    }
}

/// Reads back the chunks that were written and not yet read back behind the writer. `done` counts the bytes that were
/// read.
#[must_use]
pub fn read_back<'i>(written: Written<'i>, target: &dyn BlockTarget, done: &Done) -> Scan<'i> {
    written.read_back.finish(target, done)
}
