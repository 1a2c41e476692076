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
            Self::Release(error) => error.is_retryable(),
        }
    }
}
