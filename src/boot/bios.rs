//! GRUB's BIOS boot code, fitted to where it lies on a disk. Pure: works on bytes.
//!
//! The offsets are those that grub-install patches, from GRUB 2's `grub-core/boot/i386/pc/boot.S`, `diskboot.S` and
//! `include/grub/i386/pc/boot.h`. LBAs here are in sectors of 512 bytes, as the BIOS counts.

/// Size of `boot.img`, bytes: one sector.
pub const SECTOR_BYTES: usize = 512;

/// Offset in `boot.img` of the LBA of `core.img` (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`), u64.
const BOOT_KERNEL_SECTOR: usize = 0x5c;
/// Offset in `boot.img` of two bytes of a jump (`GRUB_BOOT_MACHINE_DRIVE_CHECK`). They are replaced by two `nop`, so
/// that the drive number from the BIOS is used only where it is plausible.
const BOOT_DRIVE_CHECK: usize = 0x66;
/// Bytes of the first sector that belong to the disk: its ID and the MBR's table, up to the signature.
const DISK_OWN: std::ops::Range<usize> = 0x1b8..0x1fe;
/// Offset in `core.img` of the LBA of its own second sector, u64: the first block list entry, at the end of its first
/// sector.
const CORE_SECOND_SECTOR: usize = 0x1f4;

/// The error for a GRUB image that is damaged or does not fit its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootCodeError {
    /// The file is not a `boot.img`.
    #[error("boot.img has {0} bytes, expected 512 that end in 55 aa")]
    BootImage(usize),
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

#[cfg(test)]
mod tests {
    use super::{BootCodeError, core_image, first_sector};

    #[test]
    fn the_disks_own_bytes_stay_and_the_addresses_are_set() {
        let mut boot = [0x11; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let mut disk = [0x22; 512];
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        let sector = first_sector(&boot, &disk, 2048).unwrap();
        assert_eq!(sector[0x5c..0x64], 2048_u64.to_le_bytes());
        assert_eq!(sector[0x66..0x68], [0x90, 0x90]);
        assert!(sector[0x1b8..0x1fe].iter().all(|byte| *byte == 0x22));
        assert!(sector[..0x5c].iter().chain(&sector[0x68..0x1b8]).all(|byte| *byte == 0x11));
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(first_sector(&boot[..500], &disk, 1), Err(BootCodeError::BootImage(500)));
        assert_eq!(first_sector(&[0; 512], &disk, 1), Err(BootCodeError::BootImage(512)));
    }

    #[test]
    fn core_points_at_its_second_sector_and_must_fit() {
        let core = core_image(&[0; 2048], 2048, 1 << 20).unwrap();
        assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert!(core_image(&[0; 2048], 2048, 1024).is_err());
    }
}
