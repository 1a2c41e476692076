//! The record of what is installed on a system: the signed manifest, the chunk index, and, where there are two systems,
//! whether it was good.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{IndexedRelease, InstalledRecord, MAX_INDEX_BYTES, RecordError, Release, StatePartition};
use super::{make_directory, replace, replace_durably};
use crate::boot::systems::SystemNumber;
use crate::jobs::floor::ReleaseId;
use crate::release::digest::Digest;
use crate::release::index::Index;
use crate::release::manifest::{self, Authentic, Manifest, SYSTEM_IMAGE, TrustedKeys};
use crate::sys::files;

/// Directory of the record of what is installed, and its files.
pub(super) const FIRST: RecordPaths = RecordPaths {
    directory: "installed",
    manifest: "installed/manifest.json",
    signature: "installed/manifest.json.minisig",
    index: "installed/system.idx",
    good: "installed/good",
};
/// The same of the second system of a robot with two.
pub(super) const SECOND: RecordPaths = RecordPaths {
    directory: "installed2",
    manifest: "installed2/manifest.json",
    signature: "installed2/manifest.json.minisig",
    index: "installed2/system.idx",
    good: "installed2/good",
};
/// Size of the note that a system was good, bytes: a digest in hexadecimal digits.
pub(super) const MAX_GOOD_BYTES: u64 = 64;

/// Paths of the record of one system.
pub(super) struct RecordPaths {
    pub(super) directory: &'static str,
    pub(super) manifest: &'static str,
    pub(super) signature: &'static str,
    pub(super) index: &'static str,
    /// Digest of the manifest that called itself good; only where there are two systems.
    pub(super) good: &'static str,
}

