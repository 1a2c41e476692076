//! The marks of a boot script: checksums of itself, and of the kernel and initramfs of its slot, by which GRUB's first
//! script knows that none of them has lost a block. Pure but for the files that it reads and writes.
//!
//! ```text
//! sector 0   a comment, `if false; then`
//! sector 1   CRC-32 of sector 0, and of sector 2 and all that follows
//! sector 2   CRC-32 of the kernel, and of the initramfs
//! sector 3   `fi`, the script
//! ```
//! Sectors 1 and 2 are lists as GRUB's `crc --check` reads them, and to GRUB's script language commands that are never
//! carried out: a loader that knows nothing of marks sources the file as it is. A file of its own for the sums would be
//! lost where an older agent renews a slot, or stay behind there with the sums of other files.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use crc::{CRC_32_ISO_HDLC, Crc};

/// Bytes of a sector, as GRUB counts.
const SECTOR: usize = 512;
/// Sectors before the script.
const MARKS: usize = 3;
/// Begin of the first sector; a comment fills it up to its last line.
const HEAD: &str = "# Checksums, which grub/README.md explains: a change in here makes GRUB use the other slot.\n#";
/// Last line of the first sector.
const NEVER: &str = "\nif false; then\n";

/// Names of the loopback devices that the first script makes of the files.
const DEVICES: [&str; 3] = ["script", "kernel", "initramfs"];

/// Writes the script `plain` to `out` with the marks of this kernel and initramfs.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write_marked(plain: &Path, kernel: &Path, initramfs: &Path, out: &Path) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let script = marked(&read(plain)?, &read(kernel)?, &read(initramfs)?)?;
    std::fs::write(out, script).with_context(|| format!("write {}", out.display()))
}

/// Returns the script with its marks.
///
/// # Errors
/// When the sums do not fit into their sectors, which takes files of a size that no kernel has.
pub fn marked(plain: &[u8], kernel: &[u8], initramfs: &[u8]) -> Result<Vec<u8>> {
    let head = format!("{HEAD}{:#<1$}{NEVER}", "", SECTOR - HEAD.len() - NEVER.len());
    let files = list(&[sum(DEVICES[1], 0, kernel), sum(DEVICES[2], 0, initramfs)])?;
    let rest = [files.as_bytes(), b"fi\n", plain].concat();
    let own = list(&[sum(DEVICES[0], 0, head.as_bytes()), sum(DEVICES[0], 2, &rest)])?;
    let script = [head.as_bytes(), own.as_bytes(), &rest].concat();
    ensure!(script.len() == MARKS * SECTOR + 3 + plain.len(), "the marks of the boot script have another size");
    Ok(script)
}

/// Returns a line of a list: the checksum of `content`, which lies in whole sectors from `sector` on.
pub(crate) fn sum(device: &str, sector: usize, content: &[u8]) -> String {
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut digest = crc.digest();
    digest.update(content);
    // To GRUB a file that a device is made of ends in zeros.
    digest.update(&vec![0; content.len().next_multiple_of(SECTOR) - content.len()]);
    format!("{:08x}  ({device}){sector}+{}\n", digest.finalize(), content.len().div_ceil(SECTOR))
}

/// Fills a sector with lines. GRUB skips blanks at the beginning of one, and nowhere else.
fn list(lines: &[String]) -> Result<String> {
    let text = lines.concat();
    ensure!(text.len() <= SECTOR, "the checksums of the boot script take {} bytes of {SECTOR}", text.len());
    Ok(format!("{text:>SECTOR$}"))
}

#[cfg(test)]
mod tests {
    use super::{SECTOR, marked, sum};

    #[test]
    fn the_lists_fill_their_sectors_and_the_script_follows() {
        let script = marked(b"set script=2\n", &[1; 1000], &[2; 512]).unwrap();
        let sector = |at: usize| std::str::from_utf8(&script[at * SECTOR..(at + 1) * SECTOR]).unwrap();
        assert!(sector(0).starts_with("# ") && sector(0).ends_with("#\nif false; then\n"));
        assert!(sector(1).starts_with(' ') && sector(1).ends_with("  (script)2+2\n"), "{}", sector(1));
        assert_eq!(sector(2).trim_start().lines().count(), 2);
        assert!(sector(2).contains("  (kernel)0+2\n") && sector(2).ends_with("  (initramfs)0+1\n"));
        assert_eq!(script[3 * SECTOR..], *b"fi\nset script=2\n");
    }

    #[test]
    fn sums_are_those_of_whole_sectors() {
        // What `head -c 512 /dev/zero | crc32` prints.
        assert_eq!(sum("x", 1, &[0; 10]), "b2aa7578  (x)1+1\n");
    }
}
