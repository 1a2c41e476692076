//! A boot medium. One image that starts from a USB drive and from an optical drive, on BIOS and on
//! UEFI: an ISO 9660 file system with GRUB in the boot record of each way.
//!
//! | way | how it starts |
//! |---|---|
//! | USB, BIOS | the MBR (GRUB's `boot_hybrid.img`) loads the same image as the next line |
//! | optical, BIOS | El Torito: `cdboot.img` and GRUB's core, one file |
//! | USB, UEFI | the EFI system partition of the GPT, a FAT image behind the file system |
//! | optical, UEFI | El Torito's second entry, the same FAT image |
//!
//! GRUB and the agent know their medium by its ID, which is a digest of all that is on it: the same inputs give the
//! same bytes, and two media that differ are never mistaken for one another. Labels are for people only.

pub mod netboot;
mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use reflash::machine::media::{self, MediaId};
use reflash::release::manifest::{TrustedKeys, manifest_path, object_path};

use crate::host_packages::{Need, ensure_installed};
use crate::image::named;
use crate::initramfs;
use crate::invocation::quoted;
use crate::paths::{Paths, create_parent, output_file};
use crate::release::{DEFAULT_CHANNEL, check};
use crate::site;
use crate::step::{mib, produced, run as run_tool, step};
use crate::{embedded, grub, trusted};

pub use parts::MediaParts;
use parts::{check_texts, copy, offered, write};

/// Time stamp of everything on the medium: 1980-01-01, the first that FAT has.
const EPOCH: &str = "315532800";
/// That time stamp as xorriso wants it, with hundredths.
const EPOCH_DATE: &str = "1980010100000000";

/// Size of the FAT image, KiB: that of a 2.88 MB floppy disk, which mformat knows how to lay out and all firmware
/// reads. GRUB needs 1 MB of it.
const ESP_KIB: u32 = 2880;

/// GRUB's file systems on a medium, in addition to those of a disk.
const MODULES: &str = "iso9660 chain";

/// Options of `media`.
#[derive(Debug, clap::Args)]
pub struct MediaArgs {
    /// File for the image. Default: media.iso, where everything built goes. Write it to a USB drive with: dd if=FILE
    /// of=/dev/sdX bs=4M conv=fsync
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Configuration, for the medium and the recovery partition it makes.
    #[arg(long, value_name = "reflash.toml")]
    pub config: Option<PathBuf>,
    /// Public keys to trust; repeat for several.
    #[arg(long = "key", value_name = "FILE.pub")]
    pub keys: Vec<PathBuf>,
    /// Put this release tree on the medium: machines are then provisioned without a network. A project's release is put
    /// there by default.
    #[arg(long, value_name = "DIR")]
    pub release: Option<PathBuf>,
    /// Put no release on the medium: machines then fetch it from release.urls.
    #[arg(long, conflicts_with = "release")]
    pub no_release: bool,
    /// Channel to take from the release tree. Default: stable.
    #[arg(long)]
    pub channel: Option<String>,
    /// Names of machines for the host name template's {asset}: lines of SERIAL NAME, UUID NAME or MAC NAME.
    #[arg(long, value_name = "FILE.txt")]
    pub assets: Option<PathBuf>,
    /// Let the medium erase disks that are not blank, without asking a person: any, or only the one with this serial
    /// number.
    #[arg(long, value_name = "SERIAL", num_args = 0..=1, default_missing_value = "yes")]
    arm: Option<String>,
    /// Seconds until the first entry of the menu starts by itself.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout_s: u32,
    /// Write the files for network boot (PXE, iPXE) into this directory, instead of a medium.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "release", "timeout_s", "wait"])]
    pub netboot: Option<PathBuf>,
    /// Start nothing by itself: wait in the menu for a person.
    #[arg(long, conflicts_with = "timeout_s")]
    wait: bool,
    /// Make it although the configuration cannot work: what is missing comes from the kernel command line.
    #[arg(long)]
    unchecked: bool,
    /// Recipe of the image, for a warning when nobody could log in.
    #[arg(skip)]
    pub recipe: Option<PathBuf>,
}

