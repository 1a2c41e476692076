//! An update of a robot with two systems: the release is written to the other system while the active one works, and
//! one restart starts it. The store keeps only what is small: the manifest, the index, and a renewed recovery. It is in
//! memory, so that neither a full nor a dead data partition keeps a robot from its update; after a restart, what was
//! written is found again by its digests, and only that is fetched once more.

use std::path::Path;

use super::error::UpdateError;
use super::filling::Filling;
use super::stage::OtherParts;
use super::store::UpdateStore;
use super::unhurried::Unhurried;
use crate::flash::target::BlockTarget;
use crate::jobs::recovery::other::OtherSystem;
use crate::jobs::recovery::{self, RecoveryError, RecoveryJob, RecoveryReport, Resources};
use crate::jobs::state::{InstalledRecord, Release};
use crate::record::totals::Totals;

/// Writes the release to the other system, at leisure, and reads it back; GRUB goes on starting the active one. `begun`
/// is called once it is known how much that takes. Returns whether the release belongs there.
///
/// What an earlier attempt wrote and fetched is used. The source of the job must be one that gives up by itself.
///
/// # Errors
/// [`UpdateError`]; the next attempt goes on from what was written.
pub fn write_beside(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &Release,
    others: &OtherParts,
    directory: &Path,
    begun: impl FnOnce(&UpdateStore, Totals),
) -> Result<bool, UpdateError> {
    let Some(other) = job.resources.other else { return Ok(false) };
    recovery::check_room(release, other.target)?;
    let store = UpdateStore::fill(directory, release.id())?.in_memory();
    store.distrust();
    let filling = Filling::new(&store, job.resources.source);
    let of_store = |error: RecoveryError| filling.take_failure().unwrap_or_else(|| error.into());
    let (active, other_target) = (Unhurried(job.resources.target), Unhurried(other.target));
    let written = with(job, &filling, &active, &other_target, |job| {
        recovery::prepare_other(job, record, release.clone(), |totals| begun(&store, totals))
    });
    if written.map_err(of_store)?.is_none() {
        return Ok(false);
    }
    let needed: Vec<_> = filling.asked_for().into_iter().chain(others.needed()).collect();
    store.adopt(release, &needed)?;
    let fetched = others.fetch(&filling);
    // What came before an error need not be fetched again.
    let synced = store.sync();
    fetched.map_err(of_store)?;
    synced?;
    store.finish()?;
    Ok(true)
}

/// Compares what [`write_beside`] has written, mends what has become wrong since, and has GRUB start it. `None` where
/// the release does not belong on the other system any more.
///
/// # Errors
/// [`UpdateError`]; GRUB then starts the active system as before.
pub fn switch(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &Release,
    directory: &Path,
) -> Result<Option<RecoveryReport>, UpdateError> {
    let Some(other) = job.resources.other else { return Ok(None) };
    let store = UpdateStore::fill(directory, release.id())?.in_memory();
    let filling = Filling::new(&store, job.resources.source);
    let switched = with(job, &filling, job.resources.target, other.target, |job| {
        recovery::switch_to(job, record, release.clone())
    });
    switched.map_err(|error| filling.take_failure().unwrap_or_else(|| error.into()))
}

/// The job with the store in front of the servers, and with other hands on its two systems.
fn with<T>(
    job: &RecoveryJob<'_>,
    filling: &Filling<'_>,
    active: &dyn BlockTarget,
    other: &dyn BlockTarget,
    work: impl FnOnce(&RecoveryJob<'_>) -> T,
) -> T {
    let resources = Resources {
        source: filling,
        brief_source: filling,
        target: active,
        other: job.resources.other.map(|system| OtherSystem { target: other, ..system }),
        renewal: job.resources.renewal.map(|renewal| recovery::Renewal { source: filling, ..renewal }),
        ..job.resources
    };
    work(&RecoveryJob { resources, ..job.clone() })
}
