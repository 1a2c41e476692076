//! Names of the bootstrap files in the manifest: what a blank disk, or damaged boot code, is made of.

/// The layout of a disk with two systems, as JSON, where the release has one. The manifest has the same layout with one
/// system, for agents that know no other.
pub const TWO_SYSTEMS: &str = "layout-two-systems.json";
/// Boot sector of GRUB for BIOS, `boot.img`.
pub const BOOT_IMAGE: &str = "grub/boot.img";
/// GRUB's `core.img` for GPT disks.
pub const CORE_GPT: &str = "grub/core.img";
/// GRUB's `core.img` for MBR disks.
pub const CORE_MBR: &str = "grub/core-mbr.img";
/// GRUB for UEFI, as it is in the EFI system partition.
pub const EFI: &str = "grub/BOOTX64.EFI";
/// GRUB's loader, the script that finds the script of a slot.
pub const LOADER: &str = "grub/grub.cfg";
/// An EFI system partition for disks with blocks of 512 bytes, as a zstd frame, like all below.
pub const ESP_512: &str = "templates/esp-512.zst";
/// EFI system partition for disks with blocks of 4096 bytes.
pub const ESP_4096: &str = "templates/esp-4096.zst";
/// The state partition.
pub const STATE: &str = "templates/state.ext4.zst";
/// An empty recovery partition.
pub const RECOVERY: &str = "templates/recovery.ext4.zst";
/// An empty data partition; it grows when the system first starts.
pub const DATA: &str = "templates/data.ext4.zst";
