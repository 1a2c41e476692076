//! The robot's own copy of its boot code, on the state partition: with it, damage is mended without a network, also by
//! the running system.
//!
//! | file in `boot/` of the state partition | content |
//! |---|---|
//! | `boot-code.json` | serial of the release that the copy is of, and names, digests and sizes of the files |
//! | one named by its digest for each of these | content of the file |

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jobs::state::{StatePartition, make_directory, replace};
use crate::release::digest::Digest;
use crate::release::manifest::{self, Manifest, Object};
use crate::sys::files;

/// List of the files.
const LIST: &str = "boot-code.json";
/// Size of the largest list that is read, bytes.
const MAX_LIST_BYTES: u64 = 64 * 1024;
/// Size of the largest file that is kept or fetched, bytes: GRUB for UEFI has less than 1 MiB.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Boot code of one release: the files of it that this disk uses, by their names in the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPieces {
    /// Serial of the release.
    pub serial: u64,
    files: Vec<(String, Vec<u8>)>,
}

/// List of the files as it is on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    serial: u64,
    files: Vec<manifest::File>,
}

impl BootPieces {
    /// Boot code with these files.
    #[must_use]
    pub fn new(serial: u64, files: Vec<(String, Vec<u8>)>) -> Self {
        Self { serial, files }
    }

    /// Boot code that a later release has too, as that of this release.
    #[must_use]
    pub fn of_release(self, serial: u64) -> Self {
        Self { serial, ..self }
    }

    /// Content of the file with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(known, _)| known == name).map(|(_, content)| content.as_slice())
    }

    /// Names of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(name, _)| name.as_str())
    }

    /// Whether it has just the files that the release has of these, byte for byte.
    #[must_use]
    pub fn equals(&self, manifest: &Manifest, names: &[&str]) -> bool {
        let offered = offered(manifest, names);
        offered.len() == self.files.len()
            && offered
                .iter()
                .all(|file| self.get(&file.name).is_some_and(|content| Digest::of(content) == file.object.blake3))
    }

    /// Reads the robot's own copy; `None` where there is none, or a file of it is damaged.
    #[must_use]
    pub fn read(state: &StatePartition) -> Option<Self> {
        let root = state.boot_code_path();
        let list: List =
            serde_json::from_slice(&files::read_below(&root, Path::new(LIST), MAX_LIST_BYTES).ok()?).ok()?;
        let content = |file: manifest::File| {
            let limit_bytes = file.object.size_bytes.min(MAX_FILE_BYTES);
            let path = file.object.blake3.to_string();
            let content = files::read_below(&root, Path::new(&path), limit_bytes).ok()?;
            (Digest::of(&content) == file.object.blake3).then_some((file.name, content))
        };
        let files = list.files.into_iter().map(content).collect::<Option<Vec<_>>>()?;
        Some(Self { serial: list.serial, files })
    }

    /// Makes this the robot's own copy. A cut leaves the one before, or this one.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&self, state: &StatePartition) -> io::Result<()> {
        let root = state.boot_code_path();
        make_directory(&root)?;
        let mut list = List { serial: self.serial, files: Vec::new() };
        for (name, content) in &self.files {
            let object = Object { blake3: Digest::of(content), size_bytes: content.len() as u64 };
            let path = root.join(object.blake3.to_string());
            if !files::read(&path, MAX_FILE_BYTES).is_ok_and(|found| found == *content) {
                replace(&path, content)?;
            }
            list.files.push(manifest::File { name: name.clone(), object });
        }
        replace(&root.join(LIST), &serde_json::to_vec(&list)?)?;
        File::open(&root)?.sync_all()?;
        remove_others(&root, &list);
        Ok(())
    }
}

/// Files of the release among these names, none of them too large.
pub(crate) fn offered<'a>(manifest: &'a Manifest, names: &[&str]) -> Vec<&'a manifest::File> {
    let is_wanted =
        |file: &&manifest::File| names.contains(&file.name.as_str()) && file.object.size_bytes <= MAX_FILE_BYTES;
    manifest.files.iter().filter(is_wanted).collect()
}

/// Removes what no list names any more. Best effort: it only takes room.
fn remove_others(root: &PathBuf, list: &List) {
    let named = |name: &str| name == LIST || list.files.iter().any(|file| file.object.blake3.to_string() == name);
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(named) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
