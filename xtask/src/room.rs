//! Room on a file system, looked at before work that would end with a full disk.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Returns the bytes that this user may still write to the file system of `directory`.
///
/// # Errors
/// Fails with the name of the directory.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(directory)
        .with_context(|| format!("look how much room the file system of {} has", directory.display()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Checks that `needed_bytes` can be written to `directory`; `what` needs them.
///
/// # Errors
/// When there is less room: how much there is, and what can be done.
pub fn require(what: &str, needed_bytes: u64, directory: &Path, otherwise: &str) -> Result<()> {
    let free_bytes = free_bytes(directory)?;
    let gb = |bytes: u64| bytes as f64 / 1e9;
    ensure!(
        free_bytes >= needed_bytes,
        "{what} needs {:.1} GB of room in {}, and {:.1} GB are free; delete something there, or {otherwise}",
        gb(needed_bytes),
        directory.display(),
        gb(free_bytes)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::require;

    #[test]
    fn what_does_not_fit_is_refused_with_both_sizes_and_the_place() {
        let directory = tempfile::tempdir().unwrap();
        require("it", 1, directory.path(), "x").unwrap();
        let error = require("the first image", 1 << 60, directory.path(), "give --work").unwrap_err().to_string();
        assert!(error.contains("1152921504.6 GB") && error.contains("GB are free"), "{error}");
        assert!(
            error.contains(&directory.path().display().to_string()) && error.ends_with("or give --work"),
            "{error}"
        );
    }
}
