//! Files that a fault, or a stranger, may have put where this program expects its own: on the state and the recovery
//! partition, on media and on USB drives.
//!
//! What is opened here is a regular file, whatever lies at the path: opening a named pipe would wait for ever, opening
//! a device could do anything, and a symbolic link leads to either. What is read has a limit, since one flipped bit of
//! an inode makes a file of terabytes.

use std::ffi::OsStr;
use std::fs::{self, File, FileType};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Flags of a look at what lies somewhere. openat2 takes no others beside `O_PATH`.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Flags of every open: a named pipe does not wait for a writer, a terminal does not become ours.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
/// Permissions of a new file.
const NEW: Mode = Mode::from_raw_mode(0o644);
/// Attribute of an overlay's directory that hides what lies below it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Names that are tried for what is put aside.
const ASIDE: u32 = 10;

/// Opens the regular file at `path` below the directory `root` for reading. No symbolic link is followed below `root`,
/// and no `..` leaves it.
///
/// # Errors
/// The file system's; [`ErrorKind::InvalidInput`] for anything but a regular file.
pub fn open_below(root: &Path, path: &Path) -> io::Result<File> {
    let root: OwnedFd = File::open(root)?.into();
    // Looked at before it is opened: to open some devices is to act on them.
    let found = File::from(resolve(&root, path, LOOK)?);
    regular(found)?;
    regular(File::from(resolve(&root, path, OPEN)?))
}

/// Opens the regular file at `path` for reading. The directories on the way may be symbolic links, the file may not.
///
/// # Errors
/// As [`open_below`].
pub fn open(path: &Path) -> io::Result<File> {
    let (directory, name) = split(path)?;
    open_below(directory, Path::new(name))
}

/// Opens the regular file at `path` for reading and writing, and makes it first where there is none. It is not emptied.
///
/// # Errors
/// As [`open_below`].
pub fn open_to_write(path: &Path) -> io::Result<File> {
    open_or_make(path, OFlags::empty())
}

/// Opens the regular file at `path` for writing at its end, wherever that is by then, and makes it first where there is
/// none.
///
/// # Errors
/// As [`open_below`].
pub fn open_to_append(path: &Path) -> io::Result<File> {
    open_or_make(path, OFlags::APPEND)
}

fn open_or_make(path: &Path, more: OFlags) -> io::Result<File> {
    let (directory, name) = split(path)?;
    let directory: OwnedFd = File::open(directory)?.into();
    match resolve(&directory, Path::new(name), LOOK) {
        Ok(found) => drop(regular(File::from(found))?),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OPEN | more;
    regular(File::from(rustix::fs::openat(&directory, name, flags, NEW)?))
}

/// Reads a whole regular file of at most `limit_bytes`, opened as by [`open`].
///
/// # Errors
/// As [`open_below`], and [`ErrorKind::FileTooLarge`] with both sizes.
pub fn read(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    read_at_most(open(path)?, limit_bytes)
}

/// Reads a whole regular file of at most `limit_bytes`, opened as by [`open_below`].
///
/// # Errors
/// As [`read`].
pub fn read_below(root: &Path, path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    read_at_most(open_below(root, path)?, limit_bytes)
}

/// Reads a whole text file of at most `limit_bytes`, opened as by [`open`].
///
/// # Errors
/// As [`read`], and [`ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text(path: &Path, limit_bytes: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit_bytes)?)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.utf8_error()))
}

/// Reads a whole file of at most `limit_bytes` that a person or the configuration named: it may be a symbolic link, and
/// what a shell puts in the place of a command's output.
///
/// # Errors
/// As [`read`].
pub fn read_named(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    read_at_most(File::open(path)?, limit_bytes)
}

