//! The bootstrap files of a release, from which a blank disk is made: boot code, recovery, and file systems to begin
//! with.

use std::path::{Path, PathBuf};

use anyhow::Result;
use reflash::jobs::provision::bootstrap::names;

use crate::disk;
use crate::grub::GrubImages;
use crate::initramfs::BuiltRecovery;
use crate::paths::Paths;
use crate::templates;

/// Returns the bootstrap files with the names that they have in a release. The templates are made below `out`, the
/// others exist already.
///
/// # Errors
/// When a tool is missing or fails.
pub fn files(paths: &Paths, grub: &GrubImages, recovery: &BuiltRecovery, out: &Path) -> Result<Vec<(String, PathBuf)>> {
    let made = [names::ESP_512, names::ESP_4096, names::STATE, names::RECOVERY, names::DATA];
    templates::make(paths, grub, &made, out)?;
    let built = [
        (names::BOOT_IMAGE, &grub.boot),
        (names::CORE_GPT, &grub.core),
        (names::CORE_MBR, &grub.core_mbr),
        (names::EFI, &grub.efi),
        (names::LOADER, &grub.loader),
    ];
    let built = built.into_iter().map(|(name, path)| (name.to_owned(), path.clone()));
    let recovery = disk::recovery_files(grub, recovery)?;
    Ok(built.chain(recovery).chain(made.into_iter().map(|name| (name.to_owned(), out.join(name)))).collect())
}
