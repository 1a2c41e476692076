//! `cargo xtask disk`: a bootable disk image, put together without mounting anything: table, boot code, EFI system
//! partition, state, recovery, an empty system partition, and data.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{self, Type};
use reflash::blackbox;
use reflash::bootcode;
use reflash::grubenv::{GrubEnv, names};
use reflash::layout::{Layout, Placed, Role};

use crate::grub::{self, Images};
use crate::host::{Need, ensure_installed};
use crate::initramfs::Recovery;
use crate::paths::Paths;
use crate::step::{output, produced, run, step};

const SECTOR_BYTES: u64 = 512;

/// Default size of the disk, bytes: what the layout of `xtask/recipes/layout.toml` needs, and some data.
pub const DEFAULT_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// What a disk is made of.
pub struct Parts<'a> {
    /// Where each partition lies.
    pub layout: &'a Layout,
    /// Size of the disk, bytes.
    pub disk_bytes: u64,
    /// GRUB.
    pub grub: &'a Images,
    /// Recovery kernel and initramfs.
    pub recovery: &'a Recovery,
    /// `reflash.toml` of the recovery partition.
    pub config: String,
    /// Public keys for the recovery partition.
    pub keys: Vec<PathBuf>,
    /// Further files for the recovery partition: a CA for `network.ca_file`, for example.
    pub files: Vec<PathBuf>,
    /// Variables of the first boot environment.
    pub environment: Vec<(&'a str, &'a str)>,
}

/// The environment of a disk whose system partition is still empty: no tries, so GRUB goes to recovery.
#[must_use]
pub fn environment_without_system() -> Vec<(&'static str, &'static str)> {
    vec![(names::TRIES, "0"), (names::MAX_TRIES, "3"), (names::BOOT_OK, "0")]
}

/// Reads a layout file.
///
/// # Errors
/// When it is not one; unknown keys are refused by name.
pub fn read_layout(path: &Path) -> Result<Layout> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Assembles the disk at `out`, sparse.
///
/// # Errors
/// When the layout does not fit, or a tool fails.
pub fn build(paths: &Paths, parts: &Parts<'_>, out: &Path, assume_yes: bool) -> Result<()> {
    ensure_installed(&[Need::Disk], assume_yes)?;
    let placed = parts.layout.place(parts.disk_bytes)?;
    step("assemble the disk", || {
        let new = out.with_added_extension("new");
        let scratch = tempfile::Builder::new().prefix("disk").tempdir_in(work(paths)?)?;
        write_table(&new, parts.disk_bytes, &placed)?;
        let mut disk = File::options().read(true).write(true).open(&new)?;
        for partition in &placed {
            let image = scratch.path().join(&partition.partition.name);
            match partition.partition.role {
                Role::BiosBoot => write_boot_code(&disk, parts.grub, partition)?,
                Role::System => continue,
                Role::Esp => make_esp(parts.grub, partition.size_bytes, &image)?,
                Role::State => make_state(&parts.environment, partition.size_bytes, scratch.path(), &image)?,
                Role::Recovery => make_recovery(parts, &placed, partition.size_bytes, scratch.path(), &image)?,
                Role::Data => make_ext4("data", partition.size_bytes, None, &image)?,
            }
            if image.exists() {
                copy_sparse(&image, &mut disk, partition.offset_bytes)?;
            }
        }
        disk.sync_all()?;
        Ok(std::fs::rename(&new, out)?)
    })?;
    produced("disk", out);
    Ok(())
}

fn work(paths: &Paths) -> Result<PathBuf> {
    let work = paths.work();
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    Ok(work)
}

fn write_table(path: &Path, disk_bytes: u64, placed: &[Placed]) -> Result<()> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(disk_bytes)?;
    // The protective entry counts the sectors behind the MBR; more than 32 bits are written as the largest number.
    let sectors = u32::try_from(disk_bytes / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut file).context("write the protective MBR")?;
    let config = gpt::GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(file, None).context("make a GPT")?;
    for partition in placed {
        let (first, length) = (partition.offset_bytes / SECTOR_BYTES, partition.size_bytes / SECTOR_BYTES);
        let name = &partition.partition.name;
        table
            .add_partition_at(name, partition.number, first, length, type_of(partition.partition.role), 0)
            .with_context(|| format!("add partition {name:?}"))?;
    }
    table.write().context("write the GPT")?;
    Ok(())
}

