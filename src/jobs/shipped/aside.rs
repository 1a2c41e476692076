//! What a release renewed or removed, kept until the release is good: an undo puts it back.
//!
//! The directory `aside` has `list.json`, which says for each path what was there before, the record as it was before,
//! and what was there, under names that follow from the paths. The list is on the medium before the first path changes,
//! so that a power cut at any instant leaves a list that is true of all that was done. A release that follows one which
//! was never good adds to the list, and what is in it stays: the way leads back to the last good release.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::{ShippedRecord, make_private, read_json, write_json};
use crate::release::shipped::RawPath;
use crate::sys::files;

/// Name of the directory.
const NAME: &str = "aside";
/// Name of what an undo could not put back.
const NOT_PUT_BACK: &str = "not-put-back";
const LIST_NAME: &str = "list.json";
const RECORD_BEFORE: &str = "before.json";
/// Size of the largest list or record that is read, bytes.
const MAX_BYTES: u64 = 100 << 20;

/// State of a path before a release changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PathBefore {
    /// Something was there, and is kept under this name, unless the change was never made.
    Kept(String),
    /// Nothing was there.
    Absent,
    /// A directory was there, which a release changed in place or removed because it was empty.
    Directory { mode: u32, uid: u32, gid: u32 },
}

/// The list of what is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AsideList {
    /// Image that changed these paths, the last one of several.
    pub image: String,
    /// Each path, escaped, with its state before.
    pub paths: BTreeMap<String, PathBefore>,
}

/// The directory of what is kept.
#[derive(Debug)]
pub(super) struct Aside {
    directory: PathBuf,
    pub list: AsideList,
}

impl Aside {
    /// Opens what is kept in the directory `own`; `None` where nothing is.
    pub fn open(own: &Path) -> io::Result<Option<Self>> {
        let directory = own.join(NAME);
        Ok(read_json(&directory.join(LIST_NAME), MAX_BYTES)?.map(|list| Self { directory, list }))
    }

    /// Adds paths to what is kept in `own`, and returns when the list is on the medium. Paths that it has stay.
    pub fn extend(
        own: &Path,
        image: &str,
        record: &ShippedRecord,
        paths: impl IntoIterator<Item = (RawPath, PathBefore)>,
    ) -> io::Result<Self> {
        let mut this = match Self::open(own)? {
            Some(this) => this,
            None => {
                let directory = own.join(NAME);
                // Without a list it is a beginning that was cut, or damage.
                files::removed_or_gone(fs::remove_dir_all(&directory))?;
                make_private(&directory)?;
                write_json(&directory.join(RECORD_BEFORE), record)?;
                Self { directory, list: AsideList::default() }
            }
        };
        image.clone_into(&mut this.list.image);
        for (path, before) in paths {
            this.list.paths.entry(path.escaped()).or_insert(before);
        }
        write_json(&this.directory.join(LIST_NAME), &this.list)?;
        Ok(this)
    }

    /// Name under which what lies at a path is kept.
    pub fn name_of(path: &RawPath) -> String {
        blake3::hash(path.escaped().as_bytes()).to_hex().as_str().get(..32).unwrap_or_default().to_owned()
    }

    /// Place of what is kept for a path, if the list has it.
    pub fn place_of(&self, path: &RawPath) -> Option<PathBuf> {
        match self.list.paths.get(&path.escaped())? {
            PathBefore::Kept(name) => Some(self.kept(name)),
            PathBefore::Absent | PathBefore::Directory { .. } => None,
        }
    }

    /// Place of what is kept under a name.
    pub fn kept(&self, name: &str) -> PathBuf {
        // The list is a file that anything may have damaged.
        self.directory.join(Path::new(name).file_name().unwrap_or_default())
    }

    /// The machine's record as it was before the first change.
    pub fn record_before(&self) -> io::Result<Option<ShippedRecord>> {
        read_json(&self.directory.join(RECORD_BEFORE), MAX_BYTES)
    }

    /// Removes what is kept: the release is good, or all of it was put back.
    pub fn forget(self) -> io::Result<()> {
        // Without the list the rest counts as nothing.
        files::removed_or_gone(fs::remove_file(self.directory.join(LIST_NAME)))?;
        files::removed_or_gone(fs::remove_dir_all(&self.directory))
    }

    /// Keeps what could not be put back for a person, under another name.
    pub fn give_up(self) -> io::Result<PathBuf> {
        let to = self.directory.with_file_name(NOT_PUT_BACK);
        files::removed_or_gone(fs::remove_dir_all(&to))?;
        fs::rename(&self.directory, &to)?;
        Ok(to)
    }
}
