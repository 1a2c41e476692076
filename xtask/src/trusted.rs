//! Public keys, as the commands take them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::release::manifest::TrustedKeys;

use crate::keygen;
use crate::project::needed;

/// Reads public keys, each named by its file in errors.
///
/// # Errors
/// When there is none, or a file is no public key. A secret key is named as one: it must reach no machine.
pub fn of(files: &[PathBuf]) -> Result<TrustedKeys> {
    needed(files.first(), "the public key that machines trust", "keys.public")?;
    let mut keys = TrustedKeys::default();
    for file in files {
        keys.add(&file.display().to_string(), &keygen::load_public(file)?)?;
    }
    Ok(keys)
}

/// Names of key files in the one directory that a machine has for all of them. Keys from several directories may have
/// the same name, as those that `keygen` makes: without names of their own the last one would replace the others.
///
/// # Errors
/// When a path does not end in a name.
pub fn named(files: &[PathBuf]) -> Result<Vec<(String, &Path)>> {
    let mut named: Vec<(String, &Path)> = Vec::new();
    for file in files {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?.to_string_lossy();
        let directory = file.parent().and_then(Path::file_name).map(|directory| directory.to_string_lossy());
        let longer = directory.map(|directory| format!("{directory}-{name}"));
        let counted = (2..).map(|number| format!("{number}-{name}"));
        let mut candidates = std::iter::once(name.to_string()).chain(longer).chain(counted);
        let free = candidates.find(|candidate| named.iter().all(|(taken, _)| taken != candidate));
        named.push((free.context("the list of names has no end")?, file));
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::named;
    use std::path::PathBuf;

    #[test]
    fn keys_of_the_same_name_do_not_replace_each_other() {
        let names = |files: &[&str]| -> Vec<String> {
            let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            named(&files).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        let rotated = ["keys/reflash.pub", "keys/next/reflash.pub", "/a/next/reflash.pub", "reflash.pub"];
        assert_eq!(names(&rotated), ["reflash.pub", "next-reflash.pub", "2-reflash.pub", "3-reflash.pub"]);
        assert_eq!(names(&["keys/a.pub", "keys/b.pub"]), ["a.pub", "b.pub"]);
        assert!(named(&[PathBuf::from("/")]).is_err());
    }
}
