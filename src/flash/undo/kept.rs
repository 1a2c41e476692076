//! The release that is kept on a partition, as far as its signature, its digests and today's keys show.

use std::io;

use super::area;
use super::check;
use super::directory::KeptDirectory;
use super::header::{Contents, KeptPart, State};
use super::obstacle::{UndoObstacle, UndoTarget};
use super::source::pack_of;
use crate::flash::plan::{FramePlace, KeptFrames, Plan};
use crate::flash::target::BlockTarget;
use crate::release::digest::Digest;
use crate::release::index::{Index, StoredChunkNo};
use crate::release::manifest::{Authentic, Manifest, ManifestError, SYSTEM_IMAGE, TrustedKeys};

/// A release that is kept, with what is needed to write it.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The signed bytes of the manifest.
    pub(crate) signed: Authentic,
    /// Content of the manifest.
    pub(crate) manifest: Manifest,
    /// Chunk index of the system image.
    pub(crate) index: Index,
    /// The chunks that are kept.
    pub(crate) chunks: KeptChunks,
    pub(super) contents: Contents,
}

/// Chunks that are kept on a partition. Each may be of use for any release that has it.
#[derive(Debug)]
pub(crate) struct KeptChunks {
    pub(super) directory: KeptDirectory,
    low: u64,
}

impl KeptChunks {
    /// Whether an image of so many bytes leaves alone what is kept.
    pub(crate) fn lie_behind(&self, image_bytes: u64) -> bool {
        image_bytes <= self.low
    }

    /// Lets a plan for an image take the chunks that are kept from here; `None` when none of them belongs to it.
    pub(crate) fn offer(&self, index: &Index, target: &dyn BlockTarget) -> Option<KeptFrames> {
        let places: Vec<FramePlace> = self.directory.places(index).collect();
        (!places.is_empty()).then(|| KeptFrames::new(index, pack_of(target), places))
    }
}

/// The signed manifest of a release that is kept. The rest is read by [`complete`](Self::complete), for the index and
/// the directory of a large image take much memory, and are often of no use.
pub(crate) struct KeptManifest {
    /// The signed bytes of the manifest.
    pub(crate) signed: Authentic,
    /// Content of the manifest.
    pub(crate) manifest: Manifest,
    contents: Contents,
}

impl KeptManifest {
    /// Reads the manifest of the release that is kept on a partition.
    pub(crate) fn read(target: &dyn BlockTarget, keys: &TrustedKeys) -> Result<Self, UndoObstacle> {
        let header = area::read_header(target).map_err(UndoObstacle::Read)?;
        let contents = match header.state {
            State::Kept(contents) => contents,
            State::NoRoom(room) => return Err(UndoObstacle::NoRoom(room)),
            State::NotKept => return Err(UndoObstacle::NotKept),
            State::Nothing | State::Later => return Err(UndoObstacle::Nothing),
        };
        let signature = part(target, "signature", &contents.signature)?;
        let content = part(target, "manifest", &contents.manifest)?;
        let signed = keys.authenticate(content, &String::from_utf8_lossy(&signature))?;
        let manifest = Manifest::parse_recorded(&signed)?;
        Ok(Self { signed, manifest, contents })
    }

    /// Reads the index and the directory that belong to it.
    pub(crate) fn complete(self, target: &dyn BlockTarget) -> Result<Kept, UndoObstacle> {
        let Self { signed, manifest, contents } = self;
        let image = manifest.image(SYSTEM_IMAGE)?;
        let unfit = || damaged("chunk index", &contents.index, None);
        let index = {
            let object = part(target, "chunk index", &contents.index)?;
            // The signed digest and not that of the header: nothing on the disk is trusted.
            if Digest::of(&object) != image.index.blake3 {
                return Err(unfit());
            }
            Index::from_object(&object)?
        };
        if index.image_bytes() != image.size_bytes || index.image_bytes() > contents.low {
            return Err(unfit());
        }
        let end = area::end_of(target);
        let directory = KeptDirectory::decode(part(target, "directory", &contents.directory)?, contents.low, end)
            .ok_or_else(|| damaged("directory", &contents.directory, None))?;
        let chunks = KeptChunks { directory, low: contents.low };
        Ok(Kept { signed, manifest, index, chunks, contents })
    }
}

