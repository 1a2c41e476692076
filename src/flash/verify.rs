//! The only way to [`Verified`]: every chunk was read back from the medium, past the page cache, and is right.

use crate::flash::plan::Comparison;
use crate::flash::readback::Scan;
use crate::flash::target::BlockTarget;
use crate::flash::write::Written;
use crate::record::progress::Done;

/// Every byte of the image was read back from the medium and is right. Only [`crate::jobs::recovery::commit`] takes it.
#[derive(Debug)]
pub struct Verified(());

impl Verified {
    /// The proof, or what is wrong.
    ///
    /// # Errors
    /// The comparison to plan the next write with.
    pub fn from_scan(scan: Scan<'_>) -> Result<Self, Comparison> {
        let comparison = scan.into_comparison();
        if comparison.all_right() { Ok(Self(())) } else { Err(comparison) }
    }
}

/// Reads back what was written and not read back behind the writer. `done` counts what was read.
#[must_use]
pub fn read_back<'i>(written: Written<'i>, target: &dyn BlockTarget, done: &Done) -> Scan<'i> {
    written.read_back.finish(target, done)
}
