//! Files that are more than content: extended attributes, named pipes and devices, and when all of it is on the medium.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

/// Size of the largest value of an attribute, bytes: the kernel's own limit.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Names of the extended attributes of what lies at `path`, of a symbolic link itself. A file system without attributes
/// has none.
///
/// # Errors
/// The file system's.
pub fn attribute_names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = vec![0; MAX_VALUE_BYTES];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = names.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    Ok(names.filter(|name| !name.is_empty()).map(|name| OsString::from_vec(name.to_vec())).collect())
}

/// Value of an extended attribute.
///
/// # Errors
/// The file system's: there is no such attribute.
pub fn attribute(path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_VALUE_BYTES];
    let length = rustix::fs::lgetxattr(path, name.as_bytes(), &mut value)?;
    value.truncate(length);
    Ok(value)
}

/// Sets an extended attribute of what lies at `path`, of a symbolic link itself.
///
/// # Errors
/// The file system's, or the caller lacks the right.
pub fn set_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?)
}

/// Makes a named pipe that only its owner can use.
///
/// # Errors
/// The file system's.
pub fn make_pipe(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

/// Makes a character device, or a block device, that only its owner can use.
///
/// # Errors
/// The file system's, or the caller lacks the right.
pub fn make_device(path: &Path, is_block: bool, [major, minor]: [u32; 2]) -> io::Result<()> {
    let kind = if is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR | Mode::WUSR, device)?)
}

/// Returns when everything that was written to the file system of `path` is on its medium: one flush for any number of
/// files.
///
/// # Errors
/// The file system's.
pub fn flush_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::{attribute, attribute_names, flush_file_system, make_pipe, set_attribute};
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn attributes_and_pipes_are_made_and_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        // A file system in memory may know no attributes of users.
        if set_attribute(&file, "user.reflash", &[0, 1]).is_ok() {
            assert_eq!(attribute(&file, "user.reflash".as_ref()).unwrap(), [0, 1]);
            assert!(attribute_names(&file).unwrap().iter().any(|name| name == "user.reflash"));
        }
        assert!(attribute(&file, "user.none".as_ref()).is_err());
        make_pipe(&dir.path().join("pipe")).unwrap();
        assert!(dir.path().join("pipe").metadata().unwrap().file_type().is_fifo());
        flush_file_system(dir.path()).unwrap();
    }
}
