//! GRUB's BIOS boot code, fitted to where it lies on a disk. Pure: works on bytes.
//!
//! The offsets are those that grub-install patches, from GRUB 2's `grub-core/boot/i386/pc/boot.S`, `diskboot.S` and
//! `include/grub/i386/pc/boot.h`. LBAs here are in sectors of 512 bytes, as the BIOS counts.

use crate::release::fields::{u16_at, u64_at};

/// Size of `boot.img`, bytes: one sector.
pub const SECTOR_BYTES: usize = 512;

/// Offset in `boot.img` of the LBA of `core.img` (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`), u64.
const BOOT_KERNEL_SECTOR: usize = 0x5c;
/// Offset in `boot.img` of two bytes of a jump (`GRUB_BOOT_MACHINE_DRIVE_CHECK`). They are replaced by two `nop`, so
/// that the drive number from the BIOS is used only where it is plausible.
const BOOT_DRIVE_CHECK: usize = 0x66;
/// Bytes of the first sector that belong to the disk: its ID and the MBR's table, up to the signature.
const DISK_OWN: std::ops::Range<usize> = 0x1b8..0x1fe;
/// Code of the first sector, without what is patched.
const BOOT_CODE: std::ops::Range<usize> = 0..0x1b8;
/// Text by which `boot.img` is recognized (`boot.S`, `notification_string` and those after it).
const BOOT_TEXT: &[u8] = b"GRUB \0Geom\0Hard Disk\0Read\0 Error";
/// The most sectors of a `core.img` that is taken for one: the BIOS has no room for more below 640 KiB.
const MAX_CORE_SECTORS: u64 = 1200;
/// Alignment of a second `core.img`, in sectors: that of the blocks that disks write.
const ALIGNMENT_SECTORS: u64 = 8;
/// Offset in `core.img` of the number of sectors from its second one on, u16, beside their LBA.
const CORE_REST_SECTORS: usize = 0x1fc;
/// Offset in `core.img` of the number of sectors of the next entry of the list, u16: 0, since an image is in one piece.
const CORE_NEXT_SECTORS: usize = 0x1f0;
/// Offset in `core.img` of the LBA of its own second sector, u64: the first block list entry, at the end of its first
/// sector.
const CORE_SECOND_SECTOR: usize = 0x1f4;

/// The error for a GRUB image that is damaged or does not fit its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootCodeError {
    /// The file is not a `boot.img`.
    #[error("boot.img has {0} bytes, expected 512 that end in 55 aa")]
    BootImage(usize),
    /// The first sector starts something else than GRUB.
    #[error("the first sector of the disk starts something else than GRUB")]
    Foreign,
    /// There is no room for a second `core.img` beside the one in use.
    #[error(
        "core.img has {image_bytes} bytes, and the {region_bytes} bytes for boot code have no room for it beside the \
         one in use; provision the disk anew to change it"
    )]
    NoSecondPlace {
        /// Size of the image, bytes.
        image_bytes: usize,
        /// Bytes that boot code may take on this disk.
        region_bytes: u64,
    },
    /// The `core.img` is larger than its place.
    #[error("core.img has {image_bytes} bytes and its place {place_bytes}")]
    TooLarge {
        /// Size of the image, bytes.
        image_bytes: usize,
        /// Size of the place, bytes.
        place_bytes: u64,
    },
}

/// Makes the first sector of a disk: GRUB's code, which loads `core.img` from `core_lba`, with the disk's own ID and
/// table.
///
/// # Errors
/// [`BootCodeError::BootImage`] when `boot_image` is not GRUB's.
pub fn first_sector(
    boot_image: &[u8],
    present: &[u8; SECTOR_BYTES],
    core_lba: u64,
) -> Result<[u8; SECTOR_BYTES], BootCodeError> {
    let mut sector: [u8; SECTOR_BYTES] =
        boot_image.try_into().map_err(|_| BootCodeError::BootImage(boot_image.len()))?;
    if sector[510..] != [0x55, 0xaa] {
        return Err(BootCodeError::BootImage(boot_image.len()));
    }
    sector[BOOT_KERNEL_SECTOR..][..8].copy_from_slice(&core_lba.to_le_bytes());
    sector[BOOT_DRIVE_CHECK..][..2].copy_from_slice(&[0x90, 0x90]);
    sector[DISK_OWN].copy_from_slice(&present[DISK_OWN]);
    Ok(sector)
}

/// Fits `core.img` to a place of `place_bytes` that begins at `core_lba`.
///
/// # Errors
/// [`BootCodeError::TooLarge`] with both sizes.
pub fn core_image(core_image: &[u8], core_lba: u64, place_bytes: u64) -> Result<Vec<u8>, BootCodeError> {
    let image_bytes = core_image.len();
    if image_bytes as u64 > place_bytes || image_bytes < SECTOR_BYTES {
        return Err(BootCodeError::TooLarge { image_bytes, place_bytes });
    }
    let mut core = core_image.to_vec();
    core[CORE_SECOND_SECTOR..][..8].copy_from_slice(&(core_lba + 1).to_le_bytes());
    Ok(core)
}

/// Sectors from the first `u64` up to the second one.
pub type Sectors = std::ops::Range<u64>;

