//! What e2fsck put into `lost+found` of the recovery partition, and where it belongs: by the number of its inode, which
//! the robot has noted, or else by its content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{loader, slot_files};
use crate::boot::slots::{FILES, Slot};
use crate::jobs::floor;
use crate::jobs::keys::key_paths;
use crate::jobs::site_copy::{CONFIG, KEYS, Kind, NotedPlace, SiteCopy, is_usable};
use crate::jobs::state::make_directory;
use crate::order;
use crate::sys::files;

/// Name of the directory.
pub(super) const NAME: &str = "lost+found";
/// Names in it that are looked at: a recovery partition has some thirty files.
const MAX_NAMES: usize = 1024;
/// Size of the largest text that is looked at, bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Where a kernel for x86 says that it is one, and what it says there (Documentation/arch/x86/boot.rst, `header`).
const KERNEL: (u64, &[u8]) = (0x202, b"HdrS");
/// What an initramfs begins with: cpio, and what it may be compressed with (gzip, xz, zstd).
const INITRAMFS: [&[u8]; 4] = [b"070701", &[0x1f, 0x8b], &[0xfd, b'7', b'z', b'X', b'Z'], &[0x28, 0xb5, 0x2f, 0xfd]];

/// Moves what is found back to its place, and returns the paths. The file system is mounted for writing at `root`; what
/// is missing was not removed by anybody where it `was_damaged`.
///
/// # Errors
/// The file system's.
pub(super) fn bring_back(root: &Path, copy: &SiteCopy, was_damaged: bool) -> io::Result<Vec<String>> {
    let mut done = Vec::new();
    for (path, place) in copy.places() {
        let lost = root.join(NAME).join(format!("#{}", place.inode));
        let is_it = lost.symlink_metadata().is_ok_and(|found| Kind::of(&found) == Some(place.kind));
        if is_it && move_to(root, &lost, path)? {
            done.push(path.to_owned());
        }
    }
    // e2fsck clears what is empty: the mark of a medium that provisioned the disk is.
    let is_mark = |(path, place): &(&str, NotedPlace)| place.kind == Kind::File(0) && !root.join(path).exists();
    for (path, _) in copy.places().filter(|_| was_damaged).filter(is_mark) {
        let (path_there, parent) = (root.join(path), Path::new(path).parent().unwrap_or(Path::new("")));
        make_directory(&root.join(parent)).and_then(|()| File::create_new(path_there)?.sync_all())?;
        done.push(path.to_owned());
    }
    for lost in names(root) {
        for (from, path) in recognised(root, &lost) {
            if move_to(root, &from, &path)? {
                done.push(path);
            }
        }
    }
    done.extend(slot_of_loose_files(root)?);
    File::open(root)?.sync_all()?;
    Ok(done)
}

/// Everything in `lost+found`.
fn names(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join(NAME)).into_iter().flatten().flatten().take(MAX_NAMES);
    let mut names: Vec<_> = entries.map(|entry| entry.path()).collect();
    order::by(&mut names, PathBuf::cmp);
    names
}

/// Moves a file or a directory to its place, unless something with content is there. Returns whether it was moved.
fn move_to(root: &Path, from: &Path, path: &str) -> io::Result<bool> {
    let to = root.join(path);
    match to.symlink_metadata() {
        // A directory that lost its names: only an empty one goes.
        Ok(found) if found.is_dir() => {
            if fs::remove_dir(&to).is_err() {
                return Ok(false);
            }
        }
        Ok(found) if found.len() > 0 => return Ok(false),
        Ok(_) => fs::remove_file(&to)?,
        Err(_) => {}
    }
    let mut parents: Vec<&Path> = Path::new(path).ancestors().skip(1).filter(|one| *one != Path::new("")).collect();
    parents.reverse();
    for parent in parents {
        make_directory(&root.join(parent))?;
    }
    fs::rename(from, &to)?;
    if let Some(parent) = to.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(true)
}

/// Recognises what is lost by its content: what to move, and where it belongs.
fn recognised(root: &Path, lost: &Path) -> Vec<(PathBuf, String)> {
    let one = |path: &str| vec![(lost.to_owned(), path.to_owned())];
    let free_slot = || [Slot::A, Slot::B].into_iter().find(|slot| !is_slot(root, &root.join(slot.folder())));
    if !lost.is_dir() || lost.is_symlink() {
        return match text(lost) {
            Some(text) if is_usable(CONFIG, &text) => one(CONFIG),
            _ if is_floor(lost) => one(floor::FILE),
            _ => Vec::new(),
        };
    }
    if is_slot(root, lost) {
        return free_slot().map(|slot| one(&slot.folder())).unwrap_or_default();
    }
    let slots = [Slot::A, Slot::B].map(|slot| (slot, lost.join(slot.name())));
    if slots.iter().any(|(_, path)| is_slot(root, path)) {
        return slots.into_iter().filter(|(_, path)| path.is_dir()).map(|(slot, path)| (path, slot.folder())).collect();
    }
    if text(&lost.join("grub.cfg")).is_some_and(|text| loader::is_loader(&text)) {
        return one("grub");
    }
    if key_paths(lost).is_ok_and(|keys| !keys.is_empty()) {
        return one(KEYS);
    }
    if lost.join("state.ext4.zst").is_file() || lost.join("data.ext4.zst").is_file() {
        return one("templates");
    }
    Vec::new()
}

fn is_slot(root: &Path, directory: &Path) -> bool {
    let Ok(below) = directory.strip_prefix(root) else { return false };
    FILES.iter().all(|file| files::open_below(root, &below.join(file)).is_ok())
        && slot_files::is_script(root, &below.join(FILES[2]))
}

/// Makes a slot of files without a directory, where no slot is whole and there is just one of each.
fn slot_of_loose_files(root: &Path) -> io::Result<Vec<String>> {
    if [Slot::A, Slot::B].iter().any(|slot| is_slot(root, &root.join(slot.folder()))) {
        return Ok(Vec::new());
    }
    let mut found: BTreeMap<&str, Vec<PathBuf>> = BTreeMap::new();
    for lost in names(root) {
        if let Some(file) = loose(root, &lost) {
            found.entry(file).or_default().push(lost);
        }
    }
    if FILES.iter().any(|file| found.get(file).is_none_or(|paths| paths.len() != 1)) {
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    for file in FILES {
        for lost in found.remove(file).unwrap_or_default() {
            let path = format!("{}/{file}", Slot::A.folder());
            if move_to(root, &lost, &path)? {
                done.push(path);
            }
        }
    }
    Ok(done)
}

/// Name of the file of a slot that this is, by its content.
fn loose(root: &Path, lost: &Path) -> Option<&'static str> {
    let [initramfs, kernel, script] = FILES;
    let file = files::open(lost).ok()?;
    let begins_with = |offset: u64, expected: &[u8]| {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, offset).is_ok() && found == expected
    };
    if begins_with(KERNEL.0, KERNEL.1) {
        return Some(kernel);
    }
    if lost.strip_prefix(root).is_ok_and(|below| slot_files::is_script(root, below)) {
        return Some(script);
    }
    INITRAMFS.iter().any(|magic| begins_with(0, magic)).then_some(initramfs)
}

fn is_floor(lost: &Path) -> bool {
    let Ok(content) = files::read(lost, floor::new_file().len() as u64) else { return false };
    content.len() == floor::new_file().len() && content.starts_with(b"RFLASHFL")
}

fn text(path: &Path) -> Option<String> {
    files::read_text(path, MAX_TEXT_BYTES).ok()
}
