//! Text files that the agent reads at its start.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::error::SetupError;
use crate::sys::files;

/// Size of the largest text file that is read, bytes: a list of 50,000 machines on a boot medium.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// Size of the longest name of a machine, bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// Reads a file of the kernel that must be there.
pub(super) fn read(path: &str) -> Result<String, SetupError> {
    fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })
}

/// Reads the name that this machine got at provisioning, which most machines do not have.
pub(super) fn asset(recovery: &Path) -> Option<String> {
    files::read_text(&recovery.join("asset"), MAX_NAME_BYTES).ok().map(|name| name.trim().to_owned())
}

/// Reads a file of a medium or a partition that need not be there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, SetupError> {
    match files::read_text(path, MAX_TEXT_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::Read { path: path.display().to_string(), source }),
    }
}
