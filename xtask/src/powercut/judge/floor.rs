//! The floor on the recovery partition in a state that a cut left: it must not fall.

use std::collections::HashMap;

use anyhow::Result;
use reflash::jobs::floor::{self, FloorRecord};

use crate::powercut::disk::{BLOCK_BYTES, Region};
use crate::powercut::scratch::Scratch;
use crate::size::to_range;

/// Floors on recovery partitions that were read before, by the fingerprint of the partition.
#[derive(Default)]
pub struct KnownFloors(HashMap<u64, u64>);

impl KnownFloors {
    /// The floor in the blocks of the recovery partition.
    ///
    /// # Errors
    /// Fails when the file system cannot be looked at.
    pub fn of(&mut self, recovery: &Region, scratch: &mut Scratch) -> Result<u64> {
        if let Some(known) = self.0.get(&recovery.fingerprint) {
            return Ok(*known);
        }
        scratch.follow(recovery)?;
        let ranges = crate::grub::file_ranges(&scratch.file, &format!("/{}", floor::FILE))?;
        let content: Vec<u8> = ranges
            .into_iter()
            .flatten()
            .filter_map(|range| recovery.content.get(to_range(&range)))
            .flatten()
            .copied()
            .collect();
        let copies = content.chunks(BLOCK_BYTES).filter_map(FloorRecord::decode);
        let serial = copies.map(|copy| copy.serial).max().unwrap_or(0);
        self.0.insert(recovery.fingerprint, serial);
        Ok(serial)
    }
}
