//! Public keys, as the commands take them.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use reflash::release::manifest::TrustedKeys;

use crate::keygen;
use crate::project;

/// Reads public keys, each named by its file in errors.
///
/// # Errors
/// When there is none, or a file is no public key. A secret key is named as one: it must reach no machine.
pub fn of(files: &[PathBuf]) -> Result<TrustedKeys> {
    ensure!(
        !files.is_empty(),
        "no public key is given: name the ones that machines trust, or `keys.public` in a project file ({})",
        project::FILE
    );
    let mut keys = TrustedKeys::default();
    for file in files {
        keys.add(&file.display().to_string(), &keygen::load_public(file)?)?;
    }
    Ok(keys)
}
