//! Deletion of trees and files that need not be there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Deletes a tree that the builder made, if it is there.
///
/// # Errors
/// Fails when something in it cannot be deleted.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Deletes a file that the builder made, if it is there.
///
/// # Errors
/// Fails when the file cannot be deleted.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}
