//! File systems made without mounting anything: those of a robot's disk, and the templates of a release.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::disk::reserve;
use reflash::jobs::floor;
use reflash::record::blackbox;

use crate::fresh;
use crate::grub::GrubImages;
use crate::step::run;

/// Time of everything in them, seconds since 1970: the same inputs give the same bytes.
const TIME: &str = "1700000000";

/// Arguments for the recovery file system. Groups of 32 MiB: a file system of one group has no second superblock, and
/// with it one lost block would be the end of both slots. For the same reason each inode has a block to itself: of the
/// usual size, sixteen share one, those of both slots among them.
pub const RECOVERY_GROUPS: [&str; 6] = ["-g", "8192", "-I", "4096", "-N", "512"];

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

/// Returns the directory below `scratch` from which [`state`] makes its file system: what is there already comes along.
pub fn state_tree(scratch: &Path) -> PathBuf {
    scratch.join("state.tree")
}

/// Makes a state partition with this boot environment and an empty black box.
///
/// # Errors
/// When the variables do not fit, or a tool fails.
pub fn state(environment: &[(&str, &str)], size_bytes: u64, scratch: &Path, more: &[&str], image: &Path) -> Result<()> {
    let tree = state_tree(scratch);
    fresh::make(&tree)?;
    fs::create_dir_all(tree.join("installed"))?;
    let mut env = GrubEnv::default();
    for (name, value) in environment {
        env.set(name, value)?;
    }
    fs::write(tree.join("grubenv"), env.encode()?)?;
    // Not zeros, which mke2fs would leave out: the black box must have its blocks before the partition is full.
    fs::write(tree.join("blackbox"), vec![0xff; usize::try_from(blackbox::SIZE_BYTES)?])?;
    // It has its room too, and says nothing yet.
    fs::write(tree.join(floor::FILE), floor::new_file())?;
    ext4("state", size_bytes, Some(&tree), more, image)
}

/// Makes a data partition with the reserve that the first step of the system's boot frees when the partition is full.
///
/// # Errors
/// When mke2fs is missing or fails.
pub fn data(size_bytes: u64, scratch: &Path, more: &[&str], image: &Path) -> Result<()> {
    let tree = scratch.join("data.tree");
    fresh::make(&tree)?;
    let directory = tree.join(reserve::DIRECTORY);
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
    for file in reserve::files() {
        fs::write(directory.join(&file.name), reserve::content(&file))?;
    }
    ext4("data", size_bytes, Some(&tree), more, image)
}

/// Features of the file systems, named one by one. The defaults of mke2fs depend on its version and on the
/// configuration of this host, and an image's e2fsck refuses a file system with a feature that it does not know: one of
/// 2021 does not know `orphan_file`, which Debian 13 sets. GRUB 2.06 reads and writes all of these, and would not read
/// a file whose content lies in its inode (`inline_data`). With the seed of its checksums stored
/// (`metadata_csum_seed`) a file system can be given another UUID.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";

/// Makes an ext4 file system with the content of `tree`; `more` are arguments for mke2fs. Blocks of 4096 bytes suit
/// every disk.
///
/// # Errors
/// When mke2fs is missing or fails.
pub fn ext4(label: &str, size_bytes: u64, tree: Option<&Path>, more: &[&str], image: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    // What is not named here is mke2fs's own default, not that of this host's /etc/mke2fs.conf.
    command.env("E2FSPROGS_FAKE_TIME", TIME).env("MKE2FS_CONFIG", "/dev/null");
    command.args(["-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "5", "-L", label]);
    command.args(["-O", FEATURES, "-E", "root_owner=0:0,lazy_itable_init=0"]).args(more);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    run(&format!("mke2fs-{label}"), command.arg(image).arg(format!("{}k", size_bytes / 1024)))?;
    tree.map_or(Ok(()), |tree| set_times(label, tree, image))
}

/// Sets times and owners of everything that mke2fs copied from `tree`: it takes them from the files, and the time of a
/// file's last change cannot be chosen there.
fn set_times(label: &str, tree: &Path, image: &Path) -> Result<()> {
    let mut requests = String::new();
    for entry in walkdir::WalkDir::new(tree).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path().strip_prefix(tree)?.display();
        for field in ["atime", "ctime", "mtime"] {
            requests += &format!("set_inode_field \"/{path}\" {field} @{TIME}\n");
        }
        // The user that builds here is not known on the machine.
        for field in ["uid", "gid"] {
            requests += &format!("set_inode_field \"/{path}\" {field} 0\n");
        }
    }
    let list = image.with_added_extension("times");
    fs::write(&list, requests)?;
    let mut command = Command::new("debugfs");
    // debugfs stamps the superblock when it closes it.
    command.env("E2FSPROGS_FAKE_TIME", TIME).args(["-w", "-f"]).arg(&list).arg(image);
    run(&format!("debugfs-{label}"), &mut command)
}
