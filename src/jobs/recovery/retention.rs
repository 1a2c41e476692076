//! What stays within reach of an undo while a release is written.

use super::job::{Keep, RecoveryJob};
use crate::chain::chain;
use crate::flash::undo::{self, Change, ChunkSource, Keeping, Kept, KeptChunks, ReleaseToKeep, UndoObstacle, UndoRoom};
use crate::jobs::state::{IndexedRelease, InstalledRecord};
use crate::record::event::ranges_for_people;
use crate::record::journal::Phase;
use crate::record::progress::{Bytes, Done, bytes};
use crate::release::index::Index;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE};

/// The most that is downloaded of the release to go back to, because the partition has lost it: what an update may cost
/// more than its own download, bytes. A partition that has lost more than that needs the network for an undo too.
const MAX_FETCHED_BYTES: u64 = 32 << 20;

/// What is kept on the partition, and what becomes of it.
pub(super) struct Retention {
    /// The release that is kept, unless another one takes its place.
    kept: Option<Kept>,
    keeps: Keeps,
    /// Whether the image that is written leaves alone what is kept.
    is_clear: bool,
    /// Size of the image that is written, bytes.
    image_bytes: u64,
    /// Size of the image that is installed, as far as that is known, bytes.
    installed_bytes: u64,
}

/// What becomes of what is kept.
enum Keeps {
    /// Nothing: the release is written over itself, and takes nothing away.
    AsItIs,
    /// What is about to be lost of the same release is added.
    More,
    /// The installed release is kept from now on.
    Anew(Box<IndexedRelease>),
    /// Nothing stays within reach.
    Nothing,
}

impl Retention {
    /// Decides what is kept while `release` is written.
    pub(super) fn of(job: &RecoveryJob<'_>, record: Option<&InstalledRecord>, release: &IndexedRelease) -> Self {
        let kept = read(job);
        let image_bytes = release.index.image_bytes();
        let is_clear = kept.as_ref().is_some_and(|kept| kept.chunks.lie_behind(image_bytes));
        let installed_image = record.and_then(|record| record.manifest().image(SYSTEM_IMAGE).ok());
        let installed_bytes = installed_image.map_or(0, |image| image.size_bytes);
        let installed = record.filter(|_| job.policy.keep == Keep::Installed).and_then(|record| {
            let installed = job.resources.state?.index_of(record);
            if installed.is_none() {
                job.journal.warn("the record of the installed release has no index: it cannot be kept for an undo");
            }
            installed
        });
        let keeps = match (job.policy.keep, installed, &kept) {
            (Keep::Nothing, ..) => Keeps::Nothing,
            (_, Some(installed), _) if is_same_image(&installed.manifest, &release.manifest) => Keeps::AsItIs,
            (_, Some(installed), Some(kept)) if installed.signed.bytes() == kept.signed.bytes() => Keeps::More,
            (_, Some(installed), _) => Keeps::Anew(Box::new(installed)),
            (_, None, Some(kept)) if is_same_image(&kept.manifest, &release.manifest) => Keeps::AsItIs,
            (_, None, Some(_)) => Keeps::More,
            (_, None, None) => Keeps::Nothing,
        };
        // It makes way unread, and memory is too small for a third index.
        let kept = kept.filter(|_| !matches!(keeps, Keeps::Anew(_)));
        Self { kept, keeps, is_clear, image_bytes, installed_bytes }
    }

    /// Chunks that a plan may take from what is kept: not what is about to be written over.
    pub(super) fn chunks(&self) -> Option<&KeptChunks> {
        let stays = self.is_clear && !matches!(self.keeps, Keeps::Anew(_));
        self.kept.as_ref().filter(|_| stays).map(|kept| &kept.chunks)
    }

    /// Room that it takes to keep what `change` destroys, by estimate.
    pub(super) fn room(&self, job: &RecoveryJob<'_>, change: Change<'_>) -> UndoRoom {
        let keeping = self.survey(job, change, &Done::default()).filter(|keeping| !keeping.is_empty());
        keeping.map(|keeping| keeping.room).unwrap_or_default()
    }

