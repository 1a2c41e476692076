//! What a release brings along for blank disks: boot code, recovery, and file systems to begin with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use reflash::jobs::provision::bootstrap::names;

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
    let made = [names::ESP_512, names::ESP_4096, names::STATE, names::RECOVERY, names::DATA];
    make_templates(paths, grub, &made, out)?;
    let built = [
        (names::BOOT_IMAGE, &grub.boot),
        (names::CORE_GPT, &grub.core),
        (names::CORE_MBR, &grub.core_mbr),
        (names::LOADER, &grub.loader),
    ];
    let built = built.into_iter().map(|(name, path)| (name.to_owned(), path.clone()));
    let recovery = crate::disk::recovery_files(grub, recovery);
    Ok(built.chain(recovery).chain(made.into_iter().map(|name| (name.to_owned(), out.join(name)))).collect())
}

/// Makes the templates of these names, below `out`.
///
/// # Errors
/// When a tool is missing or fails, or a name is that of no template.
pub fn make_templates(paths: &Paths, grub: &Images, wanted: &[&str], out: &Path) -> Result<()> {
    fs::create_dir_all(paths.work())?;
    let scratch = tempfile::Builder::new().prefix("kit").tempdir_in(paths.work())?;
    fs::create_dir_all(out.join("templates"))?;
    step("make the file systems of blank disks", || {
        for (number, &name) in wanted.iter().enumerate() {
            let image = scratch.path().join(number.to_string());
            make_image(grub, name, scratch.path(), &image)?;
            compress(&image, &out.join(name))?;
        }
        Ok(())
    })
}

fn make_image(grub: &Images, name: &str, scratch: &Path, image: &Path) -> Result<()> {
    // Nothing else draws lots: the UUID, the seed of directories.
    let uuid = format!("{UUID}{}", &blake3::hash(name.as_bytes()).to_hex()[..12]);
    let seed = format!("hash_seed={uuid}");
    let identity = ["-U", &uuid, "-E", &seed];
    match name {
        names::ESP_512 => filesystem::esp(grub, ESP_BYTES, 512, image),
        names::ESP_4096 => filesystem::esp(grub, ESP_BYTES, 4096, image),
        names::STATE => filesystem::state(&environment_without_system(), STATE_BYTES, scratch, &identity, image),
        names::RECOVERY => filesystem::ext4("recovery", RECOVERY_BYTES, None, &identity, image),
        // The journal does not grow with it.
        names::DATA => filesystem::ext4("data", DATA_BYTES, None, &[&identity[..], &["-J", "size=16"]].concat(), image),
        _ => bail!("{name:?} is the name of no template"),
    }
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