/// Reads the last `at_most` bytes of a regular file, opened as by [`open`].
///
/// # Errors
/// As [`open_below`].
pub fn read_end(path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let start = file.metadata()?.len().saturating_sub(at_most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(at_most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives what lies at `path` another name, so that a file can take its place: a directory, a pipe, or a link there is
/// nothing that this program made. Returns the new name.
///
/// # Errors
/// The file system's, or [`ErrorKind::AlreadyExists`] when something was put aside too often.
pub fn put_aside(path: &Path) -> io::Result<PathBuf> {
    for number in 0..ASIDE {
        let aside = path.with_added_extension(format!("odd{number}"));
        if aside.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Whether `path` is a directory, or a link to one, on the file system that is mounted on `mount_point`.
#[must_use]
pub fn is_directory_on(path: &Path, mount_point: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().filter(fs::Metadata::is_dir).map(|found| found.dev());
    device(path).is_some_and(|found| Some(found) == device(mount_point))
}

/// Makes reads of an open file come from its device, past the page cache: memory, offset and length of each must then
/// be aligned to 4096 bytes.
///
/// # Errors
/// The file system's, for one that cannot do so.
pub fn bypass_cache(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)?)
}

/// Takes away the marks of a file or directory that it cannot be changed, or only grow: `chattr` sets them, a flipped
/// bit can, and efivarfs has one on variables that it does not know.
///
/// # Errors
/// The file system's: there is no such file, something else is there, or the file system knows no marks.
pub fn make_changeable(path: &Path) -> io::Result<()> {
    let (directory, name) = split(path)?;
    let directory: OwnedFd = File::open(directory)?.into();
    let kind = File::from(resolve(&directory, Path::new(name), LOOK)?).metadata()?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let file = resolve(&directory, Path::new(name), OPEN)?;
    let (flags, marks) = (rustix::fs::ioctl_getflags(&file)?, IFlags::IMMUTABLE | IFlags::APPEND);
    if flags.intersects(marks) {
        rustix::fs::ioctl_setflags(&file, flags - marks)?;
    }
    Ok(())
}

/// Makes what an overlay keeps in its upper directory of a file or directory that was deleted.
///
/// # Errors
/// The file system's, or the caller lacks the right.
pub fn make_whiteout(path: &Path) -> io::Result<()> {
    let mode = Mode::empty();
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, mode, 0)?)
}

/// Whether this is what an overlay keeps in its upper directory of a file or directory that was deleted.
#[must_use]
pub fn is_whiteout(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && std::os::unix::fs::MetadataExt::rdev(metadata) == 0
}

/// Copies the mark by which an overlay hides what lies below a directory of its upper layer, if `from` has it.
///
/// # Errors
/// The file system's, or the caller lacks the right.
pub fn copy_overlay_marks(from: &Path, to: &Path) -> io::Result<()> {
    let mut value = [0; 16];
    match rustix::fs::lgetxattr(from, OPAQUE, &mut value) {
        Ok(length) => {
            let value = value.get(..length).unwrap_or_default();
            Ok(rustix::fs::lsetxattr(to, OPAQUE, value, rustix::fs::XattrFlags::empty())?)
        }
        // A file system without such marks has none.
        Err(_) => Ok(()),
    }
}

/// Whether the error of an open says that something else than a regular file is there.
#[must_use]
pub fn is_other_kind(error: &io::Error) -> bool {
    error.kind() == ErrorKind::InvalidInput && error.raw_os_error().is_none()
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((directory, name))
}

/// Resolves a path below a directory: in one call where the kernel has openat2 (since 5.6), else part by part.
fn resolve(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // A filter of system calls, as containers have, answers EPERM to what it does not know.
        Err(Errno::NOSYS | Errno::PERM) => walk(root, path, flags),
        result => result.map_err(explained),
    }
}

fn walk(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => parts.push(name),
            std::path::Component::CurDir => {}
            _ => return Err(ErrorKind::InvalidInput.into()),
        }
    }
    let (last, directories) = parts.split_last().ok_or(ErrorKind::InvalidInput)?;
    let mut at = rustix::io::dup(root.as_fd())?;
    for name in directories {
        at = rustix::fs::openat(&at, *name, LOOK | OFlags::DIRECTORY, Mode::empty()).map_err(explained)?;
    }
    rustix::fs::openat(&at, *last, flags, Mode::empty()).map_err(explained)
}

