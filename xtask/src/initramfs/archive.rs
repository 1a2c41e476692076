//! A reproducible cpio archive in the kernel's "newc" format (Documentation/driver-api/early-userspace/
//! buffer-format.rst): sorted, all owned by root, all from 1970, numbered from 1.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result, ensure};
use cpio::newc::Builder;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Bits of a mode that hold the file type.
const FORMAT: u32 = 0o170_000;
/// Bytes of a block, the unit in which robots look for content that they have already.
const BLOCK_BYTES: usize = 4096;

/// One file, directory, link or device of the archive.
#[derive(Debug, Clone)]
pub struct ArchiveEntry {
    /// Absolute path in the initramfs.
    pub path: String,
    /// File type and permissions.
    mode: u32,
    /// Content of a file, target of a link.
    pub content: Vec<u8>,
    /// Major and minor number of a device.
    device: (u32, u32),
}

impl ArchiveEntry {
    /// Makes the entry of a file.
    #[must_use]
    pub fn file(path: &str, content: Vec<u8>, permissions: u32) -> Self {
        Self { path: path.to_owned(), mode: FILE | permissions, content, device: (0, 0) }
    }

    /// Makes the entry of a directory.
    #[must_use]
    pub fn directory(path: &str) -> Self {
        Self { path: path.to_owned(), mode: DIRECTORY | 0o755, content: Vec::new(), device: (0, 0) }
    }

    /// Makes the entry of a symbolic link.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), mode: SYMLINK | 0o777, content: target.as_bytes().to_vec(), device: (0, 0) }
    }

    /// Makes the entry of `/dev/console`, character device 5:1 (Documentation/admin-guide/devices.txt): without it the
    /// kernel starts PID 1 with no standard input and output, and the first lines are lost.
    #[must_use]
    pub fn console() -> Self {
        let path = "/dev/console".to_owned();
        Self { path, mode: CHARACTER_DEVICE | 0o600, content: Vec::new(), device: (5, 1) }
    }
}

/// Makes one archive for each of `parts`, compressed where there is a level, back to back: the kernel unpacks them one
/// over the other, and skips the zeros between them. Each begins on a block of file systems, where robots find it again
/// when an archive before it got longer.
///
/// # Errors
/// Fails when two of them have the same file, and as [`cpio`] does.
pub fn joined(parts: Vec<Vec<ArchiveEntry>>, level: Option<i32>) -> Result<Vec<u8>> {
    let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
    for part in parts {
        for entry in part.iter().filter(|entry| entry.mode & FORMAT != DIRECTORY) {
            ensure!(seen.insert(entry.path.clone()), "{} is in two archives of the initramfs", entry.path);
        }
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
        let archive = cpio(part)?;
        match level {
            Some(level) => out.extend(zstd::bulk::compress(&archive, level).context("compress the initramfs")?),
            None => out.extend(archive),
        }
    }
    Ok(out)
}

/// Makes the uncompressed archive. Directories above an entry are added; two entries with one path must be equal.
pub fn cpio(entries: Vec<ArchiveEntry>) -> Result<Vec<u8>> {
    let mut sorted: BTreeMap<String, ArchiveEntry> = BTreeMap::new();
    for entry in entries {
        ensure!(entry.path.starts_with('/') && !entry.path.ends_with('/'), "{:?} is not an absolute path", entry.path);
        for (end, _) in entry.path.match_indices('/').skip(1) {
            let parent = &entry.path[..end];
            sorted.entry(parent.to_owned()).or_insert_with(|| ArchiveEntry::directory(parent));
        }
        if let Some(other) = sorted.get(&entry.path) {
            let same = other.mode == entry.mode && other.content == entry.content;
            ensure!(same, "{} is in the archive twice with different content", entry.path);
        }
        sorted.insert(entry.path.clone(), entry);
    }
    let mut archive = Vec::new();
    for (number, (path, entry)) in (1..).zip(&sorted) {
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(entry.content.len()).with_context(|| format!("{path} is larger than 4 GiB"))?;
        let mut writer = Builder::new(path.trim_start_matches('/'))
            .ino(number)
            .mode(entry.mode)
            .nlink(links)
            .rdev_major(entry.device.0)
            .rdev_minor(entry.device.1)
            .write(&mut archive, size);
        writer.write_all(&entry.content)?;
        writer.finish()?;
    }
    cpio::newc::trailer(&mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::{ArchiveEntry, cpio, joined};
    use std::process::{Command, Stdio};

    #[test]
    fn the_order_of_entries_does_not_matter_and_parents_come_first() {
        let entries = vec![
            ArchiveEntry::file("/a/b/c", b"x".to_vec(), 0o644),
            ArchiveEntry::console(),
            ArchiveEntry::directory("/a"),
        ];
        let mut reversed = entries.clone();
        reversed.reverse();
        let archive = cpio(entries).unwrap();
        assert_eq!(archive, cpio(reversed).unwrap());
        let mut names = Vec::new();
        let mut rest = &archive[..];
        while let Ok(reader) = cpio::newc::Reader::new(rest) {
            if reader.entry().is_trailer() {
                break;
            }
            names.push(format!("{} {:o}", reader.entry().name(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(names, ["a 40755", "a/b 40755", "a/b/c 100644", "dev 40755", "dev/console 20600"]);
    }

    #[test]
    fn archives_that_did_not_change_keep_their_bytes_on_whole_blocks() {
        let part = |path: &str, byte: u8, count| vec![ArchiveEntry::file(path, vec![byte; count], 0o644)];
        let of = |agent: u8| {
            joined(vec![part("/lib/a", 1, 9), part("/lib/b", agent, 900), part("/c", 3, 9)], Some(1)).unwrap()
        };
        let (one, other) = (of(1), of(2));
        assert!(one[..4096] == other[..4096] && one[4096..8192] != other[4096..8192] && one[8192..] == other[8192..]);
        let unpacked = zstd::decode_all(&one[8192..]).unwrap();
        assert_eq!(unpacked, cpio(part("/c", 3, 9)).unwrap());
        let plain = joined(vec![part("/lib/a", 1, 9), part("/c", 3, 9)], None).unwrap();
        assert_eq!(plain[4096..], cpio(part("/c", 3, 9)).unwrap());
        let error = joined(vec![part("/a", 1, 1), part("/a", 1, 1)], Some(1)).unwrap_err().to_string();
        assert!(error.contains("/a is in two"), "{error}");
    }

    #[test]
    fn conflicts_and_relative_paths_are_refused() {
        assert!(cpio(vec![ArchiveEntry::file("a", Vec::new(), 0o644)]).is_err());
        let twice =
            vec![ArchiveEntry::file("/a", b"1".to_vec(), 0o644), ArchiveEntry::file("/a", b"2".to_vec(), 0o644)];
        assert!(cpio(twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    #[ignore = "needs root: to install cpio; cargo xtask test --tier root"]
    fn the_cpio_tool_lists_the_archive() {
        let archive =
            cpio(vec![ArchiveEntry::file("/etc/x", b"hello".to_vec(), 0o600), ArchiveEntry::symlink("/l", "etc/x")])
                .unwrap();
        let mut child = Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &archive).unwrap();
        let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(text.contains("etc/x") && text.contains("l -> etc/x"), "{text}");
    }
}
