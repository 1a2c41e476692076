//! The loader on the recovery partition, `grub/grub.cfg`: read by GRUB of robots whose boot code has no script of its
//! own. It never changes with a release, so the copy in this program is as good as the lost one.

use std::io;
use std::path::Path;

use crate::jobs::state::{make_directory, replace_durably};
use crate::sys::files;

/// The loader as it is built into this program.
const LOADER: &str = include_str!("../../../grub/grub.cfg");
/// Its place on the recovery partition.
pub(super) const PATH: &str = "grub/grub.cfg";
/// Size of the largest loader, bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Whether the loader of the recovery partition at `root` cannot be used. One of another version can.
pub(super) fn is_lost(root: &Path) -> bool {
    let bytes = files::read_below(root, Path::new(PATH), MAX_BYTES).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    !text.is_some_and(|text| is_loader(&text))
}

/// Whether a text is a whole loader: it finds the slots, ends with the end of a block, and has nothing but text. Pure.
pub(super) fn is_loader(text: &str) -> bool {
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    text.contains("/slots/") && last == Some("fi") && !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t')
}

/// Writes the loader anew, by a rename, and reads it back.
///
/// # Errors
/// The file system's, or what is read back is something else.
pub(super) fn put_back(root: &Path) -> io::Result<()> {
    let path = root.join(PATH);
    let directory = path.parent().unwrap_or(root);
    make_directory(directory)?;
    replace_durably(&path, LOADER.as_bytes())?;
    match files::read_below(root, Path::new(PATH), MAX_BYTES)? {
        content if content == LOADER.as_bytes() => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "reads back wrong")),
    }
}

#[cfg(test)]
mod tests {
    use super::{LOADER, PATH, is_loader, is_lost, put_back};
    use std::fs;

    #[test]
    fn a_damaged_loader_is_written_anew_and_one_of_another_version_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PATH);
        let other = LOADER.replace("Trying again in 60 s", "Trying again");
        for (content, lost) in [
            (None, true),
            (Some(""), true),
            (Some("\0\0\0"), true),
            (Some(&LOADER[..LOADER.len() / 2]), true),
            (Some(LOADER), false),
            (Some(&*other), false),
        ] {
            let _ = fs::remove_dir_all(dir.path().join("grub"));
            if let Some(content) = content {
                fs::create_dir_all(dir.path().join("grub")).unwrap();
                fs::write(&path, content).unwrap();
            }
            assert_eq!(is_lost(dir.path()), lost, "{content:?}");
            put_back(dir.path()).unwrap();
            assert!(!is_lost(dir.path()));
        }
        let holes = LOADER.replace("set slots", "\0\0\0\0\0\0\0\0\0");
        assert!(is_loader(LOADER) && !is_loader(&holes));
    }
}
