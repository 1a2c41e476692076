//! The boot medium the agent was started from: what it brings along, and which disk it was brought to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::SetupError;
use super::inputs::read_if_there;
use super::settle::{POLL, Settling};
use crate::disk::filesystem;
use crate::disk::list::PartitionTable;
use crate::disk::roles::{MBR_ROLES, Role};
use crate::disk::{Partition, Scheme, Transport, Which};
use crate::machine::config::Layer;
use crate::machine::media::{self, MediaId};
use crate::record::journal::Journal;
use crate::sys;

/// Mount point of the medium.
const MOUNTED: &str = "/medium";
/// Time to wait for the medium: optical drives take up to 20 s to recognise a disc, USB drives a few seconds.
const WAIT: Duration = Duration::from_secs(45);

/// The boot medium, mounted.
pub(super) struct BootMedium {
    directory: PathBuf,
}

impl BootMedium {
    /// Finds the medium by its ID and mounts it, read-only as its file system is.
    pub(super) fn open(id: MediaId, journal: &Journal) -> Result<Self, SetupError> {
        let waiting = || journal.note("waiting for the boot medium");
        let node = crate::disk::wait_for_medium(&id, WAIT, waiting).ok_or(SetupError::Medium { id })?;
        sys::mount::Mount::device(&node, "iso9660").read_only().data_only().on(MOUNTED)?;
        journal.note(&format!("started from the boot medium {id} in {}", node.display()));
        Ok(Self { directory: Path::new(MOUNTED).join(media::DIRECTORY) })
    }

    /// Adds what the medium brings. Its configuration counts before the disk's. Its release is used instead of those of
    /// servers, so that no network is needed. Its keys are trusted as those of the disk are.
    pub(super) fn contribute(&self, layer: &mut Layer, keys: &mut Vec<String>) -> Result<(), SetupError> {
        let path = self.directory.join(media::CONFIG);
        if let Some(text) = read_if_there(&path)? {
            let own = Layer::parse(&path.display().to_string(), &text)?;
            *layer = std::mem::take(layer).overridden_by(own);
        }
        self.offer_release(layer);
        keys.push(self.directory.join(media::KEYS).display().to_string());
        Ok(())
    }

    /// Names the release on the medium, if there is one, as the only source.
    pub(super) fn offer_release(&self, layer: &mut Layer) {
        let release = self.directory.join(media::RELEASE);
        if release.is_dir() {
            layer.release.urls = Some(vec![format!("file://{}", release.display())]);
        }
    }

    /// Directory of all that the medium brings.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// PARTUUID of the recovery partition of the only disk that has all partitions of a robot.
///
/// Waits until there is one, and until no other has joined it for some time: of several it is not clear which is meant.
pub(super) fn robot_partuuid(timeout: Duration) -> Result<String, SetupError> {
    let started = Instant::now();
    let mut settling = Settling::new();
    loop {
        let mut found = Vec::new();
        let mut seen = Vec::new();
        let disks = crate::disk::disks(Which::Physical)
            .map_err(|source| SetupError::Read { path: "/sys/class/block".to_owned(), source })?;
        for disk in disks {
            let Ok(Some(layout)) = disk.layout() else {
                seen.push(disk.to_string());
                continue;
            };
            // USB drives with a robot's disk on them exist: they are copies.
            let ours = disk.transport != Transport::Usb || !disk.removable;
            if let Some(recovery) = recovery_partition(&layout).filter(|_| ours) {
                found.push(recovery.entry.partuuid.clone());
                seen.push(format!("{disk}: a robot's"));
            } else {
                seen.push(disk.to_string());
            }
        }
        settling.update(seen.clone());
        match (found.len(), found.pop()) {
            (1, Some(partuuid)) if settling.is_over() => return Ok(partuuid),
            (0, _) if started.elapsed() >= timeout => return Err(SetupError::Robot { found: 0, disks: seen }),
            (found @ 2.., _) => return Err(SetupError::Robot { found, disks: seen }),
            _ => std::thread::sleep(POLL),
        }
    }
}

/// The recovery partition of a disk that has all partitions of a robot.
fn recovery_partition(layout: &PartitionTable) -> Option<&Partition> {
    let whole = MBR_ROLES.iter().all(|role| layout.of_role(*role).is_some());
    // An MBR has no names, and four primaries alone are not a robot's. One of the file systems may be damaged.
    let labels = || MBR_ROLES.into_iter().filter(|role| *role != Role::System && has_label(layout, *role)).count();
    let ours = whole && (layout.scheme == Scheme::Gpt || labels() >= 2);
    layout.of_role(Role::Recovery).filter(|_| ours)
}

/// Whether the partition with this role has a file system of that name, as reflash makes them.
fn has_label(layout: &PartitionTable, role: Role) -> bool {
    let Some(node) = layout.device_of(role) else { return false };
    let mut head = vec![0; filesystem::HEAD_BYTES];
    let read = File::open(node).and_then(|file| file.read_exact_at(&mut head, 0));
    read.is_ok() && filesystem::ext4_label(&head) == Some(role.name())
}
