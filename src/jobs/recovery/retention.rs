//! What stays within reach of an undo while a release is written.

use std::cell::OnceCell;
use std::io;

use super::job::{Keep, RecoveryJob};
use crate::chain::chain;
use crate::flash::undo::{
    self, Change, ChunkSource, Keeping, Kept, KeptChunks, KeptManifest, KeptSoFar, ReadObject, ReleaseToKeep,
    UndoObstacle, UndoRoom,
};
use crate::jobs::state::{IndexedRelease, InstalledRecord, StatePartition};
use crate::record::event::ranges_for_people;
use crate::record::journal::Phase;
use crate::record::progress::{Bytes, Done, bytes};
use crate::release::index::Index;
use crate::release::manifest::{FrameObjects, Manifest, SYSTEM_IMAGE};

/// The most that is downloaded of the release to go back to, because the partition has lost it: what an update may cost
/// more than its own download, bytes. A partition that has lost more than that needs the network for an undo too.
const MAX_FETCHED_BYTES: u64 = 32 << 20;

/// What is kept on the partition, and what becomes of it.
pub(super) struct Retention<'a> {
    /// The release that is kept, unless another one takes its place.
    kept: Option<Kept>,
    keeps: Keeps<'a>,
    /// Whether the image that is written leaves alone what is kept.
    is_clear: bool,
    /// Size of the image that is written, bytes.
    image_bytes: u64,
    /// Digests of the frames of that image.
    frames: Option<FrameObjects>,
    /// Size of the image that is installed, as far as that is known, bytes.
    installed_bytes: u64,
}

/// What becomes of what is kept.
enum Keeps<'a> {
    /// Nothing: the release is written over itself, and takes nothing away.
    AsItIs,
    /// What is about to be lost of the same release is added.
    More,
    /// The installed release is kept from now on.
    Anew(Installed<'a>),
    /// Nothing stays within reach.
    Nothing,
}

/// The installed release, as it is recorded.
#[derive(Clone)]
struct Installed<'a> {
    state: &'a StatePartition,
    record: &'a InstalledRecord,
    /// Chunk index of its system image. It is read once there is a plan: making one takes as much memory.
    index: OnceCell<Option<Index>>,
}

impl Installed<'_> {
    fn index(&self, job: &RecoveryJob<'_>) -> Option<&Index> {
        let read = || {
            let object = self.state.index_object(self.record).ok()?;
            Index::from_object(&object).ok()
        };
        self.index.get_or_init(|| read().or_else(|| warn_of_no_index(job))).as_ref()
    }
}

impl ReadObject for Installed<'_> {
    fn size_bytes(&self) -> u64 {
        self.record.manifest().image(SYSTEM_IMAGE).map_or(0, |image| image.index.size_bytes)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        self.state.index_object(self.record)
    }
}

fn warn_of_no_index<T>(job: &RecoveryJob<'_>) -> Option<T> {
    job.journal.warn("the record of the installed release has no index: it cannot be kept for an undo");
    None
}

impl<'a> Retention<'a> {
    /// Decides what is kept while `release` is written.
    ///
    /// The manifests decide, and an index is read only when it is of use: there is no memory for three large ones.
    pub(super) fn of(job: &RecoveryJob<'a>, record: Option<&'a InstalledRecord>, release: &IndexedRelease) -> Self {
        let kept = found(job, KeptManifest::read(job.resources.target, job.resources.keys));
        let installed_image = record.and_then(|record| record.manifest().image(SYSTEM_IMAGE).ok());
        let installed_bytes = installed_image.map_or(0, |image| image.size_bytes);
        let installed = record.zip(job.resources.state);
        let (keeps, mut kept) = match (job.policy.keep, installed) {
            (Keep::Nothing, _) => (Keeps::Nothing, complete(job, kept)),
            (Keep::Installed, Some((record, _))) if is_same_image(record.manifest(), &release.manifest) => {
                (Keeps::AsItIs, complete(job, kept))
            }
            (Keep::Installed, Some((record, state))) => {
                keep_installed(job, Installed { state, record, index: OnceCell::new() }, kept, release)
            }
            _ => keep_kept(complete(job, kept), release),
        };
        if let (Keeps::More, Some(kept)) = (&keeps, &mut kept) {
            // The partition may still have what was damaged since it was kept, and is about to lose it.
            let damaged = kept.leave_out_damaged(job.resources.target, None);
            if damaged > 0 {
                job.journal.warn(&format!("{damaged} chunks that are kept for an undo read back wrong"));
            }
        }
        let image_bytes = release.index.image_bytes();
        let is_clear = kept.as_ref().is_some_and(|kept| kept.chunks.lie_behind(image_bytes));
        Self { kept, keeps, is_clear, image_bytes, frames: frames(&release.manifest), installed_bytes }
    }

