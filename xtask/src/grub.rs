//! GRUB's images, made with grub-mkimage.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::embedded;
use crate::host_packages::{Need, ensure_installed};
use crate::initramfs::archive::{self, ArchiveEntry};
use crate::paths::{Paths, create_dir};
use crate::step::{produced, run, step};

/// Where GRUB finds its loader of boot scripts, relative to the disk it was loaded from: the recovery partition.
const PREFIX: &str = "(,gpt4)/grub";
/// Prefix on MBR disks, whose recovery partition has another number.
const PREFIX_MBR: &str = "(,msdos2)/grub";

/// Modules of everything that the scripts in `grub/` use, and of what a person needs at GRUB's prompt. No module is
/// loaded from a disk later.
const MODULES: &str = "part_gpt part_msdos ext2 fat search search_label search_fs_uuid search_fs_file normal configfile \
    echo test loadenv serial terminal linux minicmd reboot halt sleep cat ls probe regexp smbios true all_video boot";

/// Modules that only the first script uses.
const FIRST_MODULES: &str = "loopback memdisk newc hashsum gcry_crc";

/// First commands of an image. GRUB carries them out with a parser that knows neither `if` nor functions, so they lead
/// to the script in the archive that the image holds. That script ends in a menu or a restart.
const FIRST_COMMANDS: &str = "normal (memdisk)/first.cfg\n";

/// Checksums of the two boot scripts that were in use before scripts had marks. To the first script they are whole
/// too.
const UNMARKED_SCRIPTS: [&str; 2] = ["9116f360  (script)0+13\n", "cee36e18  (script)0+12\n"];

/// GRUB's images and scripts, by their paths.
#[derive(Debug, Clone)]
pub struct GrubImages {
    /// First sector for BIOS machines; patched when it is installed.
    pub boot: PathBuf,
    /// Core image that the first sector loads, from the BIOS boot partition.
    pub core: PathBuf,
    /// Core image for MBR disks, whose recovery partition has another number.
    pub core_mbr: PathBuf,
    /// The whole of GRUB for UEFI machines.
    pub efi: PathBuf,
    /// The loader of boot scripts, written once.
    pub loader: PathBuf,
    /// The boot script of a slot, which releases renew.
    pub script: PathBuf,
}

/// Makes the images.
///
/// # Errors
/// When GRUB's tools are missing or fail.
pub fn build(paths: &Paths, assume_yes: bool) -> Result<GrubImages> {
    build_in(&paths.dist().join("grub"), assume_yes)
}

/// Makes the images in the directory `dist`.
///
/// # Errors
/// When GRUB's tools are missing or fail.
pub fn build_in(dist: &Path, assume_yes: bool) -> Result<GrubImages> {
    ensure_installed(&[Need::Disk], assume_yes)?;
    create_dir(dist)?;
    let images = GrubImages {
        boot: dist.join("boot.img"),
        core: dist.join("core.img"),
        core_mbr: dist.join("core-mbr.img"),
        efi: dist.join("BOOTX64.EFI"),
        loader: dist.join("grub.cfg"),
        script: dist.join("slot.cfg"),
    };
    step("make GRUB's images", || {
        write_script(embedded::GRUB_LOADER, &images.loader)?;
        write_script(embedded::GRUB_SLOT_SCRIPT, &images.script)?;
        std::fs::copy("/usr/lib/grub/i386-pc/boot.img", &images.boot).context("copy GRUB's boot.img")?;
        let first = FirstScript::write(dist)?;
        first.image("i386-pc", "biosdisk", PREFIX, &images.core)?;
        first.image("i386-pc", "biosdisk", PREFIX_MBR, &images.core_mbr)?;
        first.image("x86_64-efi", "efi_gop efifwsetup", PREFIX, &images.efi)
    })?;
    produced("GRUB", dist);
    Ok(images)
}

/// The first script as GRUB's images take it.
struct FirstScript {
    commands: PathBuf,
    archive: PathBuf,
}

impl FirstScript {
    fn write(dist: &Path) -> Result<Self> {
        write_script(embedded::GRUB_FIRST_SCRIPT, &dist.join("first.cfg"))?;
        let first = Self { commands: dist.join("first-commands.cfg"), archive: dist.join("first.cpio") };
        std::fs::write(&first.commands, FIRST_COMMANDS).context("write GRUB's first commands")?;
        let files = first_files(embedded::GRUB_FIRST_SCRIPT);
        let files = files.map(|(path, content)| ArchiveEntry::file(path, content.into(), 0o644));
        std::fs::write(&first.archive, archive::cpio(files.into())?).context("write GRUB's first script")?;
        Ok(first)
    }

    fn image(&self, format: &str, own: &str, prefix: &str, out: &Path) -> Result<()> {
        let text =
            |path: &'_ Path| path.to_str().map(str::to_owned).context("the path of GRUB's first script is not text");
        let (archive, commands) = (text(&self.archive)?, text(&self.commands)?);
        // The prefix comes after the archive, which brings one of its own.
        let options = ["-m", &archive, "-c", &commands, "-p", prefix];
        grub_mkimage(format, &format!("{own} {FIRST_MODULES}"), &options, out)
    }
}