fn type_of(role: Role) -> Type {
    match role {
        Role::BiosBoot => partition_types::BIOS,
        Role::Esp => partition_types::EFI,
        Role::State | Role::Recovery | Role::System | Role::Data => partition_types::LINUX_FS,
    }
}

fn write_boot_code(disk: &File, grub: &Images, partition: &Placed) -> Result<()> {
    let lba = partition.offset_bytes / SECTOR_BYTES;
    let mut present = [0; bootcode::SECTOR_BYTES];
    disk.read_exact_at(&mut present, 0)?;
    let first = bootcode::first_sector(&std::fs::read(&grub.boot)?, &present, lba)?;
    let core = bootcode::core_image(&std::fs::read(&grub.core)?, lba, partition.size_bytes)?;
    disk.write_all_at(&core, partition.offset_bytes)?;
    Ok(disk.write_all_at(&first, 0)?)
}

fn make_esp(grub: &Images, size_bytes: u64, image: &Path) -> Result<()> {
    File::create(image)?.set_len(size_bytes)?;
    run("mkfs.vfat", Command::new("mkfs.vfat").args(["-F", "32", "-n", "ESP"]).arg(image))?;
    run("mmd", Command::new("mmd").arg("-i").arg(image).args(["::/EFI", "::/EFI/BOOT"]))?;
    run("mcopy", Command::new("mcopy").arg("-i").arg(image).arg(&grub.efi).arg("::/EFI/BOOT/BOOTX64.EFI"))
}

fn make_state(environment: &[(&str, &str)], size_bytes: u64, scratch: &Path, image: &Path) -> Result<()> {
    let tree = scratch.join("state.tree");
    std::fs::create_dir_all(tree.join("installed"))?;
    let mut env = GrubEnv::default();
    for (name, value) in environment {
        env.set(name, value)?;
    }
    std::fs::write(tree.join("grubenv"), env.encode()?)?;
    // Not zeros, which mke2fs would leave out: the black box must have its blocks before the partition is full.
    std::fs::write(tree.join("blackbox"), vec![0xff; blackbox::SIZE_BYTES as usize])?;
    make_ext4("state", size_bytes, Some(&tree), image)
}

/// Compresses an image that the agent makes a destroyed partition from.
fn compress(image: &Path, out: &Path) -> Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(File::create(out)?, 0)?;
    encoder.include_checksum(true)?;
    std::io::copy(&mut File::open(image)?, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

fn make_recovery(parts: &Parts<'_>, placed: &[Placed], size_bytes: u64, scratch: &Path, image: &Path) -> Result<()> {
    let tree = scratch.join("recovery.tree");
    for directory in ["grub", "boot", "keys", "templates"] {
        std::fs::create_dir_all(tree.join(directory))?;
    }
    let copy = |from: &Path, to: &str| {
        std::fs::copy(from, tree.join(to)).with_context(|| format!("copy {}", from.display())).map(drop)
    };
    copy(&parts.grub.config, "grub/grub.cfg")?;
    copy(&parts.recovery.vmlinuz, "boot/vmlinuz")?;
    copy(&parts.recovery.initramfs, "boot/initramfs.img")?;
    for key in &parts.keys {
        let name = key.file_name().with_context(|| format!("{} is no file", key.display()))?;
        copy(key, &format!("keys/{}", name.to_string_lossy()))?;
    }
    for file in &parts.files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        copy(file, &name.to_string_lossy())?;
    }
    std::fs::write(tree.join("reflash.toml"), &parts.config)?;
    for state in placed.iter().filter(|partition| partition.partition.role == Role::State) {
        let empty = scratch.join("state.template");
        make_state(&environment_without_system(), state.size_bytes, scratch, &empty)?;
        compress(&empty, &tree.join("templates/state.ext4.zst"))?;
    }
    make_ext4("recovery", size_bytes, Some(&tree), image)
}

