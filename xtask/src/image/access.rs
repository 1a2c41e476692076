//! Access to what every program of a system needs.
//!
//! A source that was made under a mask of 077, or in a directory of `mktemp`, has a root directory that only root may
//! enter: nothing that runs as another user works then, and the image looks right. A directory that belongs to a person
//! is refused by ssh, sudo and systemd-tmpfiles on every way through it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::within::followed;
use crate::fresh;

/// Directories that every user goes through.
const DIRECTORIES: &[&str] = &[
    "usr",
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib32",
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/libexec",
    "usr/local",
    "usr/local/bin",
    "usr/share",
    "etc",
    "opt",
    "var",
    "var/lib",
    "var/cache",
    "home",
    "srv",
    "mnt",
];
/// Files that every user reads.
const FILES: &[&str] =
    &["etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/hosts", "etc/ld.so.cache", "usr/lib/os-release"];
/// What others need of a directory to get through it, and of a file to read it; and the permissions that are given
/// where that is missing.
const DIRECTORY_BITS: (u32, u32) = (0o001, 0o755);
const FILE_BITS: (u32, u32) = (0o004, 0o644);

/// Opens what is closed, each with a note. The root directory becomes as a bootstrapped system has it: root's own,
/// without an access control list.
///
/// # Errors
/// Fails with the path.
pub fn mend(tree: &Path) -> Result<()> {
    let root = tree.symlink_metadata().with_context(|| format!("read {}", tree.display()))?;
    fresh::make(tree)?;
    let after = tree.symlink_metadata()?;
    if (root.mode(), root.uid(), root.gid()) != (after.mode(), after.uid(), after.gid()) {
        note("/", &root, after.mode());
    }
    for (paths, bits) in [(DIRECTORIES, DIRECTORY_BITS), (FILES, FILE_BITS)] {
        for path in paths {
            mend_one(tree, path, bits)?;
        }
    }
    Ok(())
}

fn mend_one(tree: &Path, path: &str, (needed, given): (u32, u32)) -> Result<()> {
    let place = followed(tree, Path::new(path));
    let Ok(found) = place.symlink_metadata() else { return Ok(()) };
    let is_directory = given == DIRECTORY_BITS.1;
    if place == tree || found.is_dir() != is_directory || found.is_file() == is_directory || found.mode() & needed != 0
    {
        return Ok(());
    }
    note(&format!("/{path}"), &found, found.mode() | given);
    fs::set_permissions(&place, Permissions::from_mode(found.mode() & 0o7777 | given))
        .with_context(|| format!("chmod {}", place.display()))
}

fn note(path: &str, found: &fs::Metadata, after: u32) {
    eprintln!(
        "  {path} had the mode {:04o} (of {}:{}), with which programs of other users do not work: it is {:04o} now",
        found.mode() & 0o7777,
        found.uid(),
        found.gid(),
        after & 0o7777
    );
}

#[cfg(test)]
mod tests {
    use super::mend;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A source of `mktemp -d`, with what was made in it under a mask of 077.
    #[test]
    fn what_only_root_could_enter_is_opened() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("var/lib/private")).unwrap();
        std::os::unix::fs::symlink("usr/bin", at("opt")).unwrap();
        fs::write(at("etc/passwd"), "").unwrap();
        fs::write(at("etc/shadow"), "").unwrap();
        let modes = [
            ("", 0o700, 0o755),
            ("usr", 0o750, 0o755),
            ("usr/bin", 0o2770, 0o2775),
            ("etc", 0o711, 0o711),
            ("etc/passwd", 0o600, 0o644),
            ("etc/shadow", 0o600, 0o600),
            ("var", 0o1777, 0o1777),
            ("var/lib/private", 0o700, 0o700),
        ];
        for (path, mode, _) in modes.iter().rev() {
            fs::set_permissions(at(path), Permissions::from_mode(*mode)).unwrap();
        }
        mend(tree.path()).unwrap();
        for (path, _, after) in modes {
            assert_eq!(at(path).metadata().unwrap().permissions().mode() & 0o7777, after, "{path}");
        }
    }
}
