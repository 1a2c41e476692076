//! Inode numbers of everything on a recovery partition. e2fsck puts what no directory leads to any more into
//! `lost+found`, by the number of its inode.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Most directories on the way to a file: `slots/a/vmlinuz` has two.
const MAX_DEPTH: usize = 3;
/// Most places that are kept; a recovery partition has some thirty.
const MAX_PLACES: usize = 1024;
/// Where e2fsck puts what it finds.
const LOST_AND_FOUND: &str = "lost+found";

/// Place of a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedPlace {
    /// Number of the inode.
    pub inode: u64,
    /// Kind of the entry.
    pub kind: Kind,
}

/// Kind of an entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Directory of any size.
    Directory,
    /// Regular file of so many bytes.
    File(u64),
}

impl Kind {
    /// Returns the kind by the metadata; `None` for anything but a file and a directory.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Option<Self> {
        match metadata.file_type() {
            kind if kind.is_dir() => Some(Self::Directory),
            kind if kind.is_file() => Some(Self::File(metadata.len())),
            _ => None,
        }
    }
}

/// Finds the place of everything below `root`.
pub(super) fn find(root: &Path) -> BTreeMap<String, NotedPlace> {
    let mut places = BTreeMap::new();
    let mut directories = vec![(String::new(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory)).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let Some(kind) = Kind::of(&metadata).filter(|_| name != LOST_AND_FOUND) else { continue };
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if places.len() >= MAX_PLACES {
                return places;
            }
            if kind == Kind::Directory && depth < MAX_DEPTH {
                directories.push((path.clone(), depth + 1));
            }
            places.insert(path, NotedPlace { inode: metadata.ino(), kind });
        }
    }
    places
}

/// Joins the places as they are now with those that were known before: what is not found may be lost. Pure.
pub(super) fn merged(
    before: &BTreeMap<String, NotedPlace>,
    mut found: BTreeMap<String, NotedPlace>,
) -> BTreeMap<String, NotedPlace> {
    let used: Vec<u64> = found.values().map(|place| place.inode).collect();
    let known = before.iter().filter(|(path, place)| !found.contains_key(*path) && !used.contains(&place.inode));
    let known: Vec<_> = known.take(MAX_PLACES - found.len()).map(|(path, place)| (path.clone(), *place)).collect();
    found.extend(known);
    found
}

#[cfg(test)]
mod tests {
    use super::{Kind, NotedPlace, find, merged};
    use std::collections::BTreeMap;
    use std::fs;

    #[test]
    fn what_is_not_found_stays_known_until_its_inode_is_another_s() {
        let place = |inode| NotedPlace { inode, kind: Kind::File(1) };
        let of = |places: &[(&str, u64)]| -> BTreeMap<String, NotedPlace> {
            places.iter().map(|(path, inode)| ((*path).to_owned(), place(*inode))).collect()
        };
        let before = of(&[("a", 12), ("b", 13), ("c", 14)]);
        assert_eq!(merged(&before, of(&[("a", 13)])), of(&[("a", 13), ("c", 14)]));
        assert_eq!(merged(&before, of(&[])), before);
    }

    #[test]
    fn everything_but_what_was_lost_before_has_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for directory in ["slots/a", "lost+found"] {
            fs::create_dir_all(dir.path().join(directory)).unwrap();
        }
        fs::write(dir.path().join("slots/a/vmlinuz"), "kernel").unwrap();
        fs::write(dir.path().join("lost+found/#12"), "x").unwrap();
        let found = find(dir.path());
        assert_eq!(found.keys().collect::<Vec<_>>(), ["slots", "slots/a", "slots/a/vmlinuz"]);
        assert_eq!(found["slots/a/vmlinuz"].kind, Kind::File(6));
    }
}
