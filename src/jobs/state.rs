//! The state partition: the boot environment, the record of the installed release, the event log and the black box.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::boot::env::BootEnv;
use crate::release::digest::Digest;
use crate::release::index::Index;
use crate::release::manifest::{Authentic, Manifest, SYSTEM_IMAGE, TrustedKeys};

/// Size beyond which the event log is begun anew; the one before is kept. Two of them take little of the 64 MiB.
const MAX_EVENTS_BYTES: u64 = 1024 * 1024;

/// The mounted state partition.
#[derive(Debug, Clone)]
pub struct StatePartition {
    root: PathBuf,
}

/// A release whose manifest a trusted key signed.
#[derive(Debug, Clone)]
pub struct Release {
    /// The signed bytes of the manifest.
    pub signed: Authentic,
    /// Content of the manifest.
    pub manifest: Manifest,
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
        Self { root: root.to_owned() }
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

    /// Opens the event log for appending.
    ///
    /// # Errors
    /// The file system's; the caller goes on without a log.
    pub fn open_events(&self) -> io::Result<File> {
        let path = self.events_path();
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_EVENTS_BYTES) {
            fs::rename(&path, self.root.join("events.1.jsonl"))?;
        }
        OpenOptions::new().create(true).append(true).open(path)
    }

    /// Reads the record of the installed release, if there is one.
    ///
    /// The record was verified before it was written. It is authenticated again, because a foreign or damaged state
    /// partition must not pin a robot to a serial that never existed.
    #[must_use]
    pub fn record(&self, keys: &TrustedKeys) -> Option<InstalledRecord> {
        let directory = self.root.join("installed");
        let bytes = fs::read(directory.join("manifest.json")).ok()?;
        let signature = fs::read_to_string(directory.join("manifest.json.minisig")).ok()?;
        let signed = keys.authenticate(bytes, &signature).ok()?;
        let manifest = Manifest::parse(&signed).ok()?;
        Some(InstalledRecord(Release { signed, manifest }))
    }

    /// Completes a record with its index, unless the index is missing, damaged or that of another release.
    #[must_use]
    pub fn index_of(&self, record: &InstalledRecord) -> Option<IndexedRelease> {
        let index_object = fs::read(self.root.join("installed/system.idx")).ok()?;
        let Release { signed, manifest } = record.release();
        if Digest::of(&index_object) != manifest.image(SYSTEM_IMAGE).ok()?.index.blake3 {
            return None;
        }
        Some(IndexedRelease { index: Index::from_object(&index_object).ok()?, index_object, signed, manifest })
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
        let directory = self.root.join("installed");
        let record = || {
            fs::create_dir_all(&directory)?;
            replace(&directory.join("system.idx"), index_object)?;
            replace(&directory.join("manifest.json.minisig"), signed.signature().as_bytes())?;
            replace(&directory.join("manifest.json"), signed.bytes())?;
            File::open(&directory)?.sync_all()
        };
        let Err(error) = record() else { return Ok(()) };
        // An index of what was there before would call the new system damaged.
        let _ = fs::remove_file(directory.join("system.idx"));
        if error.kind() != io::ErrorKind::StorageFull {
            return Err(error);
        }
        self.make_room();
        record().inspect_err(|_| {
            let _ = fs::remove_file(directory.join("system.idx"));
        })
    }

    /// Removes what is only nice to have. Best effort: the next write shows whether it was enough.
    fn make_room(&self) {
        for name in ["system.idx.new", "manifest.json.new", "manifest.json.minisig.new"] {
            let _ = fs::remove_file(self.root.join("installed").join(name));
        }
        let _ = fs::remove_file(self.root.join("events.1.jsonl"));
        // Shortened, not removed: the journal has it open, and would go on filling a file without a name.
        let _ = OpenOptions::new().write(true).open(self.events_path()).and_then(|file| file.set_len(0));
    }
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, path)
}
