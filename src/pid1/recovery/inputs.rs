//! Text files that the agent reads at its start.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::error::SetupError;

/// Reads a file that must be there.
pub(super) fn read(path: &str) -> Result<String, SetupError> {
    fs::read_to_string(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })
}

/// Reads a file that need not be there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, SetupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::Read { path: path.display().to_string(), source }),
    }
}
