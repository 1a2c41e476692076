//! Network boot: what a TFTP or HTTP server needs so that machines start the agent from the network.
//!
//! Configuration and keys travel in an archive of their own, which the boot loader hands to the kernel behind the
//! initramfs: the kernel unpacks one over the other.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use reflash::machine::media::{self, MediaId};

use super::parts::{MediaParts, check_texts, copy, write};
use crate::initramfs::archive::{ArchiveEntry, cpio};
use crate::step::{produced, step};
use crate::trusted;

/// Directory of the initramfs for what a site adds to it.
const SITE: &str = "/etc/reflash";

/// Writes the files for network boot into the directory `out`.
///
/// # Errors
/// When the configuration is missing or wrong, or a file cannot be written.
pub fn build(parts: &MediaParts<'_>, out: &Path) -> Result<()> {
    check_texts(parts)?;
    let config = parts
        .config
        .as_ref()
        .context("a network boot has no other source of the configuration: give --config reflash.toml")?;
    ensure!(parts.release.is_none(), "a network boot carries no release: its machines fetch one from release.urls");
    step("collect what a network boot needs", || {
        fs::create_dir_all(out.join("pxelinux.cfg"))?;
        copy(&parts.recovery.vmlinuz, &out.join("vmlinuz"))?;
        let initramfs = &parts.recovery.initramfs;
        let initramfs = fs::read(initramfs).with_context(|| format!("read {}", initramfs.display()))?;
        write(&out.join("initramfs.img"), aligned(initramfs))?;
        let file = |name: &str, content: Vec<u8>| ArchiveEntry::file(&format!("{SITE}/{name}"), content, 0o644);
        let mut entries = vec![ArchiveEntry::directory("/etc"), ArchiveEntry::directory(SITE)];
        entries.push(file(media::CONFIG, config.clone().into_bytes()));
        entries.push(ArchiveEntry::directory(&format!("{SITE}/{}", media::KEYS)));
        for (name, key) in trusted::named(parts.keys)? {
            let content = fs::read(key).with_context(|| format!("read {}", key.display()))?;
            entries.push(file(&format!("{}/{name}", media::KEYS), content));
        }
        if let Some(assets) = &parts.assets {
            entries.push(file(media::ASSETS, assets.clone().into_bytes()));
        }
        write(&out.join("site.cpio"), cpio(entries)?)?;
        let arguments = arguments(parts.arm, &origin(out, parts)?);
        write(&out.join("boot.ipxe"), ipxe(&arguments))?;
        write(&out.join("pxelinux.cfg/default"), pxelinux(&arguments))
    })?;
    produced("files for network boot", out);
    Ok(())
}

/// Pads an archive to a multiple of four bytes. The kernel's own loader under UEFI puts one archive right behind the
/// other, and its unpacker takes no archive that does not begin on four bytes; zeros between them are skipped (Linux'
/// init/initramfs.c, `unpack_to_rootfs`).
fn aligned(mut archive: Vec<u8>) -> Vec<u8> {
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive
}

/// Identity of these files, made like that of a medium, so that a disk can name what made it.
fn origin(out: &Path, parts: &MediaParts<'_>) -> Result<MediaId> {
    let mut hasher = blake3::Hasher::new();
    for name in ["vmlinuz", "initramfs.img", "site.cpio"] {
        hasher.update(blake3::hash(&fs::read(out.join(name))?).as_bytes());
    }
    hasher.update(format!("{:?}", parts.arm).as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(MediaId::new(id))
}

fn arguments(arm: Option<&str>, origin: &MediaId) -> String {
    let arm = arm.map_or_else(String::new, |arm| format!(" reflash.arm={arm}"));
    format!("console=tty0 console=ttyS0,115200 quiet panic=30 reflash.action=provision reflash.origin={origin}{arm}")
}

/// Script for iPXE. Its `initrd=` is for the kernel's own loader under UEFI, and means nothing under a BIOS.
fn ipxe(arguments: &str) -> String {
    format!(
        "#!ipxe\n\
         # Start machines with this once: afterwards they start from their own disk.\n\
         kernel vmlinuz initrd=initramfs.img initrd=site.cpio {arguments}\n\
         initrd initramfs.img\n\
         initrd site.cpio\n\
         boot\n"
    )
}

fn pxelinux(arguments: &str) -> String {
    format!(
        "DEFAULT provision\nLABEL provision\n  KERNEL vmlinuz\n  INITRD initramfs.img,site.cpio\n  APPEND {arguments}\n"
    )
}
