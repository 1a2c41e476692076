//! The reserve of a data partition: inodes and blocks that the first step of the system's boot can free.
//!
//! An overlay cannot be mounted on a file system without a free inode, and the machine's own settings are such an
//! overlay. ext4 keeps blocks back for root, which the services of a robot often are; of inodes it keeps none. So some
//! empty files and two with content lie in a directory of their own. The release's template of the data partition has
//! them; on a partition that was made before, the first boot with room makes them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::sys::ext4::{self, Free};
use crate::sys::files::put_aside;

/// Directory of the reserve, on the data partition.
pub const DIRECTORY: &str = "reserve";
/// Free inodes below which the reserve is used: an overlay takes some at each mount, and gives most of them back.
const LEAST_INODES: u64 = 16;
/// Free bytes below which the reserve is used.
const LEAST_BYTES: u64 = 256 * 1024;
/// Free inodes from which on the whole reserve is made again: it must not take the last ones.
const PLENTY_INODES: u64 = 512;
/// Free bytes from which on the whole reserve is made again.
const PLENTY_BYTES: u64 = 16 << 20;

/// A file of the reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveFile {
    /// Name in the directory of the reserve.
    pub name: String,
    /// Size of the file, bytes. The content is not zeros, of which a file system may keep a note only.
    pub size_bytes: usize,
    /// Whether it is made again at once after the first step, so that the next boot has what its overlay needs. The
    /// others stay with the system until there is plenty again.
    pub is_for_mounts: bool,
}

/// The files of the reserve.
#[must_use]
pub fn files() -> Vec<ReserveFile> {
    let inode =
        |number: usize| ReserveFile { name: format!("inode-{number:02}"), size_bytes: 0, is_for_mounts: number < 8 };
    let room = |name: &str, size_bytes, is_for_mounts| ReserveFile { name: name.into(), size_bytes, is_for_mounts };
    let mut files: Vec<ReserveFile> = (0..32).map(inode).collect();
    files.push(room("room-small", 64 * 1024, true));
    files.push(room("room", 1 << 20, false));
    files
}

/// Content of a file of the reserve.
#[must_use]
pub fn content(file: &ReserveFile) -> Vec<u8> {
    vec![0xff; file.size_bytes]
}

/// Whether a file system with so much free needs its reserve.
#[must_use]
pub fn is_needed(free: Free) -> bool {
    free.inodes < LEAST_INODES || free.bytes < LEAST_BYTES
}

/// Whether a file system with so much free can spare the whole reserve.
#[must_use]
pub fn is_plenty(free: Free) -> bool {
    free.inodes >= PLENTY_INODES && free.bytes >= PLENTY_BYTES
}

/// Frees the reserve of the data partition mounted on `data`, if that is full. Returns what was free before, if it was.
///
/// # Errors
/// The file system's.
pub fn release_if_full(data: &Path) -> io::Result<Option<Free>> {
    let free = ext4::free(data)?;
    if !is_needed(free) {
        return Ok(None);
    }
    for path in present(data) {
        // A file that is not there gives nothing; the others do.
        let _ = fs::remove_file(path);
    }
    Ok(Some(free))
}

/// Makes what is missing of the reserve, as far as there is room: what the next boot needs at least, and all of it
/// where there is plenty.
///
/// # Errors
/// The file system's: it is full. What could be made stays.
pub fn restore(data: &Path) -> io::Result<()> {
    let directory = data.join(DIRECTORY);
    let found = directory.symlink_metadata();
    if !found.as_ref().is_ok_and(fs::Metadata::is_dir) {
        // A file, or a link that would have the reserve take the room of another place.
        if found.is_ok() {
            put_aside(&directory)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
    }
    let plenty = is_plenty(ext4::free(data)?);
    for file in files().iter().filter(|file| file.is_for_mounts || plenty) {
        let path = directory.join(&file.name);
        let is_whole =
            path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == file.size_bytes as u64);
        if !is_whole {
            let made = make(&path, &content(file));
            if made.is_err() {
                let _ = fs::remove_file(&path);
            }
            made?;
        }
    }
    Ok(())
}

fn make(path: &Path, content: &[u8]) -> io::Result<()> {
    // Whatever lies there instead, it is not followed.
    let _ = fs::remove_file(path);
    let mut file = fs::File::create_new(path)?;
    file.write_all(content)?;
    // The blocks are given out when the content is written, and that is when a full file system says so.
    if content.is_empty() { Ok(()) } else { file.sync_data() }
}

fn present(data: &Path) -> Vec<PathBuf> {
    let directory = data.join(DIRECTORY);
    // Not through a link, which could lead to what the machine owns.
    if !directory.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Vec::new();
    }
    files().into_iter().map(|file| directory.join(file.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::{DIRECTORY, Free, files, is_needed, is_plenty, present, restore};
    use std::fs;

    #[test]
    fn the_reserve_is_used_when_either_is_short_and_made_when_both_are_there() {
        let free = |inodes, bytes| Free { inodes, bytes };
        assert!(is_needed(free(0, 1 << 30)) && is_needed(free(1 << 20, 0)) && !is_needed(free(100, 1 << 20)));
        assert!(is_plenty(free(1 << 20, 1 << 30)) && !is_plenty(free(15, 1 << 30)) && !is_plenty(free(1 << 20, 0)));
        // Making it must not make it needed.
        let inodes = files().len() as u64;
        let bytes: u64 = files().iter().map(|file| file.size_bytes as u64).sum();
        assert!(!is_needed(free(super::PLENTY_INODES - inodes, super::PLENTY_BYTES - bytes)));
    }

    #[test]
    fn what_is_missing_or_cut_is_made_again_and_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        restore(dir.path()).unwrap();
        let directory = dir.path().join(DIRECTORY);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), files().len());
        fs::write(directory.join("room"), "cut").unwrap();
        fs::remove_file(directory.join("inode-03")).unwrap();
        fs::write(dir.path().join("victim"), "precious").unwrap();
        fs::remove_file(directory.join("room-small")).unwrap();
        std::os::unix::fs::symlink("../victim", directory.join("room-small")).unwrap();
        restore(dir.path()).unwrap();
        for file in files() {
            let found = directory.join(&file.name).symlink_metadata().unwrap();
            assert!(found.is_file() && found.len() == file.size_bytes as u64, "{}", file.name);
        }
        assert_eq!(fs::read_to_string(dir.path().join("victim")).unwrap(), "precious");
        fs::rename(&directory, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &directory).unwrap();
        assert!(present(dir.path()).is_empty());
        // A link or a file in its place makes way.
        for number in 0..2 {
            restore(dir.path()).unwrap();
            assert_eq!(present(dir.path()).len(), files().len());
            assert!(dir.path().join(format!("{DIRECTORY}.odd{number}")).symlink_metadata().is_ok());
            fs::remove_dir_all(&directory).unwrap();
            fs::write(&directory, "x").unwrap();
        }
    }
}