impl Kept {
    /// Reads what is kept on a partition. Nothing of the chunks is read.
    pub(crate) fn read(target: &dyn BlockTarget, keys: &TrustedKeys) -> Result<Self, UndoObstacle> {
        KeptManifest::read(target, keys)?.complete(target)
    }

    /// Reads the object of the index again.
    ///
    /// # Errors
    /// The device's, or it is not what it was.
    pub(crate) fn read_index_object(&self, target: &dyn BlockTarget) -> io::Result<Vec<u8>> {
        let object = area::read_part(target, &self.contents.index)?;
        object.ok_or_else(|| io::Error::other("the chunk index that is kept reads back wrong"))
    }

    /// BLAKE3 of the signed manifest, which identifies the release.
    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(self.signed.bytes())
    }

    /// Bytes that are used to keep the release, headers included.
    pub(crate) fn kept_bytes(&self, target: &dyn BlockTarget) -> u64 {
        target.size_bytes().saturating_sub(self.contents.low)
    }

    /// Checks the frames that a plan for the kept release takes from here, or without one all, and leaves out what is
    /// damaged. Returns the number of those.
    pub(crate) fn leave_out_damaged(&mut self, target: &dyn BlockTarget, plan: Option<&Plan>) -> usize {
        let needed = plan.map(|plan| {
            let local = plan.requests.iter().filter(|request| plan.is_local(request));
            let mut needed: Vec<StoredChunkNo> = local.flat_map(|it| it.stored.clone()).collect();
            needed.sort_unstable();
            needed
        });
        let is_needed =
            |place: &FramePlace| needed.as_ref().is_none_or(|needed| needed.binary_search(&place.stored).is_ok());
        let places = self.chunks.directory.places(&self.index).filter(is_needed);
        let damaged = check::damaged(target, &self.index, places.collect());
        let digests: Vec<Digest> = damaged.iter().map(|stored| *self.index.digest(*stored)).collect();
        self.chunks.directory = self.chunks.directory.without(&digests);
        damaged.len()
    }

    /// Refuses a release that is for another product or hardware. Whatever channel it came from, it ran here.
    pub(crate) fn check_fit(&self, product: &str, hardware: &str) -> Result<(), ManifestError> {
        self.manifest.check_fit(product, hardware, &self.manifest.channel)
    }
}

/// Reads a part of what is kept.
fn part(target: &dyn BlockTarget, what: &str, part: &KeptPart) -> Result<Vec<u8>, UndoObstacle> {
    match area::read_part(target, part) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(damaged(what, part, None)),
        Err(error) => Err(damaged(what, part, Some(&error))),
    }
}

fn damaged(what: &str, part: &KeptPart, error: Option<&io::Error>) -> UndoObstacle {
    let KeptPart { offset, length, .. } = part;
    let why = error.map_or_else(|| "have another digest".to_owned(), |error| format!("cannot be read: {error}"));
    UndoObstacle::Damaged { what: format!("the {length} bytes of its {what} at byte {offset} {why}") }
}

/// Reads what is kept on a partition, and returns the release that an undo would go back to.
///
/// # Errors
/// [`UndoObstacle`] says why no undo is possible, with a network or without.
pub fn possible(target: &dyn BlockTarget, keys: &TrustedKeys) -> Result<UndoTarget, UndoObstacle> {
    let kept = Kept::read(target, keys)?;
    let Manifest { version, serial, .. } = &kept.manifest;
    Ok(UndoTarget {
        version: version.clone(),
        serial: *serial,
        manifest_digest: kept.manifest_digest(),
        image_id: kept.manifest.image(SYSTEM_IMAGE)?.content_id(),
        kept_bytes: kept.kept_bytes(target),
        missing_chunks: kept.contents.missing,
    })
}
