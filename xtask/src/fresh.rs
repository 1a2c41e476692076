//! Directories of the work directory in which parts of an image are made.
//!
//! A new directory inherits from the one that it is made in: its group where that has setgid, and its default access
//! control list, as a directory that several people or CI jobs share has them. All that is made below would inherit it
//! too, and the image with it. So these directories begin with nothing of their own.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::host_packages::is_root;

/// Access control lists of a directory: for itself, and for what is made in it.
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_default", "system.posix_acl_access"];

/// Makes the directory, if it is missing, and takes what it inherited away.
///
/// # Errors
/// Fails with the path.
pub fn make(path: &Path) -> Result<()> {
    let shown = path.display();
    fs::create_dir_all(path).with_context(|| format!("create {shown}"))?;
    for list in ACCESS_LISTS {
        match xattr::remove(path, list) {
            Err(error) if !is_without(&error) => {
                return Err(error).with_context(|| format!("take the access control list from {shown}"));
            }
            _ => {}
        }
    }
    if is_root() {
        chown(path, Some(0), Some(0)).with_context(|| format!("change the owner of {shown}"))?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).with_context(|| format!("chmod {shown}"))
}

/// Whether there is no such list, or the file system knows none.
fn is_without(error: &std::io::Error) -> bool {
    let number = error.raw_os_error();
    error.kind() == ErrorKind::NotFound
        || [Errno::NODATA, Errno::OPNOTSUPP].iter().any(|known| number == Some(known.raw_os_error()))
}
