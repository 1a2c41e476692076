//! Errors of the host, with what a person can do about them: where the permission ended, and which file system is full.
//! The kernel says neither, and the path in an error is seldom the one at fault.

use std::fmt::Write;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use rustix::fs::Access;

use crate::host_packages::{as_root, is_root};

/// Share of a file system below which it counts as full. What did not fit was deleted by then, so that it is seldom
/// full to the last byte.
const FULL: u64 = 20;

/// Returns whether something is at a path. Unlike [`Path::exists`], it does not say "no" where it may not look.
///
/// # Errors
/// When this user may not look there.
pub fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| format!("look for {}", path.display()))
}

/// Adds to an error what a person needs to mend it, where it is one about permissions or about room. `places` are the
/// directories that the builder writes to.
#[must_use]
pub fn explained(error: Error, places: &[PathBuf]) -> Error {
    let is_kind = |kinds: &[io::ErrorKind]| {
        let of_cause =
            |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
        error.chain().filter_map(of_cause).any(|kind| kinds.contains(&kind))
    };
    if is_kind(&[io::ErrorKind::PermissionDenied]) && !is_root() {
        return match forbidden(&error, places) {
            Some(reason) => error.context(reason),
            None => error,
        };
    }
    if format!("{error:#}").contains("unshare failed: Operation not permitted") {
        return error.context(
            "this container may not make mounts of its own, which building an image takes: start it with --privileged \
             (docs/building.md)",
        );
    }
    // Tools say it in words.
    let says_full =
        || ["No space left on device", "Disk quota exceeded"].iter().any(|said| format!("{error:#}").contains(said));
    match is_kind(&[io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded]) || says_full() {
        true => error.context(full(places)),
        false => error,
    }
}

/// Says whose the place is that this user has no permission for.
fn forbidden(error: &Error, places: &[PathBuf]) -> Option<String> {
    // What was built belongs to root once a command ran as root.
    let is_of_root = |place: &&PathBuf| {
        let places = [place.to_path_buf(), place.join("release")];
        places.iter().any(|place| place.metadata().is_ok_and(|found| found.uid() == 0))
    };
    if let Some(place) = places.iter().find(is_of_root) {
        return Some(format!(
            "{} belongs to root, since an earlier command ran as root: run this one as root too: {}",
            place.display(),
            as_root()
        ));
    }
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    let (place, what) = texts.iter().rev().find_map(|text| barrier(path_in(text)?))?;
    let found = place.metadata().ok()?;
    let (owner, user) = (name_of(found.uid()), name_of(rustix::process::geteuid().as_raw()));
    Some(format!(
        "{} belongs to {owner} and has the mode {:04o}, so {user} may not {what}: let it belong to {user}, or run this \
         as root: {}",
        place.display(),
        found.mode() & 0o7777,
        as_root()
    ))
}

/// The path that a sentence of an error ends with.
fn path_in(text: &str) -> Option<&Path> {
    let start = text.find(" /").or_else(|| text.rfind(' '))?;
    Some(Path::new(&text[start + 1..]))
}

/// Returns the first place on the way to a path that this user has no permission for, and what for.
fn barrier(path: &Path) -> Option<(PathBuf, &'static str)> {
    let path = std::path::absolute(path).ok()?;
    let may = |path: &Path, access| rustix::fs::access(path, access).is_ok();
    let mut ways: Vec<&Path> = path.ancestors().skip(1).collect();
    ways.reverse();
    for way in &ways {
        // What is not there yet would have to be made in the directory before it.
        if way.symlink_metadata().is_err() {
            return way
                .parent()
                .filter(|parent| !may(parent, Access::WRITE_OK))
                .map(|found| (found.into(), "write there"));
        }
        if !may(way, Access::EXEC_OK) {
            return Some((way.to_path_buf(), "enter it"));
        }
    }
    match path.symlink_metadata() {
        Ok(_) if !may(&path, Access::READ_OK) => Some((path, "read it")),
        Ok(_) if !may(&path, Access::WRITE_OK) => Some((path, "write to it")),
        Ok(_) => None,
        Err(_) => {
            path.parent().filter(|parent| !may(parent, Access::WRITE_OK)).map(|found| (found.into(), "write there"))
        }
    }
}

/// Name of a user of this host, or the number of one who has none.
fn name_of(number: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_number = |line: &&str| line.split(':').nth(2) == Some(number.to_string().as_str());
    let name = users.lines().find(is_number).and_then(|line| line.split(':').next());
    name.map_or_else(|| format!("user {number}"), str::to_owned)
}

