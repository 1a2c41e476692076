//! The slots on the mounted recovery partition, or in a directory that stands for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::renew::SlotStorage;
use crate::boot::slots::{FILES, Slot};
use crate::sys::mount::{self, Mount};

/// A recovery partition.
#[derive(Debug, Clone)]
pub struct RecoveryPartition {
    root: PathBuf,
    device: Option<PathBuf>,
}

impl RecoveryPartition {
    /// The partition in `device`, mounted at `root` read-only, as it is whenever nobody renews it.
    #[must_use]
    pub fn mounted(device: &Path, root: &Path) -> Self {
        Self { root: root.to_owned(), device: Some(device.to_owned()) }
    }

    /// A directory, for a test.
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
        Ok(Box::new(File::open(self.folder(slot).join(file))?))
    }

    fn clear(&self, slot: Slot) -> io::Result<()> {
        if self.device.is_some() {
            mount::remount_writable(&self.root).map_err(|error| error.source)?;
        }
        let folder = self.folder(slot);
        // The folders are made at provisioning; a person may have removed an empty one.
        fs::create_dir_all(&folder)?;
        for file in FILES.iter().rev() {
            match fs::remove_file(folder.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
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

    /// Unmounting writes every block of the journal to its place, and forgets every cached one; a remount would do only
    /// the first.
    fn settle(&self) -> io::Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        if let Err(error) = mount::unmount(&self.root) {
            let _ = mount::remount_read_only(&self.root);
            return Err(error.source);
        }
        Mount::device(device, "ext4").read_only().on(&self.root).map_err(|error| error.source)
    }
}
