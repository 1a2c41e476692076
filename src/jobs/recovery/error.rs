//! Why a recovery did not finish, and what can be expected of trying again.

use std::time::Duration;

use super::REWRITES;
use crate::boot::env::BootEnvError;
use crate::fetch::FetchError;
use crate::flash::write::WriteError;
use crate::jobs::recovery::commit::CommitError;
use crate::release::index::IndexError;
use crate::release::manifest::ManifestError;

/// Why a recovery did not finish.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file of the release.
    #[error("cannot download the {what}")]
    Fetch {
        /// `manifest`, `signature` or `chunk index`.
        what: &'static str,
        /// Why.
        source: FetchError,
    },
    /// The manifest is refused.
    #[error("the release is refused")]
    Manifest(#[from] ManifestError),
    /// The index is authentic and unusable.
    #[error("the chunk index of the release is refused")]
    Index(#[from] IndexError),
    /// Index and manifest differ.
    #[error(
        "the chunk index describes {index_bytes} bytes and the manifest {manifest_bytes}: the release was built wrong"
    )]
    SizesDiffer {
        /// In the index.
        index_bytes: u64,
        /// In the manifest.
        manifest_bytes: u64,
    },
    /// Download or disk.
    #[error("the system could not be written")]
    Write(#[from] WriteError),
    /// The disk does not keep what is written.
    #[error("{target} reads back wrong after {REWRITES} rewrites at {ranges}; the disk is failing, replace it")]
    ReadBack {
        /// Device.
        target: String,
        /// Ranges, for people.
        ranges: String,
    },
    /// The boot environment before the write.
    #[error("nothing was written, since the boot environment could not be prepared")]
    Prepare(#[source] BootEnvError),
    /// The boot environment after it.
    #[error("the last step failed")]
    Commit(#[from] CommitError),
}

impl RecoveryError {
    /// Whether another release than the one that is offered can help: the disk is not at fault, the network neither.
    #[must_use]
    pub fn is_of_the_release(&self) -> bool {
        match self {
            Self::Manifest(_) | Self::Index(_) | Self::SizesDiffer { .. } => true,
            Self::Fetch { source, .. } => !source.is_retryable(),
            Self::Write(WriteError::TooLarge { .. }) => true,
            Self::Write(WriteError::Fetch { source, .. }) => !source.is_retryable(),
            Self::Write(_) | Self::ReadBack { .. } | Self::Prepare(_) | Self::Commit(_) => false,
        }
    }

    /// The pause that a server asked for.
    #[must_use]
    pub fn asked_to_wait(&self) -> Option<Duration> {
        match self {
            Self::Fetch { source, .. } | Self::Write(WriteError::Fetch { source, .. }) => source.asked_to_wait(),
            _ => None,
        }
    }

    /// Whether trying again later, with nobody doing anything here, can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::Write(error) => error.is_retryable(),
            Self::Manifest(_)
            | Self::Index(_)
            | Self::SizesDiffer { .. }
            | Self::ReadBack { .. }
            | Self::Prepare(_)
            | Self::Commit(_) => false,
        }
    }
}
