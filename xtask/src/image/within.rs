//! Paths inside of a tree, as the image's own system will see them.
//!
//! A link of the tree that begins with a slash leads to the root of the tree there, and to the root of this host for
//! every program outside. `/var/tmp -> /tmp` in an image is common, and a builder that empties `/var/tmp` through it
//! empties the `/tmp` of its host. So every path of the tree that is read, written or emptied goes through here.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// Links that are followed on the way to a path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Returns the place of `path` inside the tree. Links on the way are followed within the tree; the last name, which may
/// be a link itself or nothing yet, is not.
pub fn inside(tree: &Path, path: &Path) -> PathBuf {
    walk(tree, path, false)
}

/// Returns the place that `path` leads to inside the tree, with a link at its end followed too.
pub fn followed(tree: &Path, path: &Path) -> PathBuf {
    walk(tree, path, true)
}

/// Returns the lines of a file of the tree, which need not be text: people's names in old databases are in Latin 1.
pub fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.split(|byte| *byte == b'\n').filter(move |_| !content.is_empty())
}

/// Reads a file of the tree as text, with a mark in the place of each byte that is none; without the file nothing.
///
/// # Errors
/// Fails with the path, when the file is there and cannot be read.
pub fn text(tree: &Path, path: &str) -> Result<String> {
    match fs::read(followed(tree, Path::new(path))) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        // A part of the way that is a file leads to nothing either.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {path} of the image")),
    }
}

fn walk(tree: &Path, path: &Path, is_last_followed: bool) -> PathBuf {
    let (mut below, mut links, mut rest) = (PathBuf::new(), 0, names(path));
    while let Some(name) = rest.pop() {
        if name == ".." {
            below.pop();
            continue;
        }
        let next = below.join(&name);
        let target = fs::read_link(tree.join(&next)).ok().filter(|_| is_last_followed || !rest.is_empty());
        let Some(target) = target else {
            below = next;
            continue;
        };
        links += 1;
        // A circle of links leads nowhere, and never out of the tree.
        if links <= MAX_LINKS {
            if target.is_absolute() {
                below.clear();
            }
            rest.extend(names(&target));
        }
    }
    tree.join(below)
}

/// The names of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::{followed, inside, lines, text};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn links_lead_to_where_the_images_own_system_finds_them() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::create_dir_all(at("data/log")).unwrap();
        for (target, link) in [
            ("usr/bin", "bin"),
            ("/data", "d"),
            ("/d/log", "log"),
            ("../../../../etc", "up"),
            ("round", "circle"),
            ("circle", "round"),
            ("/usr/bin/sh", "usr/bin/link"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        for (path, place, end) in [
            ("/bin/sh", "usr/bin/sh", "usr/bin/sh"),
            ("bin", "bin", "usr/bin"),
            ("/d/log/x", "data/log/x", "data/log/x"),
            ("log", "log", "data/log"),
            ("log/../y", "data/y", "data/y"),
            ("up/passwd", "etc/passwd", "etc/passwd"),
            ("../../etc/./passwd", "etc/passwd", "etc/passwd"),
            ("circle/x", "x", "x"),
            ("/bin/link", "usr/bin/link", "usr/bin/sh"),
            ("no/such/file", "no/such/file", "no/such/file"),
        ] {
            assert_eq!(inside(tree.path(), Path::new(path)), at(place), "{path}");
            assert_eq!(followed(tree.path(), Path::new(path)), at(end), "{path}");
        }
    }

    #[test]
    fn files_of_any_bytes_are_read() {
        assert_eq!(lines(b"a\n\xfc\n\nb").collect::<Vec<_>>(), [&b"a"[..], b"\xfc", b"", b"b"]);
        assert_eq!((lines(b"").count(), lines(b"\n").count(), lines(b"a\n").count()), (0, 0, 1));
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("x"), b"a\xfc\n").unwrap();
        assert_eq!(text(tree.path(), "x").unwrap(), "a\u{fffd}\n");
        assert_eq!(
            (text(tree.path(), "y").unwrap(), text(tree.path(), "x/y").unwrap()),
            (String::new(), String::new())
        );
    }
}
