//! Stamps of results, so that what has not changed is not built again: a result is current when the key of all that
//! went into it lies beside it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkdir::{DirEntry, WalkDir};

/// Digest over everything that decides a result, in order.
#[derive(Debug, Clone, Default)]
pub struct InputDigest(blake3::Hasher);

impl InputDigest {
    /// Adds one input. The length goes in too, so that inputs cannot run into each other.
    #[must_use]
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update(&(input.len() as u64).to_le_bytes()).update(input);
        self
    }

    /// Adds the content of a file, which may be larger than the memory.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let mut content = blake3::Hasher::new();
        let read = File::open(path).and_then(|file| content.update_reader(file).map(drop));
        read.with_context(|| format!("read {}", path.display()))?;
        Ok(self.with(content.finalize().as_bytes()))
    }

    /// Adds everything below a directory of which a tarball has all that it carries: names, kinds, modes, owners,
    /// numbers of devices, targets of links, extended attributes and contents, and not the times.
    ///
    /// # Errors
    /// Fails when something in it cannot be read.
    pub fn with_tree(mut self, directory: &Path) -> Result<Self> {
        for entry in WalkDir::new(directory).sort_by_file_name().same_file_system(true) {
            let entry = entry.with_context(|| format!("read {}", directory.display()))?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let name = path.strip_prefix(directory).unwrap_or(path);
            self = self.with(name.as_os_str().as_encoded_bytes()).with(metadata.rdev().to_le_bytes());
            self =
                [metadata.mode(), metadata.uid(), metadata.gid()].iter().fold(self, |key, n| key.with(n.to_le_bytes()));
            if metadata.is_symlink() {
                let target = fs::read_link(path).with_context(|| format!("read {}", path.display()))?;
                self = self.with(target.as_os_str().as_encoded_bytes());
            } else if metadata.is_file() {
                self = self.with_file(path)?;
            }
            self = self.with_attributes(path).with_context(|| format!("read the attributes of {}", path.display()))?;
        }
        Ok(self)
    }

    fn with_attributes(mut self, path: &Path) -> std::io::Result<Self> {
        let mut names: Vec<_> = match xattr::list(path) {
            // A file system without attributes has none.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Vec::new(),
            names => names?.collect(),
        };
        names.sort_unstable();
        self = self.with(names.len().to_le_bytes());
        for name in names {
            self = self.with(name.as_encoded_bytes()).with(xattr::get(path, &name)?.unwrap_or_default());
        }
        Ok(self)
    }

    /// Adds what programs read below a directory, through links: names, contents, and who may execute what. What
    /// `skip` names and the history of git are left out. The same files count the same for every user of them.
    ///
    /// # Errors
    /// Fails when something in it cannot be read.
    pub fn with_sources(mut self, directory: &Path, skip: &[PathBuf]) -> Result<Self> {
        let directory = directory.canonicalize().with_context(|| format!("resolve {}", directory.display()))?;
        let is_skipped = |entry: &DirEntry| {
            let is_named = || entry.path().canonicalize().is_ok_and(|path| skip.contains(&path));
            entry.depth() > 0 && (entry.file_name() == ".git" || is_named())
        };
        let walk = WalkDir::new(&directory).follow_links(true).sort_by_file_name();
        for entry in walk.into_iter().filter_entry(|entry| !is_skipped(entry)) {
            let entry = match entry {
                Ok(entry) => entry,
                // A link that leads nowhere, or back to where it lies in: what it says is all there is of it.
                Err(error) => match error.path().map(|path| (path, fs::read_link(path))) {
                    Some((path, Ok(target))) => {
                        let name = path.strip_prefix(&directory).unwrap_or(path);
                        self =
                            self.with(name.as_os_str().as_encoded_bytes()).with(target.as_os_str().as_encoded_bytes());
                        continue;
                    }
                    _ => return Err(error).with_context(|| format!("read {}", directory.display())),
                },
            };
            let name = entry.path().strip_prefix(&directory).unwrap_or(entry.path());
            self = self.with(name.as_os_str().as_encoded_bytes());
            if entry.file_type().is_file() {
                self = self.with((entry.metadata()?.mode() & 0o111).to_le_bytes()).with_file(entry.path())?;
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
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
    }

    /// A link to another time zone, an owner, a capability: `image` said "unchanged" and had the ones from before.
    #[test]
    fn all_that_a_tarball_of_a_directory_carries_counts() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let key = || InputDigest::default().with_tree(directory.path()).unwrap().finish();
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/a"), "1").unwrap();
        symlink("one", at("link")).unwrap();
        let changes: [&dyn Fn(); 6] = [
            &|| std::fs::rename(at("d/a"), at("d/b")).unwrap(),
            &|| std::fs::write(at("d/b"), "2").unwrap(),
            &|| std::fs::set_permissions(at("d/b"), Permissions::from_mode(0o4755)).unwrap(),
            &|| std::fs::set_permissions(at("d"), Permissions::from_mode(0o700)).unwrap(),
            &|| std::fs::remove_file(at("link")).and_then(|()| symlink("two", at("link"))).unwrap(),
            &|| xattr::set(at("d/b"), "user.x", b"1").unwrap(),
        ];
        let mut before = key();
        for (number, change) in changes.iter().enumerate() {
            change();
            let after = key();
            assert_ne!(before, after, "change {number}");
            before = after;
        }
        assert_eq!(before, key());
    }

    /// In a project the playbook lies beside images and caches, and roles often behind links.
    #[test]
    fn sources_count_through_links_and_what_is_built_beside_them_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["project/dist", "project/.git", "common/roles"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["project/playbook.yml", "project/dist/system.img", "project/.git/index", "common/roles/main.yml"] {
            std::fs::write(at(name), "1").unwrap();
        }
        for (target, link) in [("../common/roles", "roles"), (".", "around"), ("nowhere", "broken")] {
            symlink(target, at("project").join(link)).unwrap();
        }
        let skip = [at("project/dist").canonicalize().unwrap()];
        let key = || InputDigest::default().with_sources(&at("project"), &skip).unwrap().finish();
        let before = key();
        std::fs::write(at("project/dist/system.img"), "2").unwrap();
        std::fs::write(at("project/.git/index"), "2").unwrap();
        assert_eq!(before, key());
        std::fs::write(at("common/roles/main.yml"), "2").unwrap();
        assert_ne!(before, key());
    }
}
