//! The recovery partition and its two slots: what a renewal needs of it, the mounted partition, and a directory that
//! stands for it in tests.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::boot::slots::{FILES, Slot};
use crate::disk::list::PartitionTable;
use crate::disk::raw::RawDisk;
use crate::fetch::Source;
use crate::jobs::floor;
use crate::sys::mount::{self, Mount};
use crate::sys::{files, gentle};

/// Storage of the two slots on the recovery partition, as far as renewal needs it.
pub trait SlotStorage: Sync {
    /// Opens a file of a slot as the medium holds it, past what was cached when it was written.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self, slot: Slot, file: &str) -> io::Result<Box<dyn Read>>;

    /// Makes the partition writable and removes the files of a slot, the last one first.
    ///
    /// # Errors
    /// The file system's; some files may be gone.
    fn clear(&self, slot: Slot) -> io::Result<()>;

    /// Writes at an offset of a file, which is made if it is missing. A write at offset 0 empties the file first.
    ///
    /// # Errors
    /// The file system's.
    fn write(&self, slot: Slot, file: &str, offset: u64, content: &[u8]) -> io::Result<()>;

    /// Flushes a file and its name, and returns when both are on the medium.
    ///
    /// # Errors
    /// The file system's.
    fn sync(&self, slot: Slot, file: &str) -> io::Result<()>;

    /// Makes the partition read-only again, and returns when GRUB, which replays no journal, sees what was written.
    /// From then on nothing is read from a cache.
    ///
    /// # Errors
    /// The file system's. GRUB must not be pointed at the slot that was written.
    fn settle(&self) -> io::Result<()>;
}

/// Resources of a renewal.
#[derive(Clone, Copy)]
pub struct Renewal<'a> {
    /// The recovery partition.
    pub medium: &'a dyn SlotStorage,
    /// Source of the files. It must give up by itself: the system that was just verified waits for it.
    pub source: &'a dyn Source,
    /// The slot that GRUB says it started this agent from.
    pub booted: Option<Slot>,
}

/// The disk of a robot, as far as firmware and GRUB read it.
#[derive(Clone, Copy)]
pub struct BootChain<'a> {
    /// The whole disk.
    pub disk: &'a dyn RawDisk,
    /// Partitions of the disk.
    pub table: &'a PartitionTable,
    /// Does the work it is given, knowing at what the process may die.
    pub within: &'a dyn Fn(&mut dyn FnMut()),
}

/// The recovery partition of this machine.
#[derive(Debug, Clone)]
pub struct RecoveryPartition {
    root: PathBuf,
    device: Option<PathBuf>,
}

impl RecoveryPartition {
    /// The partition in `device`, mounted read-only at `root`, as it is except during a renewal.
    #[must_use]
    pub fn mounted(device: &Path, root: &Path) -> Self {
        Self { root: root.to_owned(), device: Some(device.to_owned()) }
    }

    /// A directory in place of the partition, for a test.
    #[must_use]
    pub fn directory(root: &Path) -> Self {
        Self { root: root.to_owned(), device: None }
    }

    fn folder(&self, slot: Slot) -> PathBuf {
        self.root.join(slot.folder())
    }
}

impl SlotStorage for RecoveryPartition {
    fn open(&self, slot: Slot, file: &str) -> io::Result<Box<dyn Read>> {
        let file = files::open_below(&self.root, &Path::new(&slot.folder()).join(file))?;
        // Where another command has the partition mounted too, a renewal does not empty the cache.
        gentle::forget_cached(&file);
        Ok(Box::new(file))
    }

    fn clear(&self, slot: Slot) -> io::Result<()> {
        if self.device.is_some() {
            mount::remount_writable(&self.root).map_err(|error| error.source)?;
            // Robots of before the floor have no file for it. A slot is renewed all the same without it.
            let _ = floor::prepare_recovery(&self.root);
        }
        let folder = self.folder(slot);
        // The folders are made at provisioning; a person may have removed an empty one.
        fs::create_dir_all(&folder)?;
        for file in FILES.iter().rev() {
            files::removed_or_gone(fs::remove_file(folder.join(file)))?;
        }
        File::open(folder)?.sync_all()
    }

    fn write(&self, slot: Slot, file: &str, offset: u64, content: &[u8]) -> io::Result<()> {
        let path = self.folder(slot).join(file);
        let file = OpenOptions::new().write(true).create(true).truncate(offset == 0).open(path)?;
        file.write_all_at(content, offset)
    }

    fn sync(&self, slot: Slot, file: &str) -> io::Result<()> {
        let folder = self.folder(slot);
        File::open(folder.join(file))?.sync_all()?;
        File::open(folder)?.sync_all()
    }

    /// What is made read-only has every block of the journal at its place, also while another command has the partition
    /// mounted. Unmounting forgets every cached one, unless one has.
    fn settle(&self) -> io::Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        mount::remount_read_only(&self.root)
            .and_then(|()| mount::unmount(&self.root))
            .and_then(|()| Mount::device(device, "ext4").read_only().data_only().on_shared(&self.root))
            .map_err(|error| error.source)
    }
}