    /// Keeps what the change destroys, or makes sure that nothing claims to be kept. What goes wrong costs the undo and
    /// not the update.
    ///
    /// What the partition has lost of that release is fetched, as far as the source of the job has it.
    pub(super) fn carry_out(&self, job: &RecoveryJob<'_>, change: Option<Change<'_>>) {
        let is_given_up = job.policy.keep == Keep::Nothing;
        let keeping = change.and_then(|change| self.survey(job, change, &Done::default()));
        match (&self.keeps, keeping) {
            (_, Some(keeping)) if keeping.is_empty() => {}
            (_, Some(keeping)) => self.keep(job, &keeping, change.map(|change| change.index)),
            (_, None) if change.is_none() && !is_given_up => {}
            (Keeps::AsItIs, None) if self.is_clear || self.kept.is_none() => {}
            (_, None) => self.forget(job),
        }
    }

    fn forget(&self, job: &RecoveryJob<'_>) {
        if self.kept.is_some() {
            job.journal.warn("what was kept for an undo is given up");
        }
        if let Err(error) = undo::forget(job.resources.target, self.image_bytes) {
            let name = job.resources.target.name();
            job.journal.warn(&format!("what was kept for an undo on {name} cannot be removed: {error}"));
        }
    }

    fn keep(&self, job: &RecoveryJob<'_>, keeping: &Keeping<'_>, offered: Option<&Index>) {
        let Some(Manifest { version, .. }) = self.manifest() else { return };
        let sentence = format!("keep what an undo to {version} needs");
        let total = Bytes::of_disk(keeping.read_bytes());
        let kept = job.journal.infallible_phase(Phase::Plan, &sentence, || {
            let source = job.resources.brief_source;
            let network = ChunkSource { source, offered, limit_bytes: MAX_FETCHED_BYTES };
            job.journal.with_progress(total, |done| keeping.carry_out(done, Some(network)))
        });
        match kept {
            Ok(kept) if kept.missing.is_empty() => {
                let (added, all) = (bytes(kept.added_bytes), bytes(kept.all_bytes));
                job.journal.note(&format!("{version} can be gone back to: {added} more are kept for it, {all} in all"));
            }
            Ok(kept) => job.journal.warn(&format!(
                "{} chunks of {version} are damaged, and no source has them now: an undo to it needs a network for them; \
                 in its image they are at {}",
                kept.missing.len(),
                ranges_for_people(&kept.missing)
            )),
            Err(error) => job.journal.warn(&format!("going on without an undo to {version}: {}", chain(&error))),
        }
    }

    fn manifest(&self) -> Option<&Manifest> {
        match &self.keeps {
            Keeps::Anew(installed) => Some(&installed.manifest),
            _ => self.kept.as_ref().map(|kept| &kept.manifest),
        }
    }

    /// Finds out what has to be kept, if anything is to be.
    fn survey<'a>(&'a self, job: &RecoveryJob<'a>, change: Change<'_>, done: &Done) -> Option<Keeping<'a>> {
        let (release, same) = match (&self.keeps, &self.kept) {
            (Keeps::Anew(installed), _) => {
                let IndexedRelease { signed, index, index_object, .. } = &**installed;
                (ReleaseToKeep { signed, index, index_object }, None)
            }
            (Keeps::More, Some(kept)) => {
                let Kept { signed, index, index_object, .. } = kept;
                (ReleaseToKeep { signed, index, index_object }, Some(kept))
            }
            _ => return None,
        };
        let installed_bytes = self.installed_bytes;
        Some(Keeping::survey(job.resources.target, release, same, installed_bytes, change, done))
    }
}

/// Whether two releases have the same system image.
fn is_same_image(one: &Manifest, other: &Manifest) -> bool {
    match (one.image(SYSTEM_IMAGE), other.image(SYSTEM_IMAGE)) {
        (Ok(one), Ok(other)) => one.index == other.index,
        _ => false,
    }
}

/// Reads what is kept. What cannot be used is no reason to fail.
fn read(job: &RecoveryJob<'_>) -> Option<Kept> {
    match Kept::read(job.resources.target, job.resources.keys) {
        Ok(kept) => Some(kept),
        Err(UndoObstacle::Nothing | UndoObstacle::NoRoom(_) | UndoObstacle::NotKept) => None,
        Err(error) => {
            job.journal.warn(&chain(&error));
            None
        }
    }
}
