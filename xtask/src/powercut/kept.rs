//! What is kept for an undo, in the states that a cut leaves: the end of the system partition beside its image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow, ensure};
use reflash::chain::chain;
use reflash::fetch::Directory;
use reflash::flash::target::BlockTarget;
use reflash::flash::undo::{self, UndoTarget};
use reflash::jobs::recovery::{self, Identity, Policy, RecoveryJob, Resources};
use reflash::record::journal::Journal;
use reflash::release::manifest::TrustedKeys;

use super::disk::{DiskState, Region};
use super::log::LogEntry;
use crate::demo;
use crate::disk as robot_disk;
use crate::size::to_usize;

/// Bytes at the end of the system partition that are recorded: more than the test's small systems ever keep.
const KEPT_BYTES: u64 = 16 * 1024 * 1024;

/// Reads the end of the system partition of a disk image.
///
/// # Errors
/// Fails when the image cannot be read.
pub fn end_of_system(disk: &Path) -> Result<Region> {
    let range = robot_disk::partition_range(disk, "system")?;
    let start = range.end.saturating_sub(KEPT_BYTES).max(range.start);
    let mut content = vec![0; to_usize(range.end - start)];
    File::open(disk)?.read_exact_at(&mut content, start)?;
    Ok(Region::new(start, content))
}

/// The release, by its serial, that is kept once everything is written. What the robot keeps before its first write
/// must be there in every state after it.
///
/// # Errors
/// Fails when something was written where nothing may be.
pub fn in_the_end(base: &DiskState, entries: &[LogEntry], keys: &TrustedKeys) -> Result<Option<u64>> {
    let mut end = base.clone();
    for entry in entries {
        if let LogEntry::Write { offset, data, .. } = entry {
            end.write(*offset, data)?;
        }
    }
    Ok(SystemPartition::of(&end).leads_back_to(keys))
}

/// Identity of the robot.
pub fn identity() -> Identity {
    Identity { product: demo::PRODUCT.to_owned(), hardware: demo::HARDWARE.to_owned(), channel: "stable".to_owned() }
}

/// The system partition in memory: the image at its beginning and what is kept at its end. Between them are zeros, to
/// which nothing may be written.
pub struct SystemPartition {
    size_bytes: u64,
    parts: Mutex<[(u64, Vec<u8>); 2]>,
}

impl SystemPartition {
    /// The partition of a disk in some state.
    pub fn of(disk: &DiskState) -> Self {
        let offset = disk.kept.start - disk.system.start;
        let parts = [(0, disk.system.content.clone()), (offset, disk.kept.content.clone())];
        Self { size_bytes: offset + disk.kept.content.len() as u64, parts: Mutex::new(parts) }
    }

    /// Whether the partition begins with this image.
    pub fn holds(&self, image: &[u8]) -> bool {
        self.parts()[0].1 == image
    }

    /// The release that an undo would lead back to, by its serial.
    pub fn leads_back_to(&self, keys: &TrustedKeys) -> Option<u64> {
        undo::possible(self, keys).ok().filter(UndoTarget::is_complete).map(|possible| possible.serial)
    }

    /// Takes the update back by the agent's own code, without any source.
    pub fn undo(&self, keys: &TrustedKeys, old: &[u8]) -> Result<()> {
        let (nothing, journal) = (Directory::new("/nonexistent"), Journal::silent());
        let job = RecoveryJob {
            identity: identity(),
            policy: Policy::default(),
            resources: Resources::new(keys, &nothing, self),
            journal: &journal,
        };
        recovery::undo(&job, None).map_err(|error| anyhow!("the update cannot be undone: {}", chain(&error)))?;
        ensure!(self.holds(old), "the undo left another image");
        Ok(())
    }

    fn parts(&self) -> MutexGuard<'_, [(u64, Vec<u8>); 2]> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockTarget for SystemPartition {
    fn name(&self) -> &str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        for (start, content) in &*self.parts() {
            let (from, to) = (offset.max(*start), (offset + buffer.len() as u64).min(start + content.len() as u64));
            if from < to {
                let place = to_usize(from - offset)..to_usize(to - offset);
                buffer[place].copy_from_slice(&content[to_usize(from - start)..to_usize(to - start)]);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> std::io::Result<()> {
        let mut parts = self.parts();
        let is_in = |(start, content): &&mut (u64, Vec<u8>)| {
            offset >= *start && offset + new.len() as u64 <= start + content.len() as u64
        };
        let Some((start, content)) = parts.iter_mut().find(is_in) else {
            return Err(std::io::Error::other(format!("{offset} is neither in the image nor where anything is kept")));
        };
        content[to_usize(offset - *start)..][..new.len()].copy_from_slice(new);
        Ok(())
    }

    fn zero(&self, range: std::ops::Range<u64>) -> std::io::Result<()> {
        self.write_at(range.start, &vec![0; to_usize(range.end - range.start)])
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reflash::flash::target::BlockTarget;

    use super::SystemPartition;
    use crate::powercut::disk::{DiskState, Region};

    #[test]
    fn only_the_image_and_the_end_can_be_written() {
        let region = |start, fill| Region::new(start, vec![fill; 8192]);
        let disk = DiskState {
            state: region(0, 1),
            system: region(8192, 2),
            recovery: region(65536, 3),
            kept: region(40960, 4),
        };
        let partition = SystemPartition::of(&disk);
        assert_eq!(partition.size_bytes(), 40960);
        partition.write_at(4096, &[7; 4096]).unwrap();
        partition.zero(36864..40960).unwrap();
        assert!(partition.write_at(8192, &[7; 4096]).is_err());
        let mut all = vec![9; 40960];
        partition.read_at(0, &mut all).unwrap();
        let found: Vec<u8> = all.chunks(4096).map(|block| block[5]).collect();
        assert_eq!(found, [2, 7, 0, 0, 0, 0, 0, 0, 4, 0]);
    }
}