/// Reads sectors: first LBA, count. `None` where the disk cannot.
pub type ReadSectors<'a> = dyn FnMut(u64, u64) -> Option<Vec<u8>> + 'a;

/// Boot code as a release has it.
#[derive(Debug, Clone, Copy)]
pub struct BootImages<'a> {
    /// Content of `boot.img`.
    pub boot: &'a [u8],
    /// Content of `core.img`.
    pub core: &'a [u8],
}

/// Writes that bring boot code onto a disk that starts all the while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootCodeSwitch {
    /// First sector and content of `core.img`, to be on the medium before the first sector of the disk is written. It
    /// is not where the one in use lies. `None` where it is there already.
    pub core: Option<(u64, Vec<u8>)>,
    /// Content of the first sector of the disk: the one write that switches.
    pub first_sector: [u8; SECTOR_BYTES],
}

/// Returns the sectors that `core.img` takes, if the first sector is GRUB's and leads to one in one piece.
pub fn core_in_use(first_sector: &[u8; SECTOR_BYTES], read: &mut ReadSectors<'_>) -> Option<Sectors> {
    let lba = u64_at(first_sector, BOOT_KERNEL_SECTOR).filter(|_| is_grub(first_sector))?;
    let core = read(lba, 1)?;
    let rest = u64::from(u16_at(&core, CORE_REST_SECTORS)?);
    let in_one_piece = u64_at(&core, CORE_SECOND_SECTOR)? == lba.checked_add(1)?
        && core.get(CORE_NEXT_SECTORS..)?.starts_with(&[0, 0])
        && (1..MAX_CORE_SECTORS).contains(&rest);
    in_one_piece.then_some(lba..lba.checked_add(1 + rest)?)
}

/// Finds out how these images come onto a disk on which boot code may take the sectors of `region`, so that it starts
/// after a cut at any instant. `None` when they are there, every byte. A first sector that cannot be read is given as
/// zeros.
///
/// # Errors
/// [`BootCodeError`]: the disk starts something else, or has no room for a second `core.img`.
pub fn switch(
    images: BootImages<'_>,
    present: &[u8; SECTOR_BYTES],
    region: &Sectors,
    read: &mut ReadSectors<'_>,
) -> Result<Option<BootCodeSwitch>, BootCodeError> {
    let region_bytes = (region.end - region.start) * SECTOR_BYTES as u64;
    let sectors = (images.core.len() as u64).div_ceil(SECTOR_BYTES as u64);
    let is_blank = present[BOOT_CODE].iter().all(|byte| *byte == present[0]);
    let named = u64_at(present, BOOT_KERNEL_SECTOR).filter(|_| is_grub(present));
    let named = match named {
        Some(lba) if region.contains(&lba) => Some(lba),
        // Only the place of core.img in it is damaged.
        Some(lba) if first_sector(images.boot, present, lba)? == *present => None,
        None if is_blank => None,
        _ => return Err(BootCodeError::Foreign),
    };
    let mut holds = |lba: u64| -> Result<bool, BootCodeError> {
        let wanted = core_at(images.core, lba)?;
        Ok(lba + sectors <= region.end && read(lba, sectors).is_some_and(|found| found == wanted))
    };
    if let Some(lba) = named
        && holds(lba)?
    {
        let first_sector = first_sector(images.boot, present, lba)?;
        return Ok((first_sector != *present).then_some(BootCodeSwitch { core: None, first_sector }));
    }
    let places = [region.start, (region.start + (region.end - region.start) / 2).next_multiple_of(ALIGNMENT_SECTORS)];
    let there = places.into_iter().map(|lba| Ok((lba, holds(lba)?))).collect::<Result<Vec<_>, BootCodeError>>()?;
    let there = there.into_iter().find_map(|(lba, holds)| holds.then_some(lba));
    // Of one whose list of blocks is damaged, the size is not known.
    let in_use = named.map(|lba| core_in_use(present, read).unwrap_or(lba..lba + sectors));
    let is_free = |lba: &u64| {
        let end = lba + sectors;
        end <= region.end && in_use.as_ref().is_none_or(|in_use| end <= in_use.start || *lba >= in_use.end)
    };
    let image_bytes = images.core.len();
    let lba = match there.or_else(|| places.into_iter().find(is_free)) {
        Some(lba) => lba,
        None => return Err(BootCodeError::NoSecondPlace { image_bytes, region_bytes }),
    };
    let core = match there {
        Some(_) => None,
        None => Some((lba, core_at(images.core, lba)?)),
    };
    Ok(Some(BootCodeSwitch { core, first_sector: first_sector(images.boot, present, lba)? }))
}

/// The `core.img` for this place, in whole sectors.
fn core_at(image: &[u8], lba: u64) -> Result<Vec<u8>, BootCodeError> {
    let mut core = core_image(image, lba, u64::MAX)?;
    core.resize(core.len().next_multiple_of(SECTOR_BYTES), 0);
    Ok(core)
}

fn is_grub(first_sector: &[u8; SECTOR_BYTES]) -> bool {
    first_sector[BOOT_CODE].windows(BOOT_TEXT.len()).any(|text| text == BOOT_TEXT)
}

#[cfg(test)]
mod tests;
