//! A bootable disk image, put together without mounting anything: table, boot code, EFI system
//! partition, state, recovery, an empty system partition, and data.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use reflash::boot::disk_record::DISK_MIB;
use reflash::boot::grubenv::GrubEnv;
use reflash::boot::slots::{self, Slot};
use reflash::jobs::floor;
use reflash::jobs::mend::{boot_code, pieces::BootPieces};
use reflash::jobs::provision::{DiskGeometry, DiskSkeleton, bootstrap};
use reflash::jobs::state::StatePartition;
use reflash::release::layout::{Layout, Placed, Role, Scheme};

use crate::fresh;
use crate::grub::{self, GrubImages};
use crate::host_packages::{Need, ensure_installed};
use crate::initramfs::{self, BuiltRecovery};
use crate::paths::{Paths, create_parent, output_file};
use crate::project::needed;
use crate::step::{output, produced, step};
use crate::{boot_script, embedded, filesystem, layout_room, site, templates, toml_text, trusted};

pub use crate::filesystem::environment_without_system;

/// Default size of the disk, bytes: room for the layout in `xtask/recipes/layout.toml`, and for some data.
pub const DEFAULT_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Options of `disk`.
#[derive(Debug, clap::Args)]
pub struct DiskArgs {
    /// Configuration for the recovery partition.
    #[arg(long, value_name = "reflash.toml")]
    pub config: Option<PathBuf>,
    /// Public keys for the recovery partition.
    #[arg(long = "key", value_name = "FILE.pub")]
    pub keys: Vec<PathBuf>,
    /// Further files for the recovery partition, such as the CA that the configuration names.
    #[arg(long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Partition layout of the disk. Default: that of a GPT disk, which `examples` writes as layout.toml.
    #[arg(long, value_name = "FILE.toml")]
    pub layout: Option<PathBuf>,
    /// Size of the disk, MiB. Default: 2048.
    #[arg(long)]
    pub size_mib: Option<u64>,
    /// Logical block size of the disk it is for: 512, or 4096, which only UEFI starts from.
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    sector_bytes: u32,
    /// Where the disk goes. Default: disk.img, where everything built goes.
    #[arg(long, value_name = "FILE.img")]
    out: Option<PathBuf>,
    /// Make it although the configuration cannot work: what is missing comes from the kernel command line.
    #[arg(long)]
    unchecked: bool,
}

/// Everything a disk is made of.
pub struct DiskParts<'a> {
    /// Places of the partitions.
    pub layout: &'a Layout,
    /// Size of the disk, bytes.
    pub disk_bytes: u64,
    /// Logical blocks of the disk, bytes: 512, or 4096, which only UEFI starts from.
    pub block_bytes: u32,
    /// GRUB's images and scripts.
    pub grub: &'a GrubImages,
    /// Recovery kernel and initramfs.
    pub recovery: &'a BuiltRecovery,
    /// `reflash.toml` of the recovery partition.
    pub config: String,
    /// Public keys for the recovery partition.
    pub keys: Vec<PathBuf>,
    /// Further files for the recovery partition: a CA for `network.ca_file`, for example.
    pub files: Vec<PathBuf>,
    /// Variables of the first boot environment.
    pub environment: Vec<(&'a str, &'a str)>,
}

/// Reads a layout file.
///
/// # Errors
/// When it is not one; unknown keys are refused by name.
pub fn read_layout(path: &Path) -> Result<Layout> {
    toml_text::parse(&toml_text::read(path)?).with_context(|| path.display().to_string())
}

/// Assembles a disk as the command line says, with GRUB and the recovery.
///
/// # Errors
/// When a file cannot be read, or a part cannot be built.
pub fn run(args: DiskArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let out = output_file(args.out.unwrap_or_else(|| paths.dist().join("disk.img")))?;
    let config = needed(args.config, "--config", "site")?;
    trusted::of(&args.keys)?;
    let texts = site::read(Some(&config), None)?;
    if !args.unchecked {
        let wrong = "check what the machine will read (--unchecked makes it all the same)";
        texts.check().and_then(|checked| checked.check_files(&args.files)).context(wrong)?;
    }
    let layout = match &args.layout {
        Some(path) => read_layout(path)?,
        None => toml::from_str(embedded::LAYOUT).context("read the layout of a GPT disk")?,
    };
    let size_mib = args.size_mib.unwrap_or(DEFAULT_BYTES / 1024 / 1024);
    let size = size_mib.checked_mul(1024 * 1024);
    let name = args.layout.as_deref().map_or_else(|| "the layout".to_owned(), |path| path.display().to_string());
    let needed_mib = layout_room::smallest_disk_mib(&layout, 0).with_context(|| name.clone())?;
    ensure!(
        needed_mib <= size_mib,
        "{name} needs a disk of {needed_mib} MiB, and this one has {size_mib} (--size-mib, or disk.size_mib of a project)"
    );
    ensure_installed(&[Need::Disk], assume_yes)?;
    let parts = DiskParts {
        layout: &layout,
        disk_bytes: size.with_context(|| format!("--size-mib {size_mib}: no disk is that large"))?,
        block_bytes: args.sector_bytes,
        grub: &grub::build(paths, assume_yes)?,
        recovery: &initramfs::recovery(paths, &args.keys, assume_yes)?,
        config: texts.config.unwrap_or_default(),
        keys: args.keys,
        files: args.files,
        environment: environment_without_system(),
    };
    build(paths, &parts, &out, assume_yes)
}