/// Makes a medium, or the files for network boot, as the command line says.
///
/// # Errors
/// When a file cannot be read, or a part cannot be built.
pub fn run(args: &MediaArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let out = output_file(args.out.clone().unwrap_or_else(|| paths.dist().join("media.iso")))?;
    let channel = args.channel.as_deref().unwrap_or(DEFAULT_CHANNEL);
    let keys = trusted::of(&args.keys)?;
    let offered = args.release.as_deref().map(|tree| offered(tree, channel, &keys)).transpose()?;
    if !args.unchecked {
        let wrong = "check what the machines will read (--unchecked makes it all the same)";
        let texts = site::read(args.config.as_deref(), args.assets.as_deref())?;
        let checked = texts.check().context(wrong)?;
        checked.check_no_files().context(wrong)?;
        if let Some(release) = &offered {
            checked.check_fit(&release.product, &release.hardware, &release.channel).context(wrong)?;
        }
    }
    if offered.is_some_and(|release| release.layout.is_none()) {
        eprintln!(
            "  the release has no partition layout: this medium repairs machines, and makes no blank disk a robot's"
        );
    }
    let parts = MediaParts {
        recovery: &initramfs::recovery(paths, &args.keys, assume_yes)?,
        config: args.config.as_ref().map(read).transpose()?,
        keys: &args.keys,
        assets: args.assets.as_ref().map(read).transpose()?,
        release: args.release.as_deref().map(|release| (release, channel)),
        arm: args.arm.as_deref(),
        timeout_s: (!args.wait).then_some(args.timeout_s),
    };
    named::warn_without_keys(args.recipe.as_deref());
    if let Some(disk) = &args.arm {
        let which = if disk == "yes" { "any disk that it finds".into() } else { format!("the disk {disk}") };
        eprintln!("  this medium ERASES {which}, without a question, on every machine that starts from it");
    }
    match &args.netboot {
        Some(directory) => netboot::build(&parts, directory),
        None => {
            build(paths, &parts, &out, assume_yes)?;
            let file = quoted(&out.display().to_string());
            eprintln!("  onto a USB drive: dd if={file} of=/dev/sdX bs=4M conv=fsync");
            Ok(())
        }
    }
}

/// Writes the medium to `out`.
///
/// # Errors
/// When a part is missing or wrong in itself (a configuration that cannot be read, a release that the medium's keys
/// refuse), or a tool fails.
pub fn build(paths: &Paths, parts: &MediaParts<'_>, out: &Path, assume_yes: bool) -> Result<MediaId> {
    ensure_installed(&[Need::Disk, Need::Media], assume_yes)?;
    check_texts(parts)?;
    create_parent(out)?;
    let scratch = paths.scratch("media")?;
    let tree = scratch.path().join("tree");
    let id = step("assemble the boot medium", || {
        collect(parts, &tree)?;
        let id = MediaId::new(digest_of(&tree, parts)?);
        write(&tree.join("boot/grub/medium.cfg"), settings(&id, parts))?;
        write(&tree.join(id.marker()), format!("{id}\n"))?;
        let search = scratch.path().join("early.cfg");
        write(
            &search,
            format!(
                "search --no-floppy --file --set=root /{}\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n",
                id.marker()
            ),
        )?;
        let esp = scratch.path().join("esp.img");
        make_bios(&search, scratch.path(), &tree.join("boot/grub/eltorito.img"))?;
        make_esp(&search, scratch.path(), &id, &esp)?;
        make_iso(&id, &esp, &tree, out)?;
        Ok(id)
    })?;
    let size = out.metadata().with_context(|| format!("read the size of {}", out.display()))?.len();
    produced(&format!("boot medium {id}, {}", mib(size)), out);
    Ok(id)
}

/// Puts everything but GRUB's own files below `tree`.
fn collect(parts: &MediaParts<'_>, tree: &Path) -> Result<()> {
    let own = tree.join(media::DIRECTORY);
    for directory in [tree.join("boot/grub"), own.join("keys")] {
        fs::create_dir_all(directory)?;
    }
    copy(&parts.recovery.vmlinuz, &tree.join("boot/vmlinuz"))?;
    copy(&parts.recovery.initramfs, &tree.join("boot/initramfs.img"))?;
    grub::write_script(embedded::GRUB_MEDIA_MENU, &tree.join("boot/grub/grub.cfg"))?;
    let keys = trusted::of(parts.keys)?;
    for (name, key) in trusted::named(parts.keys)? {
        copy(key, &own.join("keys").join(name))?;
    }
    if let Some(config) = &parts.config {
        write(&own.join(media::CONFIG), config)?;
    }
    if let Some(assets) = &parts.assets {
        write(&own.join(media::ASSETS), assets)?;
    }
    if let Some((release, channel)) = parts.release {
        copy_release(release, channel, &keys, &own.join(media::RELEASE))?;
    }
    Ok(())
}

