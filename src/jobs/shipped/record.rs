//! The machine's record of what releases brought to it, in [`OWN`] on the data partition.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::KnownPath;
use crate::sys::files;

/// Directory of the record and of what is kept for an undo, below `/var`.
pub const OWN: &str = "lib/reflash";
/// Name of the record.
const NAME: &str = "shipped.json";
/// Size of the largest record that is read, bytes: a hundred for each of a million paths.
const MAX_BYTES: u64 = 100 << 20;

/// Record of what releases brought to this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShippedRecord {
    /// Image whose list was carried out last, without a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<String>,
    /// Image that called itself good last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good: Option<String>,
    /// Paths that were brought, changed or removed, escaped as in the list.
    pub paths: BTreeMap<String, KnownPath>,
}

impl ShippedRecord {
    /// Reads the record in the directory `own`; `None` where there is none.
    ///
    /// # Errors
    /// The file system's, or what is there is no record.
    pub fn load(own: &Path) -> io::Result<Option<Self>> {
        read_json(&own.join(NAME), MAX_BYTES)
    }

    /// Replaces the record, and returns when it is on the medium.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, own: &Path) -> io::Result<()> {
        make_private(own)?;
        write_json(&own.join(NAME), self)
    }
}

/// Makes the directory `own`, which only root can look into: it keeps files of anybody.
///
/// # Errors
/// The file system's, or the directory above it is a symbolic link.
pub fn make_private(own: &Path) -> io::Result<()> {
    if let Some(above) = own.parent() {
        DirBuilder::new().mode(0o755).recursive(true).create(above)?;
        // A link that a person put there leads somewhere else in this early step of a boot than in the system.
        if above.is_symlink() {
            return Err(io::Error::new(ErrorKind::NotADirectory, format!("{} is a symbolic link", above.display())));
        }
    }
    match DirBuilder::new().mode(0o700).create(own) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Reads a file of JSON; `None` where there is none.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, limit_bytes: u64) -> io::Result<Option<T>> {
    match files::read(path, limit_bytes) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file of JSON whole, and returns when it is on the medium.
pub(super) fn write_json(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let new = path.with_added_extension("new");
    files::removed_or_gone(fs::remove_file(&new))?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut writer = io::BufWriter::new(file);
    serde_json::to_writer(&mut writer, content).map_err(io::Error::other)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
