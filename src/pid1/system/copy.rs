//! Copies a directory with what an overlay keeps in it: owners, permissions, links, and marks of what was deleted.
//!
//! The source is a damaged file system. What cannot be read is left out, and counted.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::sys::files;

/// Deepest directory that is copied: damage can make a directory contain itself.
const MAX_DEPTH: usize = 64;
/// Most names of a directory that are looked at.
const MAX_NAMES: usize = 100_000;

/// Room that a copy may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub bytes: u64,
    pub files: u64,
}

/// What became of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Files, links and directories that were copied.
    pub files: u64,
    /// Files that could not be read or written.
    pub failed: u64,
    /// Files for which there was no room.
    pub too_large: u64,
}

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// It makes way.
    Replace,
    /// It stays: it may be newer than the copy.
    Keep,
}

/// A file to be copied, by its path below the directory.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    metadata: fs::Metadata,
}

/// Copies what lies below `from` into `to`, the small files first. Paths for which `leaves_out` is true are left out
/// with all below them. A file is whole under its name, or not there.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    existing: Existing,
    room: &mut Room,
    leaves_out: impl Fn(&Path) -> bool,
) -> io::Result<Copied> {
    let mut copied = Copied::default();
    let mut found = Vec::new();
    find(from, Path::new(""), &leaves_out, &mut found, &mut copied, MAX_DEPTH);
    let (directories, mut others): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|one| one.metadata.is_dir());
    others.sort_by_key(|one| one.metadata.len());
    fs::create_dir_all(to)?;
    // Directories come in the order in which they were found: each after the one that it lies in.
    for one in directories.iter().chain(&others) {
        let size = if one.metadata.is_file() { one.metadata.len() } else { 0 };
        // A file takes whole blocks.
        let Some((bytes, files)) =
            room.bytes.checked_sub(size.next_multiple_of(4096).max(4096)).zip(room.files.checked_sub(1))
        else {
            copied.too_large += 1;
            continue;
        };
        let place = to.join(&one.path);
        if existing == Existing::Keep && fs::symlink_metadata(&place).is_ok() {
            continue;
        }
        match copy_one(&from.join(&one.path), &place, &one.metadata) {
            Ok(()) => {
                (room.bytes, room.files) = (bytes, files);
                copied.files += 1;
            }
            Err(_) => copied.failed += 1,
        }
    }
    Ok(copied)
}

fn find(
    from: &Path,
    below: &Path,
    leaves_out: &impl Fn(&Path) -> bool,
    found: &mut Vec<Found>,
    copied: &mut Copied,
    depth: usize,
) {
    let Ok(entries) = fs::read_dir(from.join(below)) else {
        copied.failed += 1;
        return;
    };
    for entry in entries.take(MAX_NAMES) {
        let Ok(entry) = entry else {
            copied.failed += 1;
            // A directory that cannot be read goes on giving the same error.
            return;
        };
        let path = below.join(entry.file_name());
        if leaves_out(&path) {
            continue;
        }
        if found.len() >= MAX_NAMES {
            copied.too_large += 1;
            continue;
        }
        let Ok(metadata) = from.join(&path).symlink_metadata() else {
            copied.failed += 1;
            continue;
        };
        let goes_down = metadata.is_dir() && depth > 0;
        found.push(Found { path: path.clone(), metadata });
        if goes_down {
            find(from, &path, leaves_out, found, copied, depth - 1);
        }
    }
}

fn copy_one(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let (owner, group) = (Some(metadata.uid()), Some(metadata.gid()));
    // What was left of an earlier copy makes way.
    if !kind.is_dir() {
        let _ = fs::remove_file(to);
    }
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, owner, group);
    }
    if kind.is_char_device() && metadata.rdev() == 0 {
        return files::make_whiteout(to);
    }
    if kind.is_dir() {
        if !to.is_dir() {
            fs::create_dir(to)?;
        }
        files::copy_overlay_marks(from, to)?;
    } else if kind.is_file() {
        return copy_file(from, to, metadata);
    } else {
        // Sockets and pipes are made by whatever uses them.
        return Ok(());
    }
    chown(to, owner, group)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

/// Copies a file under another name and renames it: a cut leaves none that is not whole.
fn copy_file(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let new = to.with_added_extension("reflash-new");
    let _ = fs::remove_file(&new);
    let copy = || {
        let mut target = fs::File::create_new(&new)?;
        io::copy(&mut files::open(from)?, &mut target)?;
        chown(&new, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        target.sync_data()?;
        fs::rename(&new, to)
    };
    copy().inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::{Copied, Existing, Room, copy};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    const PLENTY: Room = Room { bytes: 1 << 30, files: 1000 };

    #[test]
    fn what_is_readable_is_copied_with_its_permissions_the_small_files_first() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir_all(from.join("cache/x")).unwrap();
        fs::write(from.join("a/b/small"), "small").unwrap();
        fs::write(from.join("a/large"), vec![1; 100_000]).unwrap();
        fs::set_permissions(from.join("a/b/small"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("/etc/passwd", from.join("a/link")).unwrap();
        let leaves_out = |path: &Path| path == Path::new("cache");
        let copied = copy(&from, &to, Existing::Replace, &mut PLENTY.clone(), leaves_out).unwrap();
        assert_eq!(copied, Copied { files: 5, ..Copied::default() });
        assert_eq!(fs::read_to_string(to.join("a/b/small")).unwrap(), "small");
        assert_eq!(to.join("a/b/small").metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(to.join("a/b").metadata().unwrap().permissions().mode() & 0o777, 0o711);
        assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("/etc/passwd"));
        assert!(!to.join("cache").exists());
        // Again over what is there, as after a power cut.
        assert_eq!(copy(&from, &to, Existing::Replace, &mut PLENTY.clone(), leaves_out).unwrap(), copied);
        // What was changed since stays, and what is missing comes back.
        fs::write(to.join("a/b/small"), "newer").unwrap();
        fs::remove_file(to.join("a/large")).unwrap();
        copy(&from, &to, Existing::Keep, &mut PLENTY.clone(), leaves_out).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/b/small")).unwrap(), "newer");
        assert_eq!(fs::read(to.join("a/large")).unwrap().len(), 100_000);
        let mut little = Room { bytes: 40_000, files: 1000 };
        let copied = copy(&from, &dir.path().join("little"), Existing::Replace, &mut little, leaves_out).unwrap();
        assert_eq!((copied.files, copied.too_large), (4, 1));
        assert!(
            copy(&dir.path().join("none"), &to, Existing::Replace, &mut PLENTY.clone(), leaves_out)
                .is_ok_and(|it| it.failed == 1)
        );
    }
}
