//! Reading of a machine's trusted keys, which are files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::release::manifest::{ManifestError, TrustedKeys};

/// Reads the `*.pub` files of a directory, in the order of their names; a directory that is not there has none. A file
/// that cannot be read has no text, which [`TrustedKeys::add`] refuses.
pub fn key_files(directory: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pub"));
    let with_text = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        (path, text)
    };
    paths.into_iter().map(with_text).collect()
}

/// Reads the trusted keys of every directory that is there. A key that cannot be read is refused rather than skipped: a
/// robot that trusts fewer keys than its maker believes is found out when it is too late.
///
/// # Errors
/// A file is not a minisign public key.
pub fn read_keys(directories: &[String]) -> Result<TrustedKeys, ManifestError> {
    let mut keys = TrustedKeys::default();
    for (path, text) in directories.iter().flat_map(|directory| key_files(Path::new(directory))) {
        keys.add(&path.display().to_string(), &text)?;
    }
    Ok(keys)
}
