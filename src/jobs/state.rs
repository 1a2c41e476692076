//! The state partition: the boot environment, what is installed, and the event log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::boot::env::BootEnv;
use crate::release::index::Index;
use crate::release::manifest::{Authentic, Manifest, ManifestError, TrustedKeys};

/// The event log is begun anew beyond this size; the one before is kept. Two of them take little of the 64 MiB.
const MAX_EVENTS_BYTES: u64 = 1024 * 1024;

/// The mounted state partition.
#[derive(Debug, Clone)]
pub struct StatePartition {
    root: PathBuf,
}

/// A release that was installed and verified on this machine.
#[derive(Debug)]
pub struct InstalledRelease {
    /// The signed bytes.
    pub signed: Authentic,
    /// What they say.
    pub manifest: Manifest,
    /// Index of the system image.
    pub index: Index,
    /// The object it was read from, to be recorded as it is: its digest is in the manifest.
    pub index_object: Vec<u8>,
}

impl StatePartition {
    /// The partition mounted at `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The boot environment.
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

    /// The serial and version last installed, from the record alone: the serial floor needs no index.
    ///
    /// The record was verified before it was written. It is authenticated again, because a foreign or damaged state
    /// partition must not pin a robot to a serial that never existed.
    #[must_use]
    pub fn installed_manifest(&self, keys: &TrustedKeys) -> Option<(Authentic, Manifest)> {
        let directory = self.root.join("installed");
        let bytes = fs::read(directory.join("manifest.json")).ok()?;
        let signature = fs::read_to_string(directory.join("manifest.json.minisig")).ok()?;
        let signed = keys.authenticate(bytes, &signature).ok()?;
        let manifest: Result<_, ManifestError> = Manifest::parse(&signed);
        Some((signed, manifest.ok()?))
    }

    /// The release last installed, if its record is whole.
    #[must_use]
    pub fn installed(&self, keys: &TrustedKeys) -> Option<InstalledRelease> {
        let (signed, manifest) = self.installed_manifest(keys)?;
        let object = fs::read(self.root.join("installed/system.idx")).ok()?;
        let named = manifest.image(crate::release::manifest::SYSTEM_IMAGE).ok()?.index;
        if crate::release::digest::Digest::of(&object) != named.blake3 {
            return None;
        }
        Some(InstalledRelease { index: Index::from_object(&object).ok()?, index_object: object, signed, manifest })
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

    /// Gives up what is only nice to have. Best effort: what follows says whether it was enough.
    fn make_room(&self) {
        for name in ["system.idx.new", "manifest.json.new", "manifest.json.minisig.new"] {
            let _ = fs::remove_file(self.root.join("installed").join(name));
        }
        let _ = fs::remove_file(self.root.join("events.1.jsonl"));
        // Shortened, not removed: somebody has it open, and would go on filling a file without a name.
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
