//! The release that is this robot's: by the roll-out of the channel, or by its one manifest.

use super::error::RecoveryError;
use super::indexing::{IndexUse, add_index};
use super::job::RecoveryJob;
use super::release::{by_manifest, end_trial, report_found};
use super::rollout::{self, OfferedBy};
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::journal::Phase;
use crate::release::manifest::ManifestError;

/// Fetches the offered release with its index, fit for this machine and this partition.
pub(super) fn fetch_indexed(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    index_use: IndexUse,
) -> Result<IndexedRelease, RecoveryError> {
    let release =
        job.journal.phase(Phase::Manifest, &job.resources.source.describe(), || fetch_release(job, record))?;
    add_index(job, record, release, index_use)
}

/// Finds and downloads the manifest of the release that is this robot's: by the roll-out of the channel, if it has one.
///
/// # Errors
/// [`RecoveryError::Fetch`], [`RecoveryError::Manifest`] or [`RecoveryError::Rollout`].
pub fn fetch_release(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>) -> Result<Release, RecoveryError> {
    if job.resources.keys.is_empty() {
        // No copy of the release can be good: do not ask for one again and again.
        return Err(ManifestError::NoKeys.into());
    }
    match rollout::fetch(job, record)? {
        OfferedBy::ByRollout(files) => rollout::release(job, record, &files),
        OfferedBy::Chosen(release) => {
            (job.resources.learn_time)(release.manifest.created_unix_s);
            end_trial(job);
            report_found(job, &release);
            Ok(*release)
        }
        OfferedBy::ByManifest => by_manifest(job, record),
    }
}
