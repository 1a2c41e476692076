//! The state partition: the boot environment, the record of the installed release, the event log and the black box.

pub mod device;
mod installed;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::boot::env::BootEnv;
use crate::boot::systems::SystemNumber;
use crate::flash::survey::Survey;
use crate::jobs::floor::{GoodRelease, ReleaseId};
use crate::release::digest::Digest;
use crate::release::index::Index;
use crate::release::manifest::{Authentic, Manifest, ManifestError, SYSTEM_IMAGE};
use crate::sys::files;

/// Size beyond which the event log is begun anew; the one before is kept. Two of them take little of the 64 MiB.
const MAX_EVENTS_BYTES: u64 = 1024 * 1024;
/// Size of the largest index that is read, bytes: four times that of one with the most chunks.
const MAX_INDEX_BYTES: u64 = 64 * 1024 * 1024;

/// Digests of the files of the recovery slots.
const SLOTS: &str = "slots.json";
/// Size of the largest list of them that is read, bytes.
const MAX_SLOTS_BYTES: u64 = 64 * 1024;
/// Note on a pause.
const PAUSE: &str = "pause";
/// Size of the largest one that is read, bytes.
const MAX_PAUSE_BYTES: u64 = 128;
/// Copy of what the recovery partition has once.
const SITE: &str = "site.json";
/// Size of the largest one that is read, bytes: a configuration of 4 MiB, whose text may be escaped, and little more.
const MAX_SITE_BYTES: u64 = 8 * 1024 * 1024;

/// The mounted state partition. On a robot with two systems it keeps a record of each; one value reads and writes the
/// record of one of them.
#[derive(Debug, Clone)]
pub struct StatePartition {
    root: PathBuf,
    system: SystemNumber,
}

/// A release whose manifest a trusted key signed.
#[derive(Debug, Clone)]
pub struct Release {
    /// The signed bytes of the manifest.
    pub signed: Authentic,
    /// Content of the manifest.
    pub manifest: Manifest,
}

impl Release {
    /// Identity of the release.
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        ReleaseId::new(self.manifest.serial, self.signed.bytes())
    }
}

/// A release with the chunk index of its system image: all that a partition is compared with.
#[derive(Debug)]
pub struct IndexedRelease {
    /// The signed bytes of the manifest.
    pub signed: Authentic,
    /// Content of the manifest.
    pub manifest: Manifest,
    /// Chunk index of the system image.
    pub index: Index,
    /// The object that the index was read from. It is recorded as it is, since its digest is in the manifest.
    pub index_object: Vec<u8>,
    /// The content of the partition that the index was put together with: it need not be read once more for the plan.
    pub survey: RefCell<Option<Box<Survey>>>,
}

impl IndexedRelease {
    /// Identity of the release.
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        ReleaseId::new(self.manifest.serial, self.signed.bytes())
    }

    /// The release without its index.
    #[must_use]
    pub fn release(&self) -> Release {
        Release { signed: self.signed.clone(), manifest: self.manifest.clone() }
    }
}

/// Reason for which the record of what is installed does not count.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file of the record is not what was written there, or cannot be read.
    #[error("{path} on the state partition cannot be used; the next recovery from a network writes it anew")]
    File {
        /// Path of the file on the partition.
        path: &'static str,
        /// Error of the system call, or what is there instead, with its size.
        source: io::Error,
    },
    /// No key of today signed the record, or it cannot be understood.
    #[error(
        "installed/manifest.json on the state partition cannot be used; the next recovery from a network writes it anew"
    )]
    Manifest(#[from] ManifestError),
}

/// The record of the release that was last installed and verified on this machine. Its signature was checked when it
/// was read, so it is read once and handed on.
///
/// The index that belongs to it has up to 15 MB: it is read when it is needed ([`StatePartition::index_of`]), and found
/// by the digest in the signed manifest.
#[derive(Debug)]
pub struct InstalledRecord(Release);

impl InstalledRecord {
    /// Manifest of the installed release.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The signed manifest of the installed release.
    pub(super) fn signed(&self) -> &Authentic {
        &self.0.signed
    }

    /// Identity of the installed release.
    #[must_use]
    pub fn id(&self) -> ReleaseId {
        self.0.id()
    }

    /// The installed release as it is noted when it calls itself good.
    #[must_use]
    pub fn as_good(&self) -> Option<GoodRelease> {
        let image = self.manifest().image(SYSTEM_IMAGE).ok()?;
        Some(GoodRelease::new(self.id(), &image.content_id()))
    }

    fn digest(&self) -> Digest {
        Digest::of(self.0.signed.bytes())
    }

    /// The installed release, to be installed again.
    #[must_use]
    pub fn release(&self) -> Release {
        self.0.clone()
    }
}

