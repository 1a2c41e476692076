//! Errors of a recovery, and whether trying again can help.

use std::time::Duration;

use crate::boot::env::BootEnvError;
use crate::fetch::{FetchError, FetchErrorKind};
use crate::flash::undo::UndoObstacle;
use crate::flash::write::WriteError;
use crate::release::index::IndexError;
use crate::release::manifest::ManifestError;
use crate::release::rollout::RolloutError;

/// How often chunks that read back wrong are written again before the disk is called broken.
pub(super) const REWRITES: u32 = 2;

/// A verified system could not be made bootable.
#[derive(Debug, thiserror::Error)]
#[error("the system is verified, but cannot be made bootable")]
pub struct CommitError(#[from] BootEnvError);

/// Error that ended a recovery.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file of the release cannot be downloaded.
    #[error("cannot download the {what}")]
    Fetch {
        /// Kind of file, as `manifest` or `chunk index`.
        what: &'static str,
        /// Error of the transfer.
        source: FetchError,
    },
    /// The manifest is authentic and not acted on.
    #[error("the release is refused")]
    Manifest(#[from] ManifestError),
    /// No release is taken by the roll-out of the channel.
    #[error("no release is taken by the roll-out")]
    Rollout(#[from] RolloutError),
    /// The chunk index is authentic and unusable.
    #[error("the chunk index of the release is refused")]
    Index(#[from] IndexError),
    /// Chunk index and manifest disagree about the size of the image.
    #[error(
        "the chunk index describes {index_bytes} bytes and the manifest {manifest_bytes}: the release was built wrong"
    )]
    SizesDiffer {
        /// Size of the image in the index, bytes.
        index_bytes: u64,
        /// Size of the image in the manifest, bytes.
        manifest_bytes: u64,
    },
    /// A download failed, or the disk did.
    #[error("{}", write_failed(.0))]
    Write(#[from] WriteError),
    /// The disk does not keep what is written to it. Each chunk had its digest when it was written, and every chunk
    /// that had to be written was ([`WriteError::NotDelivered`]), so that nothing but the disk is left to blame.
    #[error("{target} reads back wrong after {REWRITES} rewrites at {ranges}; the disk is failing, replace it")]
    ReadBack {
        /// The device, with its model and serial number.
        target: String,
        /// Damaged ranges, for people.
        ranges: String,
    },
    /// No undo is possible, or not without a network.
    #[error("nothing was undone")]
    Undo(#[from] UndoObstacle),
    /// The boot environment cannot be written before the first write.
    #[error("nothing was written, since the boot environment could not be prepared")]
    Prepare(#[source] BootEnvError),
    /// The record of the other system cannot be removed before it is written, or made once it is verified: a switch
    /// would lead to what nothing is known of.
    #[error("the record of the other system cannot be changed, and GRUB goes on with the active one")]
    OtherRecord(#[source] std::io::Error),
    /// The boot environment cannot be written after the proof.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

fn write_failed(error: &WriteError) -> &'static str {
    match error.is_of_download() {
        true => "what is missing of the system cannot be downloaded",
        false => "the system could not be written",
    }
}

impl RecoveryError {
    /// Whether another release than the offered one can help, since neither the disk nor the network is at fault.
    #[must_use]
    pub fn is_of_the_release(&self) -> bool {
        match self {
            Self::Manifest(_) | Self::Rollout(_) | Self::Index(_) | Self::SizesDiffer { .. } => true,
            Self::Fetch { source, .. } => !source.is_retryable(),
            // What no source has as it is signed is no different from a release that is refused: a damaged system is
            // better repaired with the release before than left alone until a server is mended.
            Self::Write(WriteError::TooLarge { .. } | WriteError::Content { .. }) => true,
            Self::Write(WriteError::Fetch { source, .. }) => !source.is_retryable(),
            Self::Write(_)
            | Self::ReadBack { .. }
            | Self::Undo(_)
            | Self::Prepare(_)
            | Self::OtherRecord(_)
            | Self::Commit(_) => false,
        }
    }

    /// Whether content of the release is what no source has, or has as it is signed.
    #[must_use]
    pub fn is_of_content(&self) -> bool {
        match self {
            Self::Fetch { source, .. } | Self::Write(WriteError::Fetch { source, .. }) => source.is_of_the_object(),
            Self::Write(WriteError::Content { .. }) => true,
            _ => false,
        }
    }

    /// Whether there is no newer release than the one that is known, and nothing else is wrong.
    #[must_use]
    pub fn is_nothing_new(&self) -> bool {
        matches!(
            self,
            Self::Manifest(ManifestError::NothingNew { .. }) | Self::Rollout(RolloutError::NothingForThisRobot(_))
        )
    }

    /// Whether the source of a roll-out lags behind, or was met between two files of one change: in minutes it may not.
    #[must_use]
    pub fn is_of_lagging_source(&self) -> bool {
        use RolloutError::{Gone, HaltOfAnother, LiftedAhead, Older};
        matches!(self, Self::Rollout(Older { .. } | Gone { .. } | HaltOfAnother { .. } | LiftedAhead { .. }))
    }

    /// Whether a server refused a file of the release by a status that usually stays, such as 403 or 404, or could not
    /// be trusted. One such answer may be a slip of the server, or of something on the way to it, and decides nothing.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Fetch { source, .. } | Self::Write(WriteError::Fetch { source, .. }) => {
                source.is_denied() || matches!(source.kind(), FetchErrorKind::Tls | FetchErrorKind::TlsTime { .. })
            }
            _ => false,
        }
    }

    /// Pause that a server asked for.
    #[must_use]
    pub fn asked_to_wait(&self) -> Option<Duration> {
        match self {
            Self::Fetch { source, .. }
            | Self::Write(WriteError::Fetch { source, .. } | WriteError::Content { source, .. }) => {
                source.asked_to_wait()
            }
            _ => None,
        }
    }

    /// Whether a source answers, and only the object that was asked for is wrong.
    pub(super) fn is_of_one_object(&self) -> bool {
        matches!(self, Self::Fetch { source, .. } if source.is_of_the_object())
    }

    /// Whether the disk or the boot environment failed, which a restart may cure: a drive that hung, a file system
    /// whose journal has to be replayed.
    #[must_use]
    pub fn is_of_the_disk(&self) -> bool {
        !self.is_retryable() && !self.is_of_the_release()
    }

    /// Whether trying again later can help without anything being changed on this machine.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::Write(error) => error.is_retryable(),
            Self::Manifest(_)
            | Self::Rollout(_)
            | Self::Index(_)
            | Self::SizesDiffer { .. }
            | Self::ReadBack { .. }
            | Self::Undo(_)
            | Self::Prepare(_)
            | Self::OtherRecord(_)
            | Self::Commit(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecoveryError;
    use crate::release::rollout::RolloutError;

    /// Two files that do not fit each other come from a mirror that has only one of them yet.
    #[test]
    fn a_source_that_has_one_file_of_a_change_lags_behind() {
        let of_lagging = |error: RolloutError| RecoveryError::from(error).is_of_lagging_source();
        let file = "halt";
        for error in [
            RolloutError::Older { file, found: 1, seen: 2 },
            RolloutError::Gone { seen: 2 },
            RolloutError::HaltOfAnother { serial: 8 },
            RolloutError::LiftedAhead { serial: 8, through: 2, halts: 1 },
        ] {
            assert!(of_lagging(error));
        }
        assert!(!of_lagging(RolloutError::NothingForThisRobot(String::new())));
        assert!(!of_lagging(RolloutError::Contradiction { file, what: String::new() }));
    }
}
