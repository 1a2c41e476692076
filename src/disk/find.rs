//! Finding the one disk that GRUB booted from.

use std::fmt::Write;
use std::io;
use std::time::{Duration, Instant};

use crate::chain::chain;
use crate::disk::list::{Disk, PartitionTable, Which, disks};

/// Interval at which the disks are looked at again while waiting. Reading a handful of tables takes milliseconds.
const POLL: Duration = Duration::from_millis(250);

/// The disk that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Disk that has the partition.
    pub disk: Disk,
    /// Partition table of the disk, with the devices of its partitions.
    pub layout: PartitionTable,
    /// Number of the partition that has the PARTUUID.
    pub number: u32,
}

/// Failure to find exactly one disk with the partition.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No disk has the partition.
    #[error("no disk has a partition with PARTUUID {partuuid}{}", listed("Disks present", .disks))]
    None {
        /// PARTUUID that was looked for.
        partuuid: String,
        /// Every disk, with the error of reading it if there was one.
        disks: Vec<String>,
    },
    /// More than one disk has the partition: a copy of the disk is attached.
    #[error(
        "more than one disk has a partition with PARTUUID {partuuid}, so none is touched; detach all but one{}",
        listed("Candidates", .disks)
    )]
    Several {
        /// PARTUUID that was looked for.
        partuuid: String,
        /// Every disk that has the partition.
        disks: Vec<String>,
    },
    /// Disks cannot be listed.
    #[error("cannot list the disks of this machine")]
    List(#[source] io::Error),
}

/// Makes a list for the end of a message, with each item on a line of its own.
pub(crate) fn listed(title: &str, disks: &[String]) -> String {
    if disks.is_empty() {
        return format!(". {title}: none; is the driver's module in the initramfs?");
    }
    disks.iter().fold(format!(". {title}:"), |mut text, disk| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {disk}");
        text
    })
}

/// Finds the only disk with this partition UUID.
///
/// Disks that cannot be read do not stand in the way; their errors are in the list of [`FindError::None`].
///
/// # Errors
/// [`FindError`], unless exactly one disk has the partition.
pub fn find_disk_by_partuuid(partuuid: &str, which: Which) -> Result<FoundDisk, FindError> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for disk in disks(which).map_err(FindError::List)? {
        match disk.layout() {
            Ok(Some(layout)) => {
                seen.push(format!("{disk}: {}, {} partitions", layout.scheme, layout.partitions.len()));
                if let Some(number) = layout.partuuid(partuuid).map(|partition| partition.entry.number) {
                    found.push(FoundDisk { disk, layout, number });
                }
            }
            Ok(None) => seen.push(format!("{disk}: no partition table")),
            Err(error) => seen.push(format!("{disk}: {}", chain(&error))),
        }
    }
    if found.len() > 1 {
        let disks = found.iter().map(|one| one.disk.to_string()).collect();
        return Err(FindError::Several { partuuid: partuuid.to_owned(), disks });
    }
    found.pop().ok_or_else(|| FindError::None { partuuid: partuuid.to_owned(), disks: seen })
}

/// Finds a disk as [`find_disk_by_partuuid`] does, but waits up to `timeout` for the disk and for the kernel's devices
/// of all its partitions: USB disks take seconds to appear. `on_wait` is called once, when there is something to wait
/// for.
///
/// # Errors
/// [`FindError`], at once when two disks have the partition, otherwise after the time.
pub fn wait_for_disk_by_partuuid(
    partuuid: &str,
    which: Which,
    timeout: Duration,
    on_wait: impl FnOnce(),
) -> Result<FoundDisk, FindError> {
    let deadline = Instant::now() + timeout;
    let mut on_wait = Some(on_wait);
    loop {
        let result = find_disk_by_partuuid(partuuid, which);
        let complete = match &result {
            Ok(found) => found.layout.partitions.iter().all(|partition| partition.node.is_some()),
            Err(FindError::None { .. }) => false,
            Err(_) => true,
        };
        if complete || Instant::now() >= deadline {
            return result;
        }
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        std::thread::sleep(POLL);
    }
}