/// One file system that the builder writes to.
#[derive(Debug)]
struct Room {
    /// Place that it is mounted at.
    mounted: PathBuf,
    device: u64,
    free_bytes: u64,
    all_bytes: u64,
    has_inodes: bool,
}

/// Says which of the file systems are full.
fn full(places: &[PathBuf]) -> String {
    let mut rooms: Vec<Room> = Vec::new();
    for place in places.iter().map(PathBuf::as_path).chain([std::env::temp_dir().as_path()]) {
        if let Some(room) = room_of(place)
            && rooms.iter().all(|known| known.device != room.device)
        {
            rooms.push(room);
        }
    }
    let is_full = |room: &Room| !room.has_inodes || room.free_bytes < room.all_bytes / FULL;
    if rooms.iter().any(is_full) {
        rooms.retain(is_full);
    }
    let mut text = String::from("no room is left; delete something, or choose other places with --work and --dist:");
    for (number, room) in rooms.iter().enumerate() {
        let (free, all) = (room.free_bytes as f64 / 1e6, room.all_bytes as f64 / 1e6);
        let inodes = if room.has_inodes { "" } else { " and no more files can be made" };
        let comma = if number == 0 { "" } else { "," };
        let mounted = room.mounted.display();
        let _ = write!(text, "{comma} the file system at {mounted} has {free:.0} of {all:.0} MB free{inodes}");
    }
    text
}

fn room_of(place: &Path) -> Option<Room> {
    let place = std::path::absolute(place).ok()?;
    let there = place.ancestors().find(|place| place.exists())?;
    let device = there.metadata().ok()?.dev();
    let is_same = |place: &&Path| place.metadata().is_ok_and(|found| found.dev() == device);
    let mounted = there.ancestors().take_while(is_same).last().unwrap_or(there).to_owned();
    let found = rustix::fs::statvfs(there).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let has_inodes = found.f_files == 0 || found.f_favail > 0;
    Some(Room { mounted, device, free_bytes: bytes(found.f_bavail), all_bytes: bytes(found.f_blocks), has_inodes })
}

#[cfg(test)]
mod tests {
    use super::{explained, forbidden, full, is_there, path_in};
    use anyhow::Error;
    use std::io;
    use std::path::Path;

    #[test]
    fn what_belongs_to_root_is_named_with_the_command_to_type() {
        let denied = Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("create dist/x");
        let text = forbidden(&denied, &["/none".into(), "/proc".into()]).unwrap();
        assert!(text.starts_with("/proc belongs to root") && text.contains("sudo env"), "{text}");
        let other = Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(format!("{:#}", explained(other, &["/proc".into()])), "entity not found");
    }

    #[test]
    fn a_path_is_found_at_the_end_of_a_sentence() {
        for (text, path) in [("create k2", "k2"), ("read the public key /a b/c", "/a b/c"), ("create /a", "/a")] {
            assert_eq!(path_in(text), Some(Path::new(path)), "{text}");
        }
        assert_eq!(path_in("Permission"), None);
    }

    #[test]
    fn a_container_without_the_right_to_mount_is_named() {
        let error = Error::msg("mmdebstrap failed: unshare: unshare failed: Operation not permitted (exit status: 1)");
        assert!(format!("{:#}", explained(error, &[])).contains("start it with --privileged"));
    }

    #[test]
    fn a_full_disk_is_named_with_its_room() {
        let said = |error: Error| format!("{:#}", explained(error, &["/none/x".into()]));
        let text = said(Error::from(io::Error::from(io::ErrorKind::StorageFull)).context("write x"));
        assert!(
            text.starts_with("no room is left;") && text.contains(" MB free") && text.contains("write x"),
            "{text}"
        );
        let text = said(Error::msg("tar failed: tar: a: Cannot write: No space left on device (exit status: 2)"));
        assert!(text.starts_with("no room is left;"), "{text}");
        assert!(full(&["/proc/self".into()]).contains("the file system at "));
    }

    #[test]
    fn nothing_at_a_path_and_no_permission_to_look_are_two_things() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_there(directory.path()).unwrap() && !is_there(&directory.path().join("x")).unwrap());
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = format!("{:#}", is_there(&directory.path().join("file/x\0")).unwrap_err());
        assert!(error.starts_with("look for "), "{error}");
    }
}