/// Assembles the disk at `out`, sparse.
///
/// # Errors
/// When the layout does not fit, or a tool fails.
pub fn build(paths: &Paths, parts: &DiskParts<'_>, out: &Path, assume_yes: bool) -> Result<()> {
    ensure_installed(&[Need::Disk], assume_yes)?;
    let placed = parts.layout.place(parts.disk_bytes)?;
    step("assemble the disk", || {
        let new = out.with_added_extension("new");
        let scratch = paths.scratch("disk")?;
        create_parent(out)?;
        write_skeleton(&new, parts, &placed)?;
        let mut disk = File::options().read(true).write(true).open(&new)?;
        for partition in &placed {
            let image = scratch.path().join(&partition.partition.name);
            match partition.partition.role {
                Role::BiosBoot | Role::System | Role::System2 => continue,
                Role::Esp => filesystem::esp(parts.grub, partition.size_bytes, parts.block_bytes.into(), &image)?,
                Role::State => {
                    keep_boot_code(paths, parts, scratch.path())?;
                    let mib = (parts.disk_bytes >> 20).to_string();
                    let mut environment = parts.environment.clone();
                    // An MBR does not say it, and the robot grows data on a larger disk only if it knows.
                    environment.extend((parts.layout.table == Scheme::Mbr).then_some((DISK_MIB, mib.as_str())));
                    filesystem::state(&environment, partition.size_bytes, scratch.path(), &[], &image)?
                }
                Role::Recovery => make_recovery(paths, parts, partition.size_bytes, scratch.path(), &image)?,
                Role::Data => filesystem::data(partition.size_bytes, scratch.path(), &[], &image)?,
            }
            if image.exists() {
                let image = File::open(&image).with_context(|| format!("open {}", image.display()))?;
                copy_sparse(image, &mut disk, partition.offset_bytes)?;
            }
        }
        disk.sync_all()?;
        Ok(fs::rename(&new, out)?)
    })?;
    produced("disk", out);
    Ok(())
}

/// Writes partition table and boot code, by the code that provisions robots.
fn write_skeleton(path: &Path, parts: &DiskParts<'_>, placed: &[Placed]) -> Result<()> {
    let (table, disk_bytes) = (parts.layout.table, parts.disk_bytes);
    let core = if table == Scheme::Mbr { &parts.grub.core_mbr } else { &parts.grub.core };
    let geometry = DiskGeometry { table, placed, disk_bytes, block_bytes: parts.block_bytes };
    let skeleton = DiskSkeleton::new(geometry, &fs::read(&parts.grub.boot)?, &fs::read(core)?)?;
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(disk_bytes).with_context(|| format!("make {} {disk_bytes} bytes long", path.display()))?;
    skeleton.pieces().try_for_each(|(offset, content)| copy_sparse(content, &mut file, offset))
}

/// Serial of the copy of the boot code on a disk that no release was installed on: any release has newer one.
const NO_SERIAL: u64 = 0;

/// Puts a copy of the boot code into the tree of the state partition, as provisioning does: the robot mends with it
/// what is lost before its first recovery.
fn keep_boot_code(paths: &Paths, parts: &DiskParts<'_>, scratch: &Path) -> Result<()> {
    let made = scratch.join("esp-template");
    let has = |role| parts.layout.partitions.iter().any(|partition| partition.role == role);
    let wanted = boot_code::file_names(parts.layout.table, parts.block_bytes, has);
    let files: Result<Vec<_>> = wanted
        .into_iter()
        .map(|name| {
            let path = match name {
                bootstrap::names::BOOT_IMAGE => parts.grub.boot.clone(),
                bootstrap::names::CORE_GPT => parts.grub.core.clone(),
                bootstrap::names::CORE_MBR => parts.grub.core_mbr.clone(),
                bootstrap::names::EFI => parts.grub.efi.clone(),
                template => {
                    templates::make(paths, parts.grub, &[template], &made)?;
                    made.join(template)
                }
            };
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Ok((name.to_owned(), content))
        })
        .collect();
    let pieces = BootPieces::new(NO_SERIAL, files?);
    let tree = filesystem::state_tree(scratch);
    fresh::make(&tree)?;
    pieces.keep(&StatePartition::new(&tree)).context("copy the boot code into the state partition")
}

