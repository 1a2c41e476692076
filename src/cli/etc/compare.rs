//! Compares the `/etc` of this machine with the one of the image. Nothing is written, no link is followed, and what
//! cannot be read is named.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::defaults::{Seen, ShortDigest};
use crate::order;
use crate::sys::files;

/// Directories in each other that are looked into: more is nobody's configuration.
const MOST_DEPTH: usize = 64;
/// Names that are looked at, in the image and on the machine together.
const MOST_NAMES: usize = 200_000;

/// How the machine's entry differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Difference {
    /// Only the machine has it. Of a directory, all that is in it too.
    Added,
    /// Only the image has it.
    Deleted,
    /// Directory on one side, and a file or link on the other.
    OtherKind,
    /// Other content, permissions or owner, by name.
    Changed(Vec<&'static str>),
}

/// Entry that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Differing {
    pub path: PathBuf,
    pub difference: Difference,
    /// When the machine's entry last changed, seconds since 1970; 0 where there is none.
    pub changed_unix_s: u64,
}

/// Result of a comparison.
#[derive(Debug, Default)]
pub(super) struct EtcComparison {
    pub differing: Vec<Differing>,
    /// The image's files and links.
    pub defaults: BTreeMap<String, Seen>,
    /// What could not be read, with the reason.
    pub unread: Vec<(PathBuf, String)>,
    names: usize,
}

/// Compares the directory `machine` with the directory `image`.
///
/// # Errors
/// When one of the two cannot be read at all.
pub(super) fn compare(image: &Path, machine: &Path) -> io::Result<EtcComparison> {
    let mut found = EtcComparison::default();
    found.directory(image, machine, Path::new(""), 0)?;
    Ok(found)
}

impl EtcComparison {
    fn directory(&mut self, image: &Path, machine: &Path, below: &Path, depth: usize) -> io::Result<()> {
        let (defaults, own) = (names(&image.join(below))?, names(&machine.join(below))?);
        self.names += defaults.len() + own.len();
        if depth > MOST_DEPTH || self.names > MOST_NAMES {
            return Err(io::Error::other("too many names, or directories in each other"));
        }
        for (name, own) in &own {
            if !defaults.contains_key(name) {
                self.differ(&below.join(name), Difference::Added, Some(own));
            }
        }
        for (name, default) in defaults {
            let path = below.join(&name);
            let own = own.get(&name);
            if default.is_dir() && own.is_some_and(Metadata::is_dir) {
                self.attributes(&path, &default, own);
                if let Err(error) = self.directory(image, machine, &path, depth + 1) {
                    self.unread.push((path, error.to_string()));
                }
                continue;
            }
            self.entry(image, machine, &path, &default, own);
        }
        Ok(())
    }

    /// What is not a directory on both sides.
    fn entry(&mut self, image: &Path, machine: &Path, path: &Path, default: &Metadata, own: Option<&Metadata>) {
        let digest = self.digest(&image.join(path), path, default);
        if let (Some(digest), Some(name)) = (digest, path.to_str().filter(|name| !name.contains('\n'))) {
            self.defaults.insert(name.to_owned(), Seen { digest, deleted: own.is_none() });
        }
        match own {
            None => self.differ(path, Difference::Deleted, None),
            Some(own) if own.file_type() != default.file_type() => self.differ(path, Difference::OtherKind, Some(own)),
            Some(own) => {
                // A file that cannot be read is not one that changed.
                let now = digest.and_then(|_| self.digest(&machine.join(path), path, own));
                if now.is_some() && now != digest {
                    let mut what = vec![if default.is_symlink() { "target" } else { "content" }];
                    what.extend(attributes(default, own));
                    self.differ(path, Difference::Changed(what), Some(own));
                } else {
                    self.attributes(path, default, Some(own));
                }
            }
        }
    }

    fn attributes(&mut self, path: &Path, default: &Metadata, own: Option<&Metadata>) {
        let what = own.map(|own| attributes(default, own)).unwrap_or_default();
        if !what.is_empty() {
            self.differ(path, Difference::Changed(what), own);
        }
    }

    fn differ(&mut self, path: &Path, difference: Difference, own: Option<&Metadata>) {
        let changed_unix_s = own.and_then(|own| u64::try_from(own.ctime()).ok()).unwrap_or(0);
        self.differing.push(Differing { path: path.to_owned(), difference, changed_unix_s });
    }

    fn digest(&mut self, at: &Path, path: &Path, metadata: &Metadata) -> Option<ShortDigest> {
        digest(at, metadata).inspect_err(|error| self.unread.push((path.to_owned(), error.to_string()))).ok()
    }
}

