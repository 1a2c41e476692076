//! The floor in a state that a cut left: it must not fall.

use anyhow::Result;
use reflash::jobs::floor::{self, FloorRecord};

use super::Judge;
use crate::powercut::disk::{BLOCK_BYTES, DiskState, Region};
use crate::size::to_range;

impl Judge<'_> {
    /// The floor of a disk, from all places on it.
    ///
    /// # Errors
    /// Fails when the disk cannot be looked at.
    pub fn floor_of(&mut self, disk: &DiskState) -> Result<u64> {
        Ok(self.agent(&disk.state)?.floor.max(self.floor_on_recovery(&disk.recovery)?))
    }

    /// The floor in the blocks of the recovery partition.
    pub(super) fn floor_on_recovery(&mut self, recovery: &Region) -> Result<u64> {
        if let Some(known) = self.floors.get(&recovery.fingerprint) {
            return Ok(*known);
        }
        self.recovery_scratch.follow(recovery)?;
        let ranges = crate::grub::file_ranges(&self.recovery_scratch.file, &format!("/{}", floor::FILE))?;
        let content: Vec<u8> = ranges
            .into_iter()
            .flatten()
            .filter_map(|range| recovery.content.get(to_range(&range)))
            .flatten()
            .copied()
            .collect();
        let copies = content.chunks(BLOCK_BYTES).filter_map(FloorRecord::decode);
        let serial = copies.map(|copy| copy.serial).max().unwrap_or(0);
        self.floors.insert(recovery.fingerprint, serial);
        Ok(serial)
    }
}
