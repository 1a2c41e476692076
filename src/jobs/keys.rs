//! Reading of a machine's trusted keys, which are files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::order;
use crate::release::manifest::{ManifestError, TrustedKeys};
use crate::sys::files;

/// Size of the largest key file, bytes: a minisign key has two lines, about 120 bytes.
const MAX_KEY_BYTES: u64 = 4096;
/// Number of keys of one directory: each costs a verification for every manifest.
const MAX_KEYS: usize = 64;
/// Number of names of one directory that are looked at: a damaged one may have any number.
const MAX_NAMES: usize = 4096;

/// Failure to read the keys of a machine.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A directory or a file cannot be read, or is not what it should be.
    #[error("the trusted keys in {} cannot be read", .path.display())]
    Read {
        /// The directory or the file.
        path: PathBuf,
        /// Error of the system call, or what is there instead.
        source: io::Error,
    },
    /// A file is no key.
    #[error("a trusted key cannot be used")]
    Key(#[from] ManifestError),
}

/// Reads the `*.pub` files of a directory, in the order of their names; a directory that is not there has none. Links
/// to files are followed, except where the file system is mounted without them, as all media are.
///
/// # Errors
/// The directory or one of the files cannot be read, has no end, or there are too many of them.
pub fn key_files(directory: &Path) -> Result<Vec<(PathBuf, String)>, KeysError> {
    key_paths(directory)?.into_iter().map(|path| text_of(&path).map(|text| (path, text))).collect()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeysError {
    let path = path.to_owned();
    move |source| KeysError::Read { path, source }
}

/// Reads a key file.
pub(super) fn text_of(path: &Path) -> Result<String, KeysError> {
    let text = files::read_text(&fs::canonicalize(path).map_err(failed(path))?, MAX_KEY_BYTES);
    text.map_err(failed(path))
}

/// Lists the `*.pub` files of a directory, in the order of their names; a directory that is not there has none.
pub(super) fn key_paths(directory: &Path) -> Result<Vec<PathBuf>, KeysError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(failed(directory))?,
    };
    let too_many = |what: &str, most: usize| {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("more than {most} {what}"));
        failed(directory)(source)
    };
    let mut paths = Vec::new();
    for (number, entry) in entries.enumerate() {
        if number >= MAX_NAMES {
            return Err(too_many("names in the directory", MAX_NAMES));
        }
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            paths.push(path);
        }
    }
    if paths.len() > MAX_KEYS {
        return Err(too_many("keys", MAX_KEYS));
    }
    order::by(&mut paths, PathBuf::cmp);
    Ok(paths)
}

/// The keys that a machine trusts.
#[derive(Default)]
pub struct MachineKeys {
    /// Keys of every directory that can be read.
    pub keys: TrustedKeys,
    /// Failures of the directories and files that were left out.
    pub left_out: Vec<KeysError>,
    /// Names of the keys of which the copy is used.
    pub copies: Vec<String>,
}

/// Reads the trusted keys of every directory that is there. A file that is no key is refused rather than skipped: a
/// robot that trusts fewer keys than its maker believes is found out when it is too late. A directory that cannot be
/// read is left out while another has keys: its file system is damaged, and the robot recovers without it.
///
/// # Errors
/// A file is not a minisign public key, or no key at all can be read.
pub fn read_keys(directories: &[String]) -> Result<MachineKeys, KeysError> {
    let mut read = MachineKeys::default();
    for directory in directories {
        match key_files(Path::new(directory)) {
            Ok(files) => {
                for (path, text) in files {
                    read.keys.add(&path.display().to_string(), &text)?;
                }
            }
            Err(error) => read.left_out.push(error),
        }
    }
    match read.left_out.pop() {
        Some(error) if read.keys.is_empty() => Err(error),
        last => {
            read.left_out.extend(last);
            Ok(read)
        }
    }
}
