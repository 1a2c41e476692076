//! The errors of an update that is prepared.

use std::io;
use std::path::PathBuf;

use crate::jobs::recovery::RecoveryError;
use crate::record::progress::bytes;

/// The reason for which an update is not fetched, or not applied.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The store takes more room than there is.
    #[error(
        "the update takes {} in {}, where {} may be used: {} stay free for the robot",
        bytes(*.needed_bytes), .path.display(), bytes(*.free_bytes), bytes(*.kept_free_bytes)
    )]
    NoRoom {
        /// Directory of the store.
        path: PathBuf,
        /// Bytes that have to be reserved.
        needed_bytes: u64,
        /// Bytes that may be reserved.
        free_bytes: u64,
        /// Bytes that stay free.
        kept_free_bytes: u64,
    },
    /// The file system of the store failed, or is read-only, or its quota is used up.
    #[error("cannot {doing} the store in {}", .path.display())]
    Store {
        /// Action that failed, as a verb.
        doing: &'static str,
        /// Directory of the store.
        path: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
    /// The release is refused, or could not be fetched.
    #[error(transparent)]
    Release(#[from] RecoveryError),
    /// The store does not hold all that was fetched, though what came was right.
    #[error("{missing_bytes} bytes of the store did not come; the next attempt fetches them")]
    Incomplete {
        /// Bytes that are missing.
        missing_bytes: u64,
    },
}

impl UpdateError {
    /// Whether trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // A person may make room, and a quota may be raised.
            Self::NoRoom { .. } | Self::Store { .. } | Self::Incomplete { .. } => true,
            Self::Release(error) => error.is_retryable() || is_of_room(error),
        }
    }
}

/// Whether a file system was full, or a device in use: of what else a robot does, and gone when that is.
fn is_of_room(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{QuotaExceeded, ResourceBusy, StorageFull};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), QuotaExceeded | ResourceBusy | StorageFull))
}

#[cfg(test)]
mod tests {
    use super::UpdateError;
    use crate::jobs::recovery::RecoveryError;

    #[test]
    fn what_a_full_partition_keeps_from_an_update_is_tried_again() {
        let of = |code| UpdateError::from(RecoveryError::OtherRecord(std::io::Error::from_raw_os_error(code)));
        let (no_space, busy, failing) = (28, 16, 5);
        assert_eq!([no_space, busy, failing].map(|code| of(code).is_retryable()), [true, true, false]);
    }
}
