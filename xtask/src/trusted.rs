//! Public keys, as the commands take them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::release::manifest::TrustedKeys;

use crate::keygen;
use crate::project::needed;
use crate::recipe::FileEntry;

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

/// Public keys as files of an image, for the commands of the running system: what its recovery trusts, they trust. What
/// the recipe puts there itself stays.
///
/// # Errors
/// When a file is no public key.
pub fn of_image(keys: &[PathBuf], recipe: &[FileEntry]) -> Result<Vec<FileEntry>> {
    let files = named(keys)?.into_iter().map(|(name, file)| {
        let path = Path::new("/etc/reflash/keys").join(name);
        Ok(FileEntry::of_text(path, keygen::load_public(file)?))
    });
    let is_new = |file: &FileEntry| recipe.iter().all(|own| own.path != file.path);
    files.filter(|file| file.as_ref().map_or(true, is_new)).collect()
}

#[cfg(test)]
mod tests {
    use super::{named, of_image};
    use crate::recipe::FileEntry;
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

    #[test]
    fn the_running_system_trusts_what_its_recovery_trusts() {
        let dir = tempfile::tempdir().unwrap();
        let next = dir.path().join("next");
        let keys = [dir.path(), &next].map(|directory| crate::keygen::generate(directory, None).unwrap().public);
        let files = of_image(&keys, &[]).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/etc/reflash/keys/reflash.pub", "/etc/reflash/keys/next-reflash.pub"]);
        let expected = keys.each_ref().map(|key| std::fs::read_to_string(key).unwrap());
        assert_eq!([files[0].text.clone().unwrap(), files[1].text.clone().unwrap()], expected);
        assert_eq!((files[0].mode_bits().unwrap(), files[0].owner.as_deref()), (0o644, None));
        let own = FileEntry::of_text(files[0].path.clone(), "the recipe's own".into());
        assert_eq!(of_image(&keys, &[own]).unwrap(), files[1..]);
        assert!(of_image(&[next.join("reflash.key")], &[]).is_err(), "a secret key");
    }
}
