//! Brings boot code onto a disk, and mends what of it is damaged. Robots that were provisioned with other boot code get
//! that of the release in the same way.

use super::error::{MendError, write_proven};
use crate::boot::bios::{self, BootImages, SECTOR_BYTES, Sectors};
use crate::disk::Scheme;
use crate::disk::list::PartitionTable;
use crate::disk::raw::RawDisk;
use crate::disk::roles::Role;
use crate::jobs::mend::pieces::BootPieces;
use crate::release::bootstrap_names as names;

/// First sector of an MBR disk behind the room for boot code: the disk map of GRUB's first script and the provisioning
/// marker follow, then the first partition.
const GAP_END: u64 = 2032;
/// The part in errors.
const CORE: &str = "core.img of GRUB";
const FIRST: &str = "first sector of the disk";

/// Parts of the boot chain that are mended from a copy of the boot code, each with the names of the files of a release
/// that it is made of. The disk has this kind of table, blocks of `block_bytes`, and partitions with these roles.
fn parts(scheme: Scheme, block_bytes: u32, has: impl Fn(Role) -> bool) -> Vec<(&'static str, Vec<&'static str>)> {
    let template = if block_bytes == 4096 { names::ESP_4096 } else { names::ESP_512 };
    let bios = "boot code for BIOS";
    match scheme {
        Scheme::Mbr => vec![(bios, vec![names::BOOT_IMAGE, names::CORE_MBR])],
        Scheme::Gpt => [
            (Role::BiosBoot, bios, vec![names::BOOT_IMAGE, names::CORE_GPT]),
            (Role::Esp, "EFI system partition", vec![names::EFI, template]),
        ]
        .into_iter()
        .filter(|(role, ..)| has(*role))
        .map(|(_, part, names)| (part, names))
        .collect(),
    }
}

/// Names of the files of a release that boot code for a disk is made of.
#[must_use]
pub fn file_names(scheme: Scheme, block_bytes: u32, has: impl Fn(Role) -> bool) -> Vec<&'static str> {
    parts(scheme, block_bytes, has).into_iter().flat_map(|(_, names)| names).collect()
}

/// Names of the files of a release that boot code for this disk is made of.
#[must_use]
pub fn file_names_of(disk: &dyn RawDisk, table: &PartitionTable) -> Vec<&'static str> {
    file_names(table.scheme, disk.block_bytes(), |role| table.of_role(role).is_some())
}

/// Parts of the boot chain that cannot be compared with anything, since `pieces` has no copy of them.
#[must_use]
pub fn unchecked(disk: &dyn RawDisk, table: &PartitionTable, pieces: Option<&BootPieces>) -> Vec<&'static str> {
    let has_copy = |name: &&str| pieces.is_some_and(|pieces| pieces.get(name).is_some());
    // Without the template only an EFI system partition that has lost its file system stays as it is.
    let is_needed = |name: &&&str| ![names::ESP_512, names::ESP_4096].contains(name);
    let parts = parts(table.scheme, disk.block_bytes(), |role| table.of_role(role).is_some());
    parts.into_iter().filter(|(_, names)| !names.iter().filter(is_needed).all(has_copy)).map(|(part, _)| part).collect()
}

/// Makes the BIOS boot code of the disk that of `pieces`. The new `core.img` goes beside the one in use and is read
/// back, and the one write of the first sector switches. Returns whether anything was written.
///
/// # Errors
/// [`MendError`]; the disk starts as before.
pub fn bring_bios(disk: &dyn RawDisk, table: &PartitionTable, pieces: &BootPieces) -> Result<bool, MendError> {
    let core_name = if table.scheme == Scheme::Mbr { names::CORE_MBR } else { names::CORE_GPT };
    let (Some(boot), Some(core)) = (pieces.get(names::BOOT_IMAGE), pieces.get(core_name)) else { return Ok(false) };
    let Some(region) = region(disk, table) else { return Ok(false) };
    let offset = |lba: u64| lba * SECTOR_BYTES as u64;
    let mut present = [0; SECTOR_BYTES];
    if disk.read_at(0, &mut present).is_err() {
        present.fill(0);
    }
    if table.scheme == Scheme::Mbr && present[510..] != [0x55, 0xaa] {
        // The table is lost with it, and there is no second copy.
        return Err(MendError::TableLost);
    }
    let mut read = |lba: u64, count: u64| {
        let mut content = vec![0; usize::try_from(count.checked_mul(SECTOR_BYTES as u64)?).ok()?];
        disk.read_at(lba.checked_mul(SECTOR_BYTES as u64)?, &mut content).ok().map(|()| content)
    };
    let Some(switch) = bios::switch(BootImages { boot, core }, &present, &region, &mut read)? else { return Ok(false) };
    if let Some((lba, core)) = &switch.core {
        write_proven(disk, CORE, offset(*lba), core)?;
    }
    write_proven(disk, FIRST, 0, &switch.first_sector).inspect_err(|_| {
        // Whatever the disk made of it, what was there before is known to start.
        let _ = disk.write_at(0, &present).and_then(|()| disk.flush());
    })?;
    Ok(true)
}

/// Sectors in which `core.img` may lie; `None` on a disk that no BIOS starts.
fn region(disk: &dyn RawDisk, table: &PartitionTable) -> Option<Sectors> {
    if disk.block_bytes() as usize != SECTOR_BYTES {
        return None;
    }
    match table.scheme {
        Scheme::Gpt => {
            let entry = &table.of_role(Role::BiosBoot)?.entry;
            Some(entry.first_lba..entry.first_lba.checked_add(entry.size_bytes / SECTOR_BYTES as u64)?)
        }
        Scheme::Mbr => {
            let first = table.partitions.iter().map(|partition| partition.entry.first_lba).min()?;
            Some(1..first.clamp(1, GAP_END))
        }
    }
}
