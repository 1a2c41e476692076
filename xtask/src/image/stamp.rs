//! Stamps of results, so that what has not changed is not built again: a result is current when the key of all that
//! went into it lies beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Digest over everything that decides a result, in order.
#[derive(Debug, Default)]
pub struct InputDigest(blake3::Hasher);

impl InputDigest {
    /// Adds one input. The length goes in too, so that inputs cannot run into each other.
    #[must_use]
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update(&(input.len() as u64).to_le_bytes()).update(input);
        self
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(self.with(content))
    }

    /// Adds the names, modes and contents of everything below a directory.
    ///
    /// # Errors
    /// Fails when something in it cannot be read.
    pub fn with_tree(mut self, directory: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        for entry in walkdir::WalkDir::new(directory).sort_by_file_name() {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            let name = entry.path().strip_prefix(directory).unwrap_or(entry.path());
            self = self.with(name.as_os_str().as_encoded_bytes());
            if entry.file_type().is_file() {
                let mode = entry.metadata()?.permissions().mode();
                self = self.with(mode.to_le_bytes()).with_file(entry.path())?;
            }
        }
        Ok(self)
    }

    /// Returns the key as text.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

fn stamp_of(result: &Path) -> PathBuf {
    result.with_added_extension("key")
}

/// Whether `result` is there and was made from exactly what `key` stands for.
pub fn is_current(result: &Path, key: &str) -> bool {
    result.exists() && fs::read_to_string(stamp_of(result)).is_ok_and(|stored| stored == key)
}

/// Deletes the stamp of `result`, which from now on counts as missing. Call this before `result` is changed.
///
/// # Errors
/// Fails when the stamp is there and cannot be deleted.
pub fn forget(result: &Path) -> Result<()> {
    super::removal::remove_file(&stamp_of(result))
}

/// Writes the stamp of `result`. Call this when `result` is complete under its final name.
///
/// # Errors
/// Fails when the stamp cannot be written.
pub fn remember(result: &Path, key: &str) -> Result<()> {
    let stamp = stamp_of(result);
    fs::write(&stamp, key).with_context(|| format!("write {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::{InputDigest, forget, is_current, remember};

    #[test]
    fn a_result_is_current_only_with_its_own_key() {
        let directory = tempfile::tempdir().unwrap();
        let result = directory.path().join("a.img");
        remember(&result, "k").unwrap();
        assert!(!is_current(&result, "k"), "the result itself is missing");
        std::fs::write(&result, "x").unwrap();
        assert!(is_current(&result, "k") && !is_current(&result, "other"));
        forget(&result).unwrap();
        assert!(!is_current(&result, "k"));
        forget(&result).unwrap();
    }

    #[test]
    fn every_input_and_the_border_between_inputs_count() {
        let key = |parts: &[&str]| parts.iter().fold(InputDigest::default(), |key, part| key.with(part)).finish();
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        let directory = tempfile::tempdir().unwrap();
        let tree = |at: &std::path::Path| InputDigest::default().with_tree(at).unwrap().finish();
        std::fs::write(directory.path().join("a"), "1").unwrap();
        let before = tree(directory.path());
        std::fs::rename(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert_ne!(before, tree(directory.path()));
    }
}