impl StatePartition {
    /// The state partition that is mounted at `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), system: SystemNumber::First }
    }

    /// Returns the same partition, for the record of this system.
    #[must_use]
    pub fn of_system(&self, system: SystemNumber) -> Self {
        Self { root: self.root.clone(), system }
    }

    /// The boot environment on this partition.
    #[must_use]
    pub fn boot_env(&self) -> BootEnv {
        BootEnv::new(&self.root.join("grubenv"))
    }

    /// Path of the event log.
    #[must_use]
    pub fn events_path(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// Path of the black box.
    #[must_use]
    pub fn blackbox_path(&self) -> PathBuf {
        self.root.join("blackbox")
    }

    /// Reads the digests that the files of the recovery slots had; empty where there are none.
    #[must_use]
    pub(crate) fn slot_digests(&self) -> BTreeMap<String, Vec<Digest>> {
        let text = files::read_below(&self.root, Path::new(SLOTS), MAX_SLOTS_BYTES).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps the digests of the files of the recovery slots.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn keep_slot_digests(&self, digests: &BTreeMap<String, Vec<Digest>>) -> io::Result<()> {
        replace(&self.root.join(SLOTS), &serde_json::to_vec(digests)?)
    }

    /// Notes that a slot is going to be written: what a cut leaves there is not taken for an older recovery.
    pub(crate) fn forget_slot(&self, name: &str) {
        let mut known = self.slot_digests();
        if known.insert(name.to_owned(), Vec::new()) != Some(Vec::new()) {
            let _ = self.keep_slot_digests(&known);
        }
    }

    /// Reads the note on a pause, if there is one.
    pub(super) fn pause_note(&self) -> Option<Vec<u8>> {
        files::read_below(&self.root, Path::new(PAUSE), MAX_PAUSE_BYTES).ok()
    }

    /// Replaces the note on a pause.
    pub(super) fn note_pause(&self, note: &str) -> io::Result<()> {
        replace(&self.root.join(PAUSE), note.as_bytes())
    }

    /// Removes the note on a pause.
    pub(super) fn forget_pause(&self) -> io::Result<()> {
        files::removed_or_gone(fs::remove_file(self.root.join(PAUSE)))
    }

    /// Reads the copy of what the recovery partition has once.
    pub(super) fn site_copy(&self) -> Option<Vec<u8>> {
        files::read_below(&self.root, Path::new(SITE), MAX_SITE_BYTES).ok()
    }

    /// Replaces the copy of what the recovery partition has once.
    ///
    /// # Errors
    /// The file system's; the copy is as it was.
    pub(super) fn keep_site_copy(&self, content: &[u8]) -> io::Result<()> {
        replace_durably(&self.root.join(SITE), content)
    }

    /// Directory of the robot's own copy of its boot code.
    #[must_use]
    pub fn boot_code_path(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// Opens the event log for appending.
    ///
    /// # Errors
    /// The file system's; the caller goes on without a log.
    pub fn open_events(&self) -> io::Result<File> {
        let path = self.events_path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() > MAX_EVENTS_BYTES) {
            let before = self.root.join("events.1.jsonl");
            fs::rename(&path, &before)
                .or_else(|_| files::put_aside(&before).and_then(|_| fs::rename(&path, &before)))?;
        }
        // At the end wherever that is: `make_room` empties a log that is open.
        files::open_to_append(&path).or_else(|error| match files::is_other_kind(&error) {
            true => files::put_aside(&path).and_then(|_| files::open_to_append(&path)),
            false => Err(error),
        })
    }

    /// Reads the last events, at most `at_most_bytes` of them.
    ///
    /// # Errors
    /// The file system's, or what is there is no file.
    pub fn last_events(&self, at_most_bytes: u64) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&files::read_end(&self.events_path(), at_most_bytes)?).into_owned())
    }

    /// Removes what is only nice to have. Best effort: the next write shows whether it was enough.
    fn make_room(&self) {
        let paths = self.paths();
        for path in [paths.index, paths.manifest, paths.signature] {
            let _ = fs::remove_file(self.root.join(path).with_added_extension("new"));
        }
        let _ = fs::remove_file(self.root.join("events.1.jsonl"));
        // Shortened, not removed: the journal has it open, and would go on filling a file without a name.
        let _ = files::open_to_write(&self.events_path()).and_then(|file| file.set_len(0));
    }
}

/// Makes a directory, unless it is there. Whatever else is there is put aside.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => drop(files::put_aside(path)?),
        Err(_) => {}
    }
    fs::create_dir(path)
}

/// Replaces a file as a whole. A directory in its place is put aside, which a rename would not replace.
pub(in crate::jobs) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    for path in [path, new.as_path()] {
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
            files::put_aside(path)?;
        }
    }
    // A link there would lead the write elsewhere.
    files::removed_or_gone(fs::remove_file(&new))?;
    let mut file = File::create_new(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// Replaces a file as a whole, and returns when its new name is on the medium too.
pub(in crate::jobs) fn replace_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
