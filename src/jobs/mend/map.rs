//! Brings the disk map onto a GPT disk, and makes a lost one again: by it GRUB finds the recovery where the first copy
//! of the table is lost.
//!
//! Robots that were provisioned before there was a map get it in this way. An MBR disk gets none: its table lies in the
//! first sector, without which no BIOS starts anything that could read a map.

use super::error::{MendError, write_proven};
use super::table;
use crate::boot::bios::{self, SECTOR_BYTES, Sectors};
use crate::boot::disk_map::{self, DiskMap};
use crate::boot::grubenv;
use crate::disk::Scheme;
use crate::disk::gpt_copies::GptState;
use crate::disk::list::PartitionTable;
use crate::disk::raw::RawDisk;

/// The part in errors.
const PART: &str = "map of the disk for GRUB";
/// Bytes that belong to the map, whatever the blocks of the disk are.
const PLACE_BYTES: u64 = 4096;

/// Makes the disk map that of the table, which must be whole. Nothing is written where anything else lies in its
/// place. Returns whether it was written.
///
/// # Errors
/// [`MendError`]; GRUB reads the map only where it cannot read the table.
pub fn bring(disk: &dyn RawDisk, partitions: &PartitionTable) -> Result<bool, MendError> {
    if partitions.scheme != Scheme::Gpt || table::state(disk) != GptState::Whole || !is_free(disk, partitions) {
        return Ok(false);
    }
    let of_role = |role| partitions.of_role(role).map(|partition| &partition.entry);
    let Some(map) = DiskMap::of(disk.block_bytes(), of_role) else { return Ok(false) };
    let map = map.encode()?;
    let mut block = vec![0; (disk.block_bytes() as usize).max(grubenv::SIZE_BYTES)];
    if disk.read_at(disk_map::OFFSET_BYTES, &mut block).is_err() {
        block.fill(0);
    }
    if block[..map.len()] == map {
        return Ok(false);
    }
    block[..map.len()].copy_from_slice(&map);
    write_proven(disk, PART, disk_map::OFFSET_BYTES, &block)?;
    Ok(true)
}

/// Whether the place of the map is outside every partition, the table, and the boot code in use.
fn is_free(disk: &dyn RawDisk, partitions: &PartitionTable) -> bool {
    let place = disk_map::OFFSET_BYTES..disk_map::OFFSET_BYTES + PLACE_BYTES;
    let block_bytes = u64::from(disk.block_bytes());
    let begins_behind = |lba: u64| lba.checked_mul(block_bytes).is_none_or(|offset| offset >= place.end);
    partitions.partitions.iter().all(|partition| begins_behind(partition.entry.first_lba))
        && table::end_of_primary_bytes(disk).is_some_and(|end| end <= place.start)
        && boot_code(disk).is_none_or(|sectors| {
            let bytes = SECTOR_BYTES as u64;
            sectors.end.saturating_mul(bytes) <= place.start || sectors.start.saturating_mul(bytes) >= place.end
        })
}

/// Sectors of the `core.img` in use: other installers put it right behind the table.
fn boot_code(disk: &dyn RawDisk) -> Option<Sectors> {
    if disk.block_bytes() as usize != SECTOR_BYTES {
        return None;
    }
    let mut first = [0; SECTOR_BYTES];
    disk.read_at(0, &mut first).ok()?;
    bios::core_in_use(&first, &mut |lba, count| {
        let mut content = vec![0; usize::try_from(count.checked_mul(SECTOR_BYTES as u64)?).ok()?];
        disk.read_at(lba.checked_mul(SECTOR_BYTES as u64)?, &mut content).ok().map(|()| content)
    })
}