/// Copies one channel's release, after a check with the keys that will check it again on the machine.
fn copy_release(from: &Path, channel: &str, keys: &TrustedKeys, to: &Path) -> Result<()> {
    let manifest = check::check(from, channel, keys)
        .with_context(|| format!("check the release of channel {channel} in {} for the medium", from.display()))?;
    let path = manifest_path(channel);
    let signature = format!("{path}.minisig");
    let objects = check::objects(from, &manifest)?;
    for path in objects.iter().map(object_path).chain([path, signature]) {
        let target = to.join(&path);
        fs::create_dir_all(target.parent().context("an object lies in a directory")?)?;
        copy(&from.join(&path), &target)?;
    }
    Ok(())
}

/// Digest of all that makes this medium what it is.
fn digest_of(tree: &Path, parts: &MediaParts<'_>) -> Result<[u8; 16]> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |name: &str, content: &[u8]| {
        for part in [name.as_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    };
    add("settings", format!("{:?} {:?}", parts.arm, parts.timeout_s).as_bytes());
    for entry in walkdir::WalkDir::new(tree).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(tree)?.to_string_lossy().into_owned();
            add(&name, &fs::read(entry.path())?);
        }
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(id)
}

/// Variables with which the menu fits this medium.
fn settings(id: &MediaId, parts: &MediaParts<'_>) -> String {
    let armed = parts.arm.map_or_else(String::new, |arm| format!("reflash.arm={arm}"));
    let timeout = parts.timeout_s.map_or(-1, i64::from);
    format!("set media_id={id}\nset armed=\"{armed}\"\nset timeout={timeout}\n")
}

fn make_bios(search: &Path, scratch: &Path, out: &Path) -> Result<()> {
    let core = scratch.join("core.img");
    grub::mkimage_with_config("i386-pc", &format!("biosdisk {MODULES}"), search, &core)?;
    // This starts from an optical drive, and finds what follows it by the boot information table.
    let mut image = fs::read("/usr/lib/grub/i386-pc/cdboot.img").context("read GRUB's cdboot.img")?;
    image.extend(fs::read(&core)?);
    write(out, image)
}

fn make_esp(search: &Path, scratch: &Path, id: &MediaId, out: &Path) -> Result<()> {
    let efi = scratch.join("BOOTX64.EFI");
    grub::mkimage_with_config("x86_64-efi", &format!("efi_gop efifwsetup {MODULES}"), search, &efi)?;
    let tool = |name: &str| {
        let mut command = Command::new(name);
        command.env("SOURCE_DATE_EPOCH", EPOCH).env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(out);
        command
    };
    let _ = fs::remove_file(out);
    let serial = &id.to_string()[..8];
    run_tool("mformat-media", tool("mformat").args(["-C", "-f", &ESP_KIB.to_string(), "-N", serial, "::"]))?;
    run_tool("mmd-media", tool("mmd").args(["::/EFI", "::/EFI/BOOT"]))?;
    run_tool("mcopy-media", tool("mcopy").arg(&efi).arg("::/EFI/BOOT/BOOTX64.EFI"))
}

fn make_iso(id: &MediaId, esp: &Path, tree: &Path, out: &Path) -> Result<()> {
    let new = out.with_added_extension("new");
    let _ = fs::remove_file(&new);
    // The first argument keeps xorriso from reading the startup files of this host and person.
    let mut command = Command::new("xorriso");
    // With this variable xorriso takes the time for all else, and makes the table's identifiers from the modification
    // date.
    command.env("SOURCE_DATE_EPOCH", EPOCH).args([
        "-no_rc",
        "-as",
        "mkisofs",
        "-r",
        "-iso-level",
        "3",
        "-V",
        media::LABEL,
    ]);
    command.args(["-volset", &id.volume_set(), &format!("--modification-date={EPOCH_DATE}")]);
    command.args(["--set_all_file_dates", EPOCH_DATE]);
    // The file system begins at a partition too, so that
    // partition editors do not take the drive for an unformatted one.
    command.args(["-partition_offset", "16", "--grub2-mbr", "/usr/lib/grub/i386-pc/boot_hybrid.img"]);
    // Some BIOSes start no disk without an active partition.
    command.args(["--mbr-force-bootable", "-append_partition", "2", "0xef"]).arg(esp).arg("-appended_part_as_gpt");
    command.args(["-c", "boot/boot.cat", "-b", "boot/grub/eltorito.img"]);
    command.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info"]);
    command.args(["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]);
    run_tool("xorriso", command.arg("-o").arg(&new).arg(tree))?;
    fs::rename(&new, out).with_context(|| format!("write {}", out.display()))
}
