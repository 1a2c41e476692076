//! What a release brings along for blank disks: boot code, recovery, and file systems to begin with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::provision::kit::names;

use crate::disk::environment_without_system;
use crate::filesystem;
use crate::grub::Images;
use crate::initramfs::Recovery;
use crate::paths::Paths;
use crate::step::step;

const MIB: u64 = 1024 * 1024;

/// Sizes of the templates, bytes. Layouts may have larger partitions: data grows to its own when the system first starts,
/// the others have room enough.
const ESP_BYTES: u64 = 48 * MIB;
const STATE_BYTES: u64 = 48 * MIB;
const RECOVERY_BYTES: u64 = 96 * MIB;
const DATA_BYTES: u64 = 64 * MIB;

/// Identities that every new disk replaces by its own, so that the same templates are the same bytes.
const UUID: &str = "7265666c-6173-4000-8000-";

/// The files, as a release lists them; what has to be made is made below `out`.
///
/// # Errors
/// When a tool is missing or fails.
pub fn files(paths: &Paths, grub: &Images, recovery: &Recovery, out: &Path) -> Result<Vec<(String, PathBuf)>> {
    make_templates(paths, grub, out)?;
    let built = [
        (names::BOOT_IMAGE, &grub.boot),
        (names::CORE_GPT, &grub.core),
        (names::CORE_MBR, &grub.core_mbr),
        (names::LOADER, &grub.loader),
    ];
    let made = [names::ESP_512, names::ESP_4096, names::STATE, names::RECOVERY, names::DATA];
    let built = built.into_iter().map(|(name, path)| (name.to_owned(), path.clone()));
    let recovery = crate::disk::recovery_files(grub, recovery);
    Ok(built.chain(recovery).chain(made.into_iter().map(|name| (name.to_owned(), out.join(name)))).collect())
}

/// Makes the templates, below `out`.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make_templates(paths: &Paths, grub: &Images, out: &Path) -> Result<()> {
    fs::create_dir_all(paths.work())?;
    let scratch = tempfile::Builder::new().prefix("kit").tempdir_in(paths.work())?;
    fs::create_dir_all(out.join("templates"))?;
    let image = scratch.path().join("image");
    let finish = |name: &str| {
        compress(&image, &out.join(name))?;
        fs::remove_file(&image).context("remove an image")
    };
    // Nothing else draws lots: the seed of directories, the UUID.
    let identity = |digit: char| {
        let uuid = format!("{UUID}{}", digit.to_string().repeat(12));
        [String::from("-U"), uuid.clone(), String::from("-E"), format!("hash_seed={uuid}")]
    };
    step("make the file systems of blank disks", || {
        for (name, block_bytes) in [(names::ESP_512, 512), (names::ESP_4096, 4096)] {
            filesystem::esp(grub, ESP_BYTES, block_bytes, &image)?;
            finish(name)?;
        }
        let arguments = identity('1');
        let more: Vec<&str> = arguments.iter().map(String::as_str).collect();
        filesystem::state(&environment_without_system(), STATE_BYTES, scratch.path(), &more, &image)?;
        finish(names::STATE)?;
        let arguments = identity('2');
        let more: Vec<&str> = arguments.iter().map(String::as_str).collect();
        filesystem::ext4("recovery", RECOVERY_BYTES, None, &more, &image)?;
        finish(names::RECOVERY)?;
        // The journal does not grow with it.
        let arguments = identity('3');
        let more: Vec<&str> = arguments.iter().map(String::as_str).chain(["-J", "size=16"]).collect();
        filesystem::ext4("data", DATA_BYTES, None, &more, &image)?;
        finish(names::DATA)
    })
}

/// One zstd frame that says how large its content is.
fn compress(image: &Path, out: &Path) -> Result<()> {
    let mut content = File::open(image)?;
    let mut encoder = zstd::stream::write::Encoder::new(File::create(out)?, 9)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(content.metadata()?.len()))?;
    std::io::copy(&mut content, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}
