//! Templates: the compressed file systems that a blank disk begins with.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use reflash::jobs::provision::bootstrap::names;
use reflash::release::layout::Role;

use crate::filesystem::{self, environment_without_system};
use crate::grub::GrubImages;
use crate::paths::Paths;
use crate::step::step;

const MIB: u64 = 1024 * 1024;

/// Sizes of the templates, bytes. A layout may have larger partitions: the data file system grows to the size of its
/// partition when the system first starts, the others have room enough.
const ESP_BYTES: u64 = 48 * MIB;
const STATE_BYTES: u64 = 48 * MIB;
const RECOVERY_BYTES: u64 = 96 * MIB;
const DATA_BYTES: u64 = 64 * MIB;

/// Size of the template for a partition of this role, bytes: what such a partition must have at least. 0 where there is
/// none.
#[must_use]
pub fn bytes(role: Role) -> u64 {
    match role {
        Role::Esp => ESP_BYTES,
        Role::State => STATE_BYTES,
        Role::Recovery => RECOVERY_BYTES,
        Role::Data => DATA_BYTES,
        Role::BiosBoot | Role::System | Role::System2 => 0,
    }
}

/// First part of the file systems' UUIDs. Every new disk replaces them by UUIDs of its own; they are fixed here so that
/// the same inputs give the same bytes.
const UUID: &str = "7265666c-6173-4000-8000-";

/// Makes the templates of the names in `wanted`, below `out`.
///
/// # Errors
/// When a tool is missing or fails, or no template has one of the names.
pub fn make(paths: &Paths, grub: &GrubImages, wanted: &[&str], out: &Path) -> Result<()> {
    let scratch = paths.scratch("templates")?;
    let directory = out.join("templates");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    step("make the file systems of blank disks", || {
        for (number, &name) in wanted.iter().enumerate() {
            let image = scratch.path().join(number.to_string());
            make_image(grub, name, scratch.path(), &image)?;
            let to = out.join(name);
            compress(&image, &to).with_context(|| format!("compress {} to {}", image.display(), to.display()))?;
        }
        Ok(())
    })
}

fn make_image(grub: &GrubImages, name: &str, scratch: &Path, image: &Path) -> Result<()> {
    // The UUID and the seed of the directories' hashes are all that mke2fs would choose at random.
    let uuid = format!("{UUID}{}", &blake3::hash(name.as_bytes()).to_hex()[..12]);
    let seed = format!("hash_seed={uuid}");
    let identity = ["-U", &uuid, "-E", &seed];
    match name {
        names::ESP_512 => filesystem::esp(grub, ESP_BYTES, 512, image),
        names::ESP_4096 => filesystem::esp(grub, ESP_BYTES, 4096, image),
        names::STATE => filesystem::state(&environment_without_system(), STATE_BYTES, scratch, &identity, image),
        names::RECOVERY => {
            let more = [&identity[..], &filesystem::RECOVERY_GROUPS].concat();
            filesystem::ext4("recovery", RECOVERY_BYTES, None, &more, image)
        }
        // The journal does not grow when the file system does.
        names::DATA => filesystem::data(DATA_BYTES, scratch, &[&identity[..], &["-J", "size=16"]].concat(), image),
        _ => bail!("no template is named {name:?}"),
    }
}

/// Compresses to one zstd frame that says how large its content is.
fn compress(image: &Path, out: &Path) -> Result<()> {
    let mut content = File::open(image)?;
    let mut encoder = zstd::stream::write::Encoder::new(File::create(out)?, 9)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(content.metadata()?.len()))?;
    std::io::copy(&mut content, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}
