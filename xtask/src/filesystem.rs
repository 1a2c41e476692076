//! File systems made without mounting anything: those of a robot's disk, and the templates of a release.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::record::blackbox;

use crate::grub::GrubImages;
use crate::step::run;

/// Time of everything in them, seconds since 1970: the same inputs give the same bytes.
const TIME: &str = "1700000000";

/// Arguments for the recovery file system: groups of 32 MiB. A file system of one group has no second superblock, and
/// with it one lost block would be the end of both slots.
pub const RECOVERY_GROUPS: [&str; 2] = ["-g", "8192"];

/// Returns the boot environment of a disk whose system partition is still empty: no tries, so GRUB goes to recovery.
#[must_use]
pub fn environment_without_system() -> Vec<(&'static str, &'static str)> {
    vec![(names::TRIES, "0"), (names::MAX_TRIES, "3"), (names::BOOT_OK, "0")]
}

/// Makes an EFI system partition with GRUB on the path that firmware falls back to, for logical blocks of
/// `block_bytes`.
///
/// # Errors
/// When a tool is missing or fails.
pub fn esp(grub: &GrubImages, size_bytes: u64, block_bytes: u64, image: &Path) -> Result<()> {
    File::create(image)?.set_len(size_bytes)?;
    // FAT32 has at least 65525 clusters: with blocks of 4096 bytes a quarter of a GiB.
    let kind: &[&str] = if block_bytes == 512 { &["-F", "32"] } else { &["-F", "16", "-s", "1"] };
    let mut format = Command::new("mkfs.vfat");
    format.args(["--invariant", "-S", &block_bytes.to_string(), "-n", "ESP"]).args(kind);
    run("mkfs.vfat", format.arg(image))?;
    let tool = |name: &str| {
        let mut command = Command::new(name);
        command.env("SOURCE_DATE_EPOCH", TIME).env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(image);
        command
    };
    run("mmd", tool("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
    run("mcopy", tool("mcopy").arg(&grub.efi).arg("::/EFI/BOOT/BOOTX64.EFI"))
}

/// Makes a state partition with this boot environment and an empty black box.
///
/// # Errors
/// When the variables do not fit, or a tool fails.
pub fn state(environment: &[(&str, &str)], size_bytes: u64, scratch: &Path, more: &[&str], image: &Path) -> Result<()> {
    let tree = scratch.join("state.tree");
    fs::create_dir_all(tree.join("installed"))?;
    let mut env = GrubEnv::default();
    for (name, value) in environment {
        env.set(name, value)?;
    }
    fs::write(tree.join("grubenv"), env.encode()?)?;
    // Not zeros, which mke2fs would leave out: the black box must have its blocks before the partition is full.
    fs::write(tree.join("blackbox"), vec![0xff; usize::try_from(blackbox::SIZE_BYTES)?])?;
    ext4("state", size_bytes, Some(&tree), more, image)
}

/// Makes an ext4 file system with the content of `tree`; `more` are arguments for mke2fs.
///
/// GRUB 2.06 reads and writes ext4 with its usual features, but not a file whose content lies in its inode. With the
/// seed of its checksums stored a file system can be given another UUID. Blocks of 4096 bytes suit every disk.
///
/// # Errors
/// When mke2fs is missing or fails.
pub fn ext4(label: &str, size_bytes: u64, tree: Option<&Path>, more: &[&str], image: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.env("E2FSPROGS_FAKE_TIME", TIME);
    command.args(["-q", "-F", "-t", "ext4", "-T", "default", "-b", "4096", "-L", label]);
    command.args(["-O", "^inline_data,metadata_csum_seed", "-E", "root_owner=0:0,lazy_itable_init=0"]).args(more);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    run(&format!("mke2fs-{label}"), command.arg(image).arg(format!("{}k", size_bytes / 1024)))?;
    tree.map_or(Ok(()), |tree| set_times(label, tree, image))
}

/// Sets the times of everything that mke2fs copied from `tree`: it takes them from the files, and the time of a file's
/// last change cannot be chosen there.
fn set_times(label: &str, tree: &Path, image: &Path) -> Result<()> {
    let mut requests = String::new();
    for entry in walkdir::WalkDir::new(tree).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path().strip_prefix(tree)?.display();
        for field in ["atime", "ctime", "mtime"] {
            requests += &format!("set_inode_field \"/{path}\" {field} @{TIME}\n");
        }
    }
    let list = image.with_added_extension("times");
    fs::write(&list, requests)?;
    let mut command = Command::new("debugfs");
    // debugfs stamps the superblock when it closes it.
    command.env("E2FSPROGS_FAKE_TIME", TIME).args(["-w", "-f"]).arg(&list).arg(image);
    run(&format!("debugfs-{label}"), &mut command)
}