fn make_recovery(paths: &Paths, parts: &DiskParts<'_>, size_bytes: u64, scratch: &Path, image: &Path) -> Result<()> {
    let tree = scratch.join("recovery.tree");
    fresh::make(&tree)?;
    let slots = [Slot::A, Slot::B].map(Slot::folder);
    for directory in ["grub", "keys", "templates", &slots[0], &slots[1]] {
        fs::create_dir_all(tree.join(directory))?;
    }
    let copy = |from: &Path, to: &str| {
        fs::copy(from, tree.join(to)).with_context(|| format!("copy {}", from.display())).map(drop)
    };
    copy(&parts.grub.loader, "grub/grub.cfg")?;
    for (name, from) in slot_files(parts.grub, parts.recovery)? {
        slots.iter().try_for_each(|slot| copy(&from, &format!("{slot}/{name}")))?;
    }
    for (name, key) in trusted::named(&parts.keys)? {
        copy(key, &format!("keys/{name}"))?;
    }
    for file in &parts.files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        copy(file, &name.to_string_lossy())?;
    }
    fs::write(tree.join("reflash.toml"), &parts.config)?;
    fs::write(tree.join(floor::FILE), floor::new_file())?;
    let made = scratch.join("templates");
    let needed = [bootstrap::names::STATE, bootstrap::names::DATA];
    templates::make(paths, parts.grub, &needed, &made)?;
    for name in needed {
        copy(&made.join(name), name)?;
    }
    filesystem::ext4("recovery", size_bytes, Some(&tree), &filesystem::RECOVERY_GROUPS, image)
}

/// The files of a slot of the recovery partition, by the names that they have there. The boot script gets its marks
/// here, and lies beside the initramfs.
fn slot_files(grub: &GrubImages, recovery: &BuiltRecovery) -> Result<[(&'static str, PathBuf); slots::FILES.len()]> {
    let script = recovery.initramfs.with_added_extension("grub.cfg");
    boot_script::write_marked(&grub.script, &recovery.vmlinuz, &recovery.initramfs, &script)?;
    Ok(slots::FILES.map(|name| match name {
        "grub.cfg" => (name, script.clone()),
        "vmlinuz" => (name, recovery.vmlinuz.clone()),
        _ => (name, recovery.initramfs.clone()),
    }))
}

/// Returns the files of a slot as files of a release, with which robots renew their recovery.
///
/// # Errors
/// When the boot script cannot be written.
pub fn recovery_files(grub: &GrubImages, recovery: &BuiltRecovery) -> Result<Vec<(String, PathBuf)>> {
    let named = |(name, from): (&str, PathBuf)| (format!("{}/{name}", slots::RELEASE_FOLDER), from);
    Ok(slot_files(grub, recovery)?.map(named).into())
}

/// Copies what is not zero, so that the disk image stays sparse.
fn copy_sparse(mut source: impl Read, disk: &mut File, offset_bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 1024 * 1024];
    let mut position = offset_bytes;
    loop {
        let len = source.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if !reflash::release::digest::is_zero(&buffer[..len]) {
            disk.seek(SeekFrom::Start(position))?;
            disk.write_all(&buffer[..len])?;
        }
        position += len as u64;
    }
}

/// Reads a partition's bytes out of a disk image with blocks of 512 bytes: for comparison with what should be there.
///
/// # Errors
/// When the disk has no partition of that name.
pub fn partition_range(disk: &Path, name: &str) -> Result<std::ops::Range<u64>> {
    let (_, found) = partition(disk, name)?;
    Ok(found.first_lba * 512..(found.last_lba + 1) * 512)
}

/// Returns a partition and its number in the table.
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

/// Changes variables of the boot environment on a disk that no machine uses, in its block and without touching
/// anything else.
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

/// Overwrites the block of the boot environment in place, as a failing disk or a foreign program might.
///
/// # Errors
/// When there is no such file.
pub fn write_environment(disk: &Path, block: &[u8; reflash::boot::grubenv::SIZE_BYTES]) -> Result<()> {
    let offset = file_offset(disk, "state", "/grubenv")?;
    Ok(File::options().write(true).open(disk)?.write_all_at(block, offset)?)
}

/// Returns where the first block of a file lies on a disk, bytes.
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