/// GRUB 2.06 reads and writes ext4 with its usual features, but not a file whose content lies in its inode.
fn make_ext4(label: &str, size_bytes: u64, tree: Option<&Path>, image: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-O", "^inline_data", "-E", "root_owner=0:0", "-L", label]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    run(&format!("mke2fs-{label}"), command.arg(image).arg(format!("{}k", size_bytes / 1024)))
}

/// Copies what is not zero, so that the disk image stays sparse.
fn copy_sparse(from: &Path, disk: &mut File, offset_bytes: u64) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("open {}", from.display()))?;
    let mut buffer = vec![0; 1024 * 1024];
    let mut position = offset_bytes;
    loop {
        let len = source.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if !reflash::digest::is_zero(&buffer[..len]) {
            disk.seek(SeekFrom::Start(position))?;
            disk.write_all(&buffer[..len])?;
        }
        position += len as u64;
    }
}

/// Reads a partition's bytes out of a disk image: for comparison with what should be there.
///
/// # Errors
/// When the disk has no partition of that name.
pub fn partition_range(disk: &Path, name: &str) -> Result<std::ops::Range<u64>> {
    let (_, found) = partition(disk, name)?;
    Ok(found.first_lba * SECTOR_BYTES..(found.last_lba + 1) * SECTOR_BYTES)
}

/// A partition and its number in the table.
fn partition(disk: &Path, name: &str) -> Result<(u32, gpt::partition::Partition)> {
    let mut table =
        gpt::GptConfig::new().writable(false).open(disk).with_context(|| format!("open {}", disk.display()))?;
    let found = table.take_partitions().into_iter().find(|(_, partition)| partition.name == name);
    found.with_context(|| format!("{} has no partition {name:?}", disk.display()))
}

/// Reads the boot environment off a disk that no machine uses, as GRUB does: a disk whose power was cut has a journal
/// that was not replayed, and checksums that do not hold.
///
/// # Errors
/// When there is none.
pub fn read_environment(disk: &Path) -> Result<GrubEnv> {
    let (number, _) = partition(disk, "state")?;
    let block = grub::read_file(disk, &format!("(loop0,gpt{number})/grubenv"))?;
    let block = block.context("the state partition has no boot environment")?;
    GrubEnv::parse(&block).context("read the boot environment off the disk")
}

/// Changes variables of the boot environment on a disk that no machine uses, in its block and without touching anything
/// else.
///
/// # Errors
/// When there is no environment, or the variables do not fit.
pub fn change_environment(disk: &Path, changes: &[(&str, &str)]) -> Result<()> {
    let mut env = read_environment(disk)?;
    for (name, value) in changes {
        env.set(name, value)?;
    }
    write_environment(disk, &env.encode()?)
}

/// Overwrites the block of the boot environment where it lies: what a disk or a foreign program might do.
///
/// # Errors
/// When there is no such file.
pub fn write_environment(disk: &Path, block: &[u8; reflash::grubenv::SIZE_BYTES]) -> Result<()> {
    let offset = file_offset(disk, "state", "/grubenv")?;
    Ok(File::options().write(true).open(disk)?.write_all_at(block, offset)?)
}

/// Where the first block of a file lies on a disk, bytes.
///
/// # Errors
/// When there is no such partition or file.
pub fn file_offset(disk: &Path, partition: &str, path: &str) -> Result<u64> {
    let start = partition_range(disk, partition)?.start;
    let device = format!("{}?offset={start}", disk.display());
    // Without the bitmaps, whose checksums do not hold while the journal is not replayed.
    let ask = |request: &str| output(Command::new("debugfs").args(["-c", "-R", request, &device]));
    let blocks = ask(&format!("blocks {path}"))?;
    let block: u64 = blocks
        .split_whitespace()
        .next()
        .and_then(|block| block.parse().ok())
        .with_context(|| format!("find {path}"))?;
    let stats = ask("stats")?;
    let size = stats.lines().find_map(|line| line.strip_prefix("Block size:")).context("find the block size")?;
    Ok(start + block * size.trim().parse::<u64>()?)
}
