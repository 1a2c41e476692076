//! Deletion of trees and files that need not be there, whatever flags they have.

use std::fs::{self, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{IFlags, OFlags, ioctl_getflags, ioctl_setflags};
use walkdir::WalkDir;

/// Flags of `chattr` by which a file cannot be changed or deleted, not even by root.
const HOLDING: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Deletes a tree that the builder made, if it is there.
///
/// # Errors
/// Fails when something in it cannot be deleted.
pub fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // What a command of a recipe has protected would be in the way of every later build.
            free(path);
            fs::remove_dir_all(path)
        }
        removed => removed,
    };
    unless_missing(removed, path)
}

/// Deletes a file that the builder made, if it is there.
///
/// # Errors
/// Fails when the file cannot be deleted.
pub fn remove_file(path: &Path) -> Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            free(path);
            fs::remove_file(path)
        }
        removed => removed,
    };
    unless_missing(removed, path)
}

fn unless_missing(removed: Result<(), Error>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the flags by which nobody can change a file from all that is in a tree, and returns the paths that had them.
/// An image cannot carry them. File systems without such flags have none to take.
pub fn free(tree: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(tree).same_file_system(true).into_iter().filter_map(Result::ok);
    let files = entries.filter(|entry| entry.file_type().is_dir() || entry.file_type().is_file());
    files.filter(|entry| free_one(entry.path()).is_some()).map(walkdir::DirEntry::into_path).collect()
}

fn free_one(path: &Path) -> Option<()> {
    let flags = i32::try_from(OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let flags = ioctl_getflags(&file).ok().filter(|flags| flags.intersects(HOLDING))?;
    ioctl_setflags(&file, flags.difference(HOLDING)).ok()
}

#[cfg(test)]
mod tests {
    use super::{free, remove_file, remove_tree};
    use std::fs;
    use std::process::Command;

    /// Protects a file as a recipe may; `false` where the file system or a missing privilege does not let it.
    fn protect(path: &std::path::Path, flag: &str) -> bool {
        Command::new("chattr").arg(flag).arg(path).status().is_ok_and(|status| status.success())
    }

    #[test]
    #[ignore = "needs root: to protect files; cargo xtask test --tier root"]
    fn what_a_command_has_protected_is_no_obstacle() {
        let work = tempfile::tempdir_in(".").unwrap();
        let at = |path: &str| work.path().join(path);
        fs::create_dir_all(at("tree/etc/d")).unwrap();
        for path in ["tree/etc/hosts", "tree/etc/d/log", "file"] {
            fs::write(at(path), "").unwrap();
        }
        for (path, flag) in [("tree/etc/hosts", "+i"), ("tree/etc/d/log", "+a"), ("tree/etc/d", "+i"), ("file", "+i")] {
            assert!(protect(&at(path), flag), "{path}");
        }
        remove_file(&at("file")).unwrap();
        assert_eq!(free(&at("tree")).len(), 3);
        assert!(free(&at("tree")).is_empty() && protect(&at("tree/etc/d"), "+i"));
        remove_tree(&at("tree")).unwrap();
        assert!(!at("tree").exists() && !at("file").exists());
        remove_tree(&at("tree")).unwrap();
    }
}