fn explained(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::new(ErrorKind::InvalidInput, "a symbolic link, which is not followed"),
        Errno::XDEV => io::Error::new(ErrorKind::InvalidInput, "a path that leaves its directory"),
        // The other end of a named pipe or of a device, which is not asked for.
        Errno::NXIO => io::Error::new(ErrorKind::InvalidInput, "not a regular file"),
        error => error.into(),
    }
}

fn regular(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(ErrorKind::InvalidInput, format!("{}, not a regular file", name_of(kind))))
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn read_at_most(file: File, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    let too_large = |size: &str| {
        io::Error::new(ErrorKind::FileTooLarge, format!("{size} bytes, but at most {limit_bytes} are expected"))
    };
    if size > limit_bytes {
        return Err(too_large(&size.to_string()));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to know: not every file says its size.
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes { Err(too_large("more")) } else { Ok(bytes) }
}

/// The result of removing something, for which it is as well that it was not there.
///
/// # Errors
/// Any error but [`ErrorKind::NotFound`].
pub fn removed_or_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{ErrorKind, Write};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{is_other_kind, open, open_below, open_to_write, put_aside, read, read_end, read_text, walk};

    fn kinds(directory: &Path) -> Vec<std::path::PathBuf> {
        fs::create_dir(directory.join("directory")).unwrap();
        fs::write(directory.join("file"), "content").unwrap();
        symlink("file", directory.join("link")).unwrap();
        symlink("/dev/zero", directory.join("device")).unwrap();
        symlink("loop", directory.join("loop")).unwrap();
        nix::unistd::mkfifo(&directory.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = directory.join("socket");
        std::os::unix::net::UnixListener::bind(&socket).unwrap();
        ["directory", "link", "device", "loop", "pipe", "socket"].map(|name| directory.join(name)).into()
    }

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        for path in kinds(dir.path()) {
            for error in [open(&path).unwrap_err(), open_to_write(&path).unwrap_err()] {
                assert!(is_other_kind(&error), "{}: {error}", path.display());
            }
        }
        assert_eq!(read(&dir.path().join("file"), 7).unwrap(), b"content");
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"content");
        assert_eq!(open(&dir.path().join("missing")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(open(Path::new("/dev/null")).is_err_and(|error| error.to_string().contains("a device")));
    }

    #[test]
    fn no_link_on_the_way_is_followed_with_and_without_openat2() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a")).unwrap();
        fs::write(dir.path().join("root/a/b"), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        symlink("a", dir.path().join("root/l")).unwrap();
        symlink("/proc", dir.path().join("root/p")).unwrap();
        let root = dir.path().join("root");
        let held = File::open(&root).unwrap().into();
        let slow = |path: &str| walk(&held, Path::new(path), super::OPEN);
        for (path, good) in
            [("a/b", true), ("./a/b", true), ("l/b", false), ("../outside", false), ("p/kmsg", false), ("", false)]
        {
            assert_eq!(open_below(&root, Path::new(path)).is_ok(), good, "{path}");
            assert_eq!(slow(path).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn more_than_the_limit_is_never_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grown");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), "5 bytes, but at most 4 are expected");
        // A hole of a terabyte takes neither time nor memory.
        file.set_len(1 << 40).unwrap();
        assert_eq!(read(&path, 1 << 20).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_end(&path, 3).unwrap(), [0; 3]);
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 9).unwrap_err().kind(), ErrorKind::InvalidData);
        // It says that it has no byte, and has no end.
        assert!(super::read_named(Path::new("/dev/zero"), 1000).is_err_and(|e| e.kind() == ErrorKind::FileTooLarge));
    }

    #[test]
    fn what_is_in_the_way_is_put_aside_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for path in kinds(dir.path()) {
            let aside = put_aside(&path).unwrap();
            assert!(aside.symlink_metadata().is_ok() && path.symlink_metadata().is_err());
            open_to_write(&path).unwrap();
            assert_ne!(put_aside(&path).unwrap(), aside);
        }
    }
}