    /// What a plan may take from what is kept, once nothing more is to be kept. The indexes are given up.
    pub(super) fn into_chunks(self) -> Option<KeptChunks> {
        let stays = self.stays();
        self.kept.filter(|_| stays).map(|kept| kept.chunks)
    }

    fn stays(&self) -> bool {
        self.is_clear && !matches!(self.keeps, Keeps::Anew(_))
    }

    /// Chunks that a plan may take from what is kept: not what is about to be written over.
    pub(super) fn chunks(&self) -> Option<&KeptChunks> {
        self.kept.as_ref().filter(|_| self.stays()).map(|kept| &kept.chunks)
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
        let Some(manifest) = self.manifest() else { return };
        let version = &manifest.version;
        let sentence = format!("keep what an undo to {version} needs");
        let total = Bytes::of_disk(keeping.read_bytes());
        let kept = job.journal.infallible_phase(Phase::Plan, &sentence, || {
            let source = job.resources.brief_source;
            let frames = [self.frames, frames(manifest)];
            let network = ChunkSource { source, offered, frames, limit_bytes: MAX_FETCHED_BYTES };
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
            Keeps::Anew(installed) => Some(installed.record.manifest()),
            _ => self.kept.as_ref().map(|kept| &kept.manifest),
        }
    }

    /// Finds out what has to be kept, if anything is to be.
    fn survey<'b>(&'b self, job: &RecoveryJob<'b>, change: Change<'_>, done: &Done) -> Option<Keeping<'b>> {
        let release = match (&self.keeps, &self.kept) {
            (Keeps::Anew(installed), _) => {
                let (signed, so_far) = (installed.record.signed(), KeptSoFar::Nothing(installed));
                ReleaseToKeep { signed, index: installed.index(job)?, so_far }
            }
            (Keeps::More, Some(kept)) => {
                ReleaseToKeep { signed: &kept.signed, index: &kept.index, so_far: KeptSoFar::Release(kept) }
            }
            _ => return None,
        };
        Some(Keeping::survey(job.resources.target, release, self.installed_bytes, change, done))
    }
}

/// Keeps the installed release, beside or in place of what is kept of one.
fn keep_installed<'a>(
    job: &RecoveryJob<'_>,
    installed: Installed<'a>,
    mut kept: Option<KeptManifest>,
    release: &IndexedRelease,
) -> (Keeps<'a>, Option<Kept>) {
    let is_it = |kept: &mut KeptManifest| kept.signed.bytes() == installed.record.signed().bytes();
    if let Some(kept) = complete(job, kept.take_if(is_it)) {
        return (Keeps::More, Some(kept));
    }
    if installed.read().is_ok() {
        // What is kept makes way unread.
        return (Keeps::Anew(installed), None);
    }
    warn_of_no_index::<()>(job);
    keep_kept(complete(job, kept), release)
}

/// Keeps what is kept.
fn keep_kept<'a>(kept: Option<Kept>, release: &IndexedRelease) -> (Keeps<'a>, Option<Kept>) {
    let keeps = match &kept {
        Some(kept) if is_same_image(&kept.manifest, &release.manifest) => Keeps::AsItIs,
        Some(_) => Keeps::More,
        None => Keeps::Nothing,
    };
    (keeps, kept)
}

/// Digests of the frames of a release's system image.
pub(super) fn frames(manifest: &Manifest) -> Option<FrameObjects> {
    manifest.image(SYSTEM_IMAGE).ok()?.frames
}

/// Whether two releases have the same system image.
fn is_same_image(one: &Manifest, other: &Manifest) -> bool {
    match (one.image(SYSTEM_IMAGE), other.image(SYSTEM_IMAGE)) {
        (Ok(one), Ok(other)) => one.index == other.index,
        _ => false,
    }
}

/// Reads the rest of what is kept.
fn complete(job: &RecoveryJob<'_>, kept: Option<KeptManifest>) -> Option<Kept> {
    kept.and_then(|kept| found(job, kept.complete(job.resources.target)))
}

/// What was read of what is kept. What cannot be used is no reason to fail.
fn found<T>(job: &RecoveryJob<'_>, read: Result<T, UndoObstacle>) -> Option<T> {
    match read {
        Ok(kept) => Some(kept),
        Err(UndoObstacle::Nothing | UndoObstacle::NoRoom(_) | UndoObstacle::NotKept) => None,
        Err(error) => {
            job.journal.warn(&chain(&error));
            None
        }
    }
}