/// Returns what the archive inside GRUB's images holds: the first script, and what it knows of boot scripts without
/// marks.
pub(crate) fn first_files(script: &str) -> [(&'static str, String); 3] {
    let [first, second] = UNMARKED_SCRIPTS.map(str::to_owned);
    [("/first.cfg", script.to_owned()), ("/unmarked-1", first), ("/unmarked-2", second)]
}

/// Writes a script, checked by GRUB's own parser.
///
/// # Errors
/// When the script cannot be written, or is none that GRUB reads.
pub fn write_script(text: &str, to: &Path) -> Result<()> {
    std::fs::write(to, text).with_context(|| format!("write {}", to.display()))?;
    run("grub-script-check", Command::new("grub-script-check").arg(to))
}

/// Makes a GRUB whose first commands are those of the file `config`, for media that have no fixed place on a
/// disk.
///
/// # Errors
/// When GRUB's tools are missing or fail.
pub fn mkimage_with_config(format: &str, own: &str, config: &Path, out: &Path) -> Result<()> {
    let config = config.to_str().context("the path of GRUB's first commands is not text")?;
    grub_mkimage(format, own, &["-p", "/boot/grub", "-c", config], out)
}

fn grub_mkimage(format: &str, own: &str, prefix: &[&str], out: &Path) -> Result<()> {
    let new = out.with_added_extension("new");
    let mut command = Command::new("grub-mkimage");
    command.args(["-O", format, "-d", &format!("/usr/lib/grub/{format}")]).args(prefix).arg("-o").arg(&new);
    let modules = MODULES.split_whitespace().chain(own.split_whitespace());
    run(&format!("grub-mkimage-{format}"), command.args(modules))?;
    Ok(std::fs::rename(new, out)?)
}

/// Reads a file by GRUB's own file system code: it replays no journal and checks no checksum. `path` may name a
/// partition of the disk image, as in `(loop0,gpt3)/grubenv`. `None`: GRUB cannot read it.
///
/// # Errors
/// When that code crashes.
pub fn read_file(image: &Path, path: &str) -> Result<Option<Vec<u8>>> {
    ask(image, "cat", path)
}

/// Returns where GRUB would read a file from: ranges of bytes of the image, in the order of the file. `None` means
/// that GRUB finds no such file, or an empty one.
///
/// # Errors
/// When that code crashes, or prints something else than a list of blocks.
pub fn file_ranges(image: &Path, path: &str) -> Result<Option<Vec<Range<u64>>>> {
    let Some(list) = ask(image, "blocklist", path)? else { return Ok(None) };
    let list = String::from_utf8_lossy(&list);
    let ranges = list.trim().split(',').filter(|part| !part.is_empty()).map(|part| {
        parse_extent(part).with_context(|| format!("GRUB says that {path} is at {list:?}, which is no list of blocks"))
    });
    let ranges: Vec<_> = ranges.collect::<Result<_>>()?;
    // grub-fstest prints nothing for a file that it does not find, and ends with success.
    Ok(Some(ranges).filter(|ranges| !ranges.is_empty()))
}

/// `1234+8` are eight sectors of 512 bytes from number 1234 on, `1242[0-318]` the first 318 bytes of one (GRUB's
/// grub-core/commands/blocklist.c).
fn parse_extent(text: &str) -> Option<Range<u64>> {
    let in_sector = text.strip_suffix(']').and_then(|text| text.split_once('['));
    let (sector, from, to) = match in_sector {
        Some((sector, bytes)) => {
            let (from, to) = bytes.split_once('-')?;
            (sector, from.parse().ok()?, to.parse().ok()?)
        }
        None => {
            let (sector, count) = text.split_once('+')?;
            (sector, 0, count.parse::<u64>().ok()? * 512)
        }
    };
    let start = sector.parse::<u64>().ok()? * 512;
    Some(start + from..start + to)
}

fn ask(image: &Path, what: &str, path: &str) -> Result<Option<Vec<u8>>> {
    let read = Command::new("grub-fstest").arg(image).args([what, path]).output().context("start grub-fstest")?;
    let code = read.status.code().with_context(|| format!("GRUB crashes on {path} of {}", image.display()))?;
    Ok(Some(read.stdout).filter(|_| code == 0))
}

#[cfg(test)]
mod tests {
    use super::parse_extent;

    #[test]
    fn lists_of_blocks_are_sectors_and_parts_of_one() {
        assert_eq!(parse_extent("18544+16107"), Some(9_494_528..17_741_312));
        assert_eq!(parse_extent("34651[0-448]"), Some(17_741_312..17_741_760));
        for wrong in ["", "1", "1+", "+1", "1[0-", "1[0]", "1[a-2]", "(loop0)1+2"] {
            assert_eq!(parse_extent(wrong), None, "{wrong:?}");
        }
    }
}
