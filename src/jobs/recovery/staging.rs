//! What a recovery to a release would do to the partition, worked out and tried beforehand: for an update that is
//! fetched while the system works.

use std::ops::Range;

use super::error::RecoveryError;
use super::indexing::{self, IndexUse};
use super::job::RecoveryJob;
use super::planning::{self, Planned};
use super::rewrite;
use crate::fetch::{SinkError, Source};
use crate::flash::plan::ChunkPlaces;
use crate::jobs::state::{IndexedRelease, InstalledRecord, Release};
use crate::record::totals::Totals;
use crate::release::digest::Digest;
use crate::release::manifest::{Object, object_path};

/// The work of a recovery to one release on this partition, as long as nothing on it changes.
pub struct Foreseen {
    release: IndexedRelease,
    planned: Planned,
}

impl Foreseen {
    /// Compares the partition with the release and plans. What is kept for an undo is not counted on: a recovery may
    /// give it up.
    ///
    /// # Errors
    /// As [`super::run`], up to the plan.
    pub fn of(
        job: &RecoveryJob<'_>,
        record: Option<&InstalledRecord>,
        offered: Release,
    ) -> Result<Self, RecoveryError> {
        let release = indexing::add_index(job, record, offered, IndexUse::All)?;
        let planned = planning::compare_and_plan(job, planning::image_bytes(record), &release, None)?;
        Ok(Self { release, planned })
    }

    /// Quantities of the plan.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.planned.totals(&self.release)
    }

    /// The parts of packs that the recovery would ask a server for.
    #[must_use]
    pub fn requests(&self) -> Vec<(String, Range<u64>)> {
        let Planned::Differs(_, plan) = &self.planned else { return Vec::new() };
        let places = ChunkPlaces::with(&self.release.index, plan.kept.as_ref());
        let pack = |pack: u32| object_path(&places.pack(pack).digest);
        let whole = plan.requests.iter().map(|request| (pack(request.pack), request.range.clone()));
        let numbered = plan.delta_requests.iter().chain(&plan.group_requests);
        numbered.map(|request| (object_path(&request.pack), request.range.clone())).chain(whole).collect()
    }

    /// Carries the plan out on a target that takes writes and does nothing: everything is fetched, put together and
    /// compared with its digest, just as a recovery would. Returns whether deltas or groups are wrong in every copy: a
    /// recovery with what the plan names would not get far then.
    ///
    /// # Errors
    /// As [`super::run`].
    pub fn try_out(&self, job: &RecoveryJob<'_>) -> Result<bool, RecoveryError> {
        match &self.planned {
            Planned::Equal(_) => Ok(false),
            Planned::Differs(comparison, plan) => {
                // A target that ignores what it is given would be said to lie about zeros.
                let plan = plan.as_ref().clone().with_zeros_written();
                rewrite::unproven(job, &self.release.index, comparison, &plan)
            }
        }
    }
}

/// Fetches an object, checks its digest and keeps nothing of it: the source does, if it is to be kept.
///
/// # Errors
/// [`RecoveryError::Fetch`].
pub fn fetch_through(source: &dyn Source, object: &Object) -> Result<(), RecoveryError> {
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    let path = object_path(&object.blake3);
    let fetched = source.get_range(&path, 0..object.size_bytes, &mut |part| {
        hasher.update(part);
        at += part.len() as u64;
        if at < object.size_bytes {
            return Ok(());
        }
        let found = Digest(*hasher.finalize().as_bytes());
        hasher.reset();
        at = 0;
        match found == object.blake3 {
            true => Ok(()),
            false => Err(SinkError::Wrong { from: 0, reason: format!("{found}, expected {}", object.blake3) }),
        }
    });
    fetched.map_err(|source| RecoveryError::Fetch { what: "file of the release", source })
}