/// Digest of a file's content or a link's target. Of anything else the kind says all.
fn digest(path: &Path, metadata: &Metadata) -> io::Result<ShortDigest> {
    let mut hasher = blake3::Hasher::new();
    if metadata.is_symlink() {
        hasher.update(b"link ").update(fs::read_link(path)?.as_os_str().as_encoded_bytes());
    } else if metadata.is_dir() {
        // A directory that the machine has none of: a file that takes its place is another default.
        hasher.update(b"directory");
    } else if metadata.is_file() {
        hasher.update_reader(files::open(path)?)?;
    }
    let digest = *hasher.finalize().as_bytes();
    Ok(std::array::from_fn(|at| digest[at]))
}

fn attributes(default: &Metadata, own: &Metadata) -> Vec<&'static str> {
    let mut what = Vec::new();
    if default.mode() != own.mode() {
        what.push("permissions");
    }
    if (default.uid(), default.gid()) != (own.uid(), own.gid()) {
        what.push("owner");
    }
    what
}

fn names(directory: &Path) -> io::Result<BTreeMap<std::ffi::OsString, Metadata>> {
    // A name that goes away while it is looked at is not there.
    let entries = fs::read_dir(directory)?.flatten();
    Ok(entries.filter_map(|entry| Some((entry.file_name(), entry.path().symlink_metadata().ok()?))).collect())
}

/// What the machine's own layer holds for nothing: marks of deletion for names that the image does not have, and copies
/// of what the image has just so, which would hide its next default.
pub(super) struct Leftovers {
    pub marks: Vec<PathBuf>,
    pub copies: Vec<PathBuf>,
}

/// Looks through the machine's layer of `/etc`.
///
/// # Errors
/// When a directory of it cannot be read.
pub(super) fn leftovers(changes: &Path, image: &Path) -> io::Result<Leftovers> {
    let mut found = Leftovers { marks: Vec::new(), copies: Vec::new() };
    let mut queue = vec![PathBuf::new()];
    let mut count = 0;
    while let Some(below) = queue.pop() {
        for (name, own) in names(&changes.join(&below))? {
            count += 1;
            if count > MOST_NAMES {
                return Err(io::Error::other("too many names"));
            }
            let path = below.join(name);
            let default = image.join(&path).symlink_metadata().ok();
            if files::is_whiteout(&own) {
                found.marks.extend(default.is_none().then_some(path));
            } else if own.is_dir() {
                queue.push(path);
            } else if let Some(default) = default
                && default.file_type() == own.file_type()
                && attributes(&default, &own).is_empty()
                && digest(&changes.join(&path), &own)? == digest(&image.join(&path), &default)?
            {
                found.copies.push(path);
            }
        }
    }
    order::by(&mut found.marks, PathBuf::cmp);
    order::by(&mut found.copies, PathBuf::cmp);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Difference, compare};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// <https://github.com/NixOS/nixpkgs/pull/507963>, <https://github.com/openbmc/openbmc/issues/3913>
    #[test]
    fn each_way_to_differ_has_its_name() {
        let (image, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [&image, &machine] {
            fs::create_dir_all(root.path().join("d/e")).unwrap();
            for name in ["same", "content", "mode", "d/e/deep", "file-or-directory"] {
                fs::write(root.path().join(name), "x").unwrap();
            }
            symlink("a", root.path().join("link")).unwrap();
        }
        let (of_image, own) = (|path: &str| image.path().join(path), |path: &str| machine.path().join(path));
        fs::write(own("content"), "y").unwrap();
        fs::write(own("d/e/deep"), "longer").unwrap();
        fs::set_permissions(own("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(of_image("gone"), "").unwrap();
        fs::create_dir_all(of_image("gone-directory/x")).unwrap();
        fs::create_dir_all(own("new/directory")).unwrap();
        fs::remove_file(own("link")).unwrap();
        symlink("b", own("link")).unwrap();
        fs::remove_file(own("file-or-directory")).unwrap();
        fs::create_dir(own("file-or-directory")).unwrap();
        let found = compare(image.path(), machine.path()).unwrap();
        let mut seen: Vec<(String, Difference)> =
            found.differing.into_iter().map(|one| (one.path.display().to_string(), one.difference)).collect();
        seen.sort_by(|one, other| one.0.cmp(&other.0));
        let changed = |what| Difference::Changed(vec![what]);
        let expected = [
            ("content", changed("content")),
            ("d/e/deep", changed("content")),
            ("file-or-directory", Difference::OtherKind),
            ("gone", Difference::Deleted),
            ("gone-directory", Difference::Deleted),
            ("link", changed("target")),
            ("mode", changed("permissions")),
            ("new", Difference::Added),
        ];
        assert_eq!(seen, expected.map(|(path, difference)| (path.to_owned(), difference)));
        assert!(found.unread.is_empty() && found.defaults["gone"].deleted && !found.defaults["same"].deleted);
    }
}
