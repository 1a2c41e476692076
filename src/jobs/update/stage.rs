//! Fetches what a robot needs of its next release and does not have.

use std::ops::Range;
use std::path::Path;

use super::error::UpdateError;
use super::filling::Filling;
use super::store::UpdateStore;
use super::unhurried::{Unhurried, Untouched};
use crate::boot::slots::RecoveryFiles;
use crate::fetch::Source;
use crate::jobs::mend::pieces::{self, BootPieces};
use crate::jobs::recovery::{self, Foreseen, Policy, RecoveryError, RecoveryJob, Resources, SlotStorage};
use crate::jobs::state::{InstalledRecord, Release};
use crate::record::totals::Totals;
use crate::release::manifest::{Manifest, Object, object_path};

/// Parts of the robot beside its system partition that a recovery brings up to date: known before anything is fetched,
/// so that no partition has to stay mounted for days.
#[derive(Debug, Default)]
pub struct OtherParts {
    files: Vec<Object>,
}

impl OtherParts {
    /// Finds out what a recovery would fetch for the recovery partition and for the boot code.
    #[must_use]
    pub fn of(manifest: &Manifest, slots: Option<&dyn SlotStorage>, boot_code: Option<&BootPieces>) -> Self {
        let mut files = Vec::new();
        if let (Some(slots), Ok(Some(carried))) = (slots, RecoveryFiles::of(manifest))
            && !recovery::is_in_a_slot(slots, &carried)
        {
            files.extend(carried.files().map(|(_, object)| *object));
        }
        if let Some(own) = boot_code {
            let names: Vec<&str> = own.names().collect();
            if own.serial < manifest.serial && !own.equals(manifest, &names) {
                files.extend(pieces::offered(manifest, &names).into_iter().map(|file| file.object));
            }
        }
        Self { files }
    }

    pub(super) fn needed(&self) -> impl Iterator<Item = (String, Range<u64>)> {
        self.files.iter().map(|object| (object_path(&object.blake3), 0..object.size_bytes))
    }

    /// Fetches all of them through a source that keeps what passes.
    pub(super) fn fetch(&self, source: &dyn Source) -> Result<(), RecoveryError> {
        self.files.iter().try_for_each(|object| recovery::fetch_through(source, object))
    }
}

/// Fetches what is missing of `release` into the store in `directory`, and tries it out: with what is there then, a
/// recovery needs no network. `begun` is called once it is known how much that takes.
///
/// What an earlier attempt fetched is used. The source of the job must be one that gives up by itself.
///
/// # Errors
/// [`UpdateError`]; the next attempt goes on from what was fetched.
pub fn stage(
    job: &RecoveryJob<'_>,
    record: Option<&InstalledRecord>,
    release: &Release,
    others: &OtherParts,
    directory: &Path,
    begun: impl FnOnce(&UpdateStore, Totals),
) -> Result<UpdateStore, UpdateError> {
    recovery::check_room(release, job.resources.target)?;
    let store = UpdateStore::fill(directory, release.id())?;
    store.distrust();
    let filling = Filling::new(&store, job.resources.source);
    let unhurried = Unhurried(job.resources.target);
    let target = Untouched(&unhurried);
    let resources = Resources { source: &filling, brief_source: &filling, target: &target, ..job.resources };
    let job = RecoveryJob { resources, ..job.clone() };
    let of_store = |error: RecoveryError| filling.take_failure().unwrap_or_else(|| error.into());
    let mut begun = Some(begun);
    let mut attempt = |chunks_alone: bool| -> Result<Result<bool, RecoveryError>, UpdateError> {
        let job = RecoveryJob { policy: Policy { chunks_alone, ..job.policy }, ..job.clone() };
        filling.forget_asked();
        filling.make_room_for_ranges();
        let foreseen = Foreseen::of(&job, record, release.clone()).map_err(of_store)?;
        let asked = filling.asked_for().into_iter().chain(filling.take_ranges());
        let needed: Vec<_> = asked.chain(foreseen.requests()).chain(others.needed()).collect();
        store.adopt(release, &needed)?;
        begun.take().into_iter().for_each(|begun| begun(&store, foreseen.totals()));
        Ok(foreseen.try_out(&job))
    };
    let mut fetched = attempt(false)?;
    if matches!(fetched, Ok(true)) {
        // Deltas or groups are wrong on every source. What is fetched in their place is what has to be there.
        fetched = attempt(true)?;
    }
    let fetched = fetched.and_then(|_| others.fetch(&filling));
    // What came before an error need not be fetched again.
    let synced = store.sync();
    fetched.map_err(of_store)?;
    synced?;
    store.finish()?;
    Ok(store)
}