impl StatePartition {
    pub(super) fn paths(&self) -> &'static RecordPaths {
        match self.system {
            SystemNumber::First => &FIRST,
            SystemNumber::Second => &SECOND,
        }
    }

    /// Reads the record of the installed release, if there is one that counts.
    #[must_use]
    pub fn record(&self, keys: &TrustedKeys) -> Option<InstalledRecord> {
        self.read_record(keys).ok().flatten()
    }

    /// Reads the record of the installed release; `None` where nothing is recorded.
    ///
    /// The record was verified before it was written. It is authenticated again, because a foreign or damaged state
    /// partition must not pin a robot to a serial that never existed.
    ///
    /// # Errors
    /// [`RecordError`]. A recovery goes on without the record: it costs a comparison and the serial floor.
    pub fn read_record(&self, keys: &TrustedKeys) -> Result<Option<InstalledRecord>, RecordError> {
        let read = |path, limit_bytes| match files::read_below(&self.root, Path::new(path), limit_bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some).map_err(|source| RecordError::File { path, source }),
        };
        let paths = self.paths();
        let (bytes, signature) =
            (read(paths.manifest, manifest::MAX_SIZE_BYTES)?, read(paths.signature, manifest::MAX_SIGNATURE_BYTES)?);
        let Some((bytes, signature)) = bytes.zip(signature) else { return Ok(None) };
        let signed = keys.authenticate(bytes, &String::from_utf8_lossy(&signature))?;
        let manifest = Manifest::parse_recorded(&signed)?;
        Ok(Some(InstalledRecord(Release { signed, manifest })))
    }

    /// Completes a record with its index, unless the index is missing, damaged or that of another release.
    #[must_use]
    pub fn index_of(&self, record: &InstalledRecord) -> Option<IndexedRelease> {
        let index_object = self.index_object(record).ok()?;
        let Release { signed, manifest } = record.release();
        let index = Index::from_object(&index_object).ok()?;
        Some(IndexedRelease { index, index_object, signed, manifest, survey: RefCell::default() })
    }

    /// Reads the object of the index that belongs to a record.
    ///
    /// # Errors
    /// The file system's, or the file holds something else.
    pub(in crate::jobs) fn index_object(&self, record: &InstalledRecord) -> io::Result<Vec<u8>> {
        let expected = record.manifest().image(SYSTEM_IMAGE).map_err(io::Error::other)?.index;
        let limit_bytes = expected.size_bytes.min(MAX_INDEX_BYTES);
        let path = self.paths().index;
        let object = files::read_below(&self.root, Path::new(path), limit_bytes)?;
        if Digest::of(&object) == expected.blake3 {
            return Ok(object);
        }
        Err(io::Error::other(format!("{path} on the state partition is not the index of the installed release")))
    }

    /// Reads the installed release, if its record is whole.
    #[must_use]
    pub fn installed(&self, keys: &TrustedKeys) -> Option<IndexedRelease> {
        self.index_of(&self.record(keys)?)
    }

    /// Replaces the record. Each file is replaced whole; a cut between them leaves a record whose index does not fit
    /// its manifest, which counts as none. On a full partition the logs make room.
    ///
    /// # Errors
    /// The file system's. The record then counts as none, and the serial floor stays where it was.
    pub fn record_installed(&self, signed: &Authentic, index_object: &[u8]) -> io::Result<()> {
        let paths = self.paths();
        let [directory, index] = [paths.directory, paths.index].map(|path| self.root.join(path));
        // What is recorded already is not put at risk by a partition that is full or fails.
        let has = |path: &str, content: &[u8]| {
            let held = files::read_below(&self.root, Path::new(path), content.len() as u64);
            held.is_ok_and(|held| held == content)
        };
        let signature = signed.signature().as_bytes();
        if has(paths.manifest, signed.bytes()) && has(paths.signature, signature) && has(paths.index, index_object) {
            return Ok(());
        }
        let record = || {
            make_directory(&directory)?;
            replace(&index, index_object)?;
            replace(&self.root.join(paths.signature), signature)?;
            replace(&self.root.join(paths.manifest), signed.bytes())?;
            File::open(&directory)?.sync_all()
        };
        let Err(error) = record() else { return Ok(()) };
        // An index of what was there before would call the new system damaged.
        let _ = fs::remove_file(&index);
        if error.kind() != io::ErrorKind::StorageFull {
            return Err(error);
        }
        self.make_room();
        record().inspect_err(|_| {
            let _ = fs::remove_file(&index);
        })
    }

    /// Removes the record of this system before it is overwritten, and returns when that is on the medium: nothing
    /// leads to what is half written.
    ///
    /// # Errors
    /// The file system's. The system must not be written.
    pub(in crate::jobs) fn forget_installed(&self) -> io::Result<()> {
        let paths = self.paths();
        for path in [paths.good, paths.manifest, paths.signature, paths.index] {
            files::removed_or_gone(fs::remove_file(self.root.join(path)))?;
        }
        match File::open(self.root.join(paths.directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            directory => directory?.sync_all(),
        }
    }

    /// Notes that the release on this system called itself good. Writes nothing where that is known.
    ///
    /// # Errors
    /// The file system's.
    pub fn note_good_system(&self, record: &InstalledRecord) -> io::Result<()> {
        if self.is_good_system(record) {
            return Ok(());
        }
        replace_durably(&self.root.join(self.paths().good), record.digest().to_string().as_bytes())
    }

    /// Identity of the release that the record names, if it has the serial of `like`. The signature is not checked:
    /// this chooses between two records, which are judged later.
    pub(in crate::jobs) fn recorded_id(&self, like: Option<ReleaseId>) -> Option<ReleaseId> {
        let bytes = files::read_below(&self.root, Path::new(self.paths().manifest), manifest::MAX_SIZE_BYTES).ok()?;
        Some(ReleaseId::new(like?.serial, &bytes))
    }

    /// Number of the system whose record this reads and writes.
    #[must_use]
    pub fn system(&self) -> SystemNumber {
        self.system
    }

    /// Whether the release on this system ever called itself good.
    #[must_use]
    pub fn is_good_system(&self, record: &InstalledRecord) -> bool {
        let noted = files::read_below(&self.root, Path::new(self.paths().good), MAX_GOOD_BYTES).unwrap_or_default();
        noted == record.digest().to_string().as_bytes()
    }
}
