//! Brings GRUB for UEFI onto the EFI system partition, and mends what of that partition is damaged.

use std::io::Read;

use super::error::{MendError, write_proven};
use crate::disk::fat::{self, FatError};
use crate::disk::list::PartitionTable;
use crate::disk::raw::RawDisk;
use crate::disk::roles::Role;
use crate::jobs::mend::pieces::BootPieces;
use crate::release::bootstrap_names as names;
use crate::sys::block::in_use;

/// The part in errors.
const PART: &str = "EFI system partition";
/// Bytes that are compared at once when the partition is made anew.
const STEP_BYTES: usize = 4096;

/// Extent of a repair of the EFI system partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EspMended {
    /// Nothing: firmware finds the file.
    Nothing,
    /// The file has another content, and one write of one sector switched to it.
    File,
    /// Nothing of the file system could be read, and the whole of it was made anew.
    Whole,
}

/// Makes firmware find GRUB of `pieces` on the EFI system partition. Where no file system is left, the partition is
/// made anew from the template of `pieces`.
///
/// # Errors
/// [`MendError`]; firmware finds what it found before.
pub fn bring(disk: &dyn RawDisk, table: &PartitionTable, pieces: &BootPieces) -> Result<EspMended, MendError> {
    let (Some(partition), Some(loader)) = (table.of_role(Role::Esp), pieces.get(names::EFI)) else {
        return Ok(EspMended::Nothing);
    };
    let bytes = u64::from(disk.block_bytes());
    let start = partition.entry.first_lba.saturating_mul(bytes);
    let size_bytes = partition.entry.size_bytes;
    let mut read = |offset: u64, length: u64| {
        let is_within = offset.checked_add(length).is_some_and(|end| end <= size_bytes);
        let mut content = vec![0; usize::try_from(length).ok().filter(|_| is_within)?];
        disk.read_at(start.checked_add(offset)?, &mut content).ok().map(|()| content)
    };
    let planned = fat::replace(loader, &mut read);
    if matches!(&planned, Ok(writes) if writes.is_empty()) {
        return Ok(EspMended::Nothing);
    }
    let is_used = partition.node.as_deref().is_some_and(|node| in_use(node).is_ok_and(|usage| usage.is_some()));
    if is_used {
        return Err(MendError::EspInUse);
    }
    match planned {
        Ok(writes) => {
            // A file system whose sectors are smaller than the blocks of the disk cannot be written in this way.
            let is_whole = |length: u64| length.is_multiple_of(bytes);
            if !writes.iter().all(|(offset, content)| is_whole(*offset) && is_whole(content.len() as u64)) {
                return Err(FatError::Unusable("its sectors are smaller than the blocks of the disk").into());
            }
            for (offset, content) in writes {
                write_proven(disk, PART, start + offset, &content)?;
            }
            Ok(EspMended::File)
        }
        Err(error @ FatError::Unusable(_)) => {
            let template = [names::ESP_512, names::ESP_4096].into_iter().find_map(|name| pieces.get(name));
            let Some(template) = template else { return Err(error.into()) };
            make_anew(disk, start, size_bytes, template)?;
            Ok(EspMended::Whole)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the template, as far as it differs from what is there.
fn make_anew(disk: &dyn RawDisk, start: u64, size_bytes: u64, template: &[u8]) -> Result<(), MendError> {
    let unpack = |source| MendError::Disk { doing: "unpack a template of", part: PART, source };
    let content_bytes = zstd::zstd_safe::get_frame_content_size(template).ok().flatten();
    if content_bytes.is_none_or(|bytes| bytes > size_bytes || bytes % STEP_BYTES as u64 != 0) {
        return Err(FatError::Unusable("the template of the release does not fit the partition").into());
    }
    let mut content = zstd::stream::read::Decoder::new(template).map_err(unpack)?;
    let (mut wanted, mut present) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    for offset in (start..start + content_bytes.unwrap_or_default()).step_by(STEP_BYTES) {
        content.read_exact(&mut wanted).map_err(unpack)?;
        let is_there = disk.read_at(offset, &mut present).is_ok() && present == wanted;
        if !is_there {
            write_proven(disk, PART, offset, &wanted)?;
        }
    }
    Ok(())
}
