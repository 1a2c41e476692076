//! The files of a recovery partition that it has once, as they are found there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::jobs::keys;
use crate::machine::config::Layer;
use crate::release::manifest::TrustedKeys;
use crate::sys::files;

/// Name of the configuration.
pub const CONFIG: &str = "reflash.toml";
/// Name of the file with the name that a person gave the machine.
pub const ASSET: &str = "asset";
/// Name of the file with what one product sets in the boot script.
pub const LOCAL_SCRIPT: &str = "grub/local.cfg";
/// Name of the directory of the trusted keys.
pub const KEYS: &str = "keys";
/// A file beside the local settings that every recovery partition has.
const LOADER: &str = "grub/grub.cfg";
/// Size of the largest file that is read, bytes: that of a configuration.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A file of the recovery partition as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Original {
    /// Text that the file holds.
    Text(String),
    /// Reason for which the file, which is there, cannot be read.
    Unreadable(String),
}

/// The files of a recovery partition that it has once. One that is not there is missing.
#[derive(Debug, Default)]
pub struct Originals {
    files: BTreeMap<String, Original>,
    has_loader: bool,
}

impl Originals {
    /// Reads the files of the recovery partition that is mounted at `root`.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let mut found = Self { has_loader: files::open(&root.join(LOADER)).is_ok(), ..Self::default() };
        let mut add = |name: String| {
            let original = match read_text(root, &name) {
                Ok(text) => Original::Text(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => Original::Unreadable(error.to_string()),
            };
            found.files.insert(name, original);
        };
        [CONFIG, ASSET, LOCAL_SCRIPT].map(str::to_owned).into_iter().for_each(&mut add);
        for path in keys::key_paths(&root.join(KEYS)).unwrap_or_default() {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                add(format!("{KEYS}/{name}"));
            }
        }
        found
    }

    /// The file of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Original> {
        self.files.get(name)
    }

    /// All files that are there.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Original)> {
        self.files.iter().map(|(name, original)| (name.as_str(), original))
    }

    /// Whether a file is there, and is nothing that a file of its name can be.
    #[must_use]
    pub fn is_damaged(&self, name: &str) -> bool {
        match self.get(name) {
            None => false,
            Some(Original::Unreadable(_)) => true,
            Some(Original::Text(text)) => worth(name, text) == FileWorth::Nothing,
        }
    }

    /// Whether a file that is not there was removed, as what is beside it shows. A directory whose block is lost reads
    /// like an empty one.
    #[must_use]
    pub fn was_removed(&self, name: &str) -> bool {
        let is_used = |name: &str, original: &Original| match original {
            Original::Text(text) => worth(name, text) > FileWorth::Nothing,
            Original::Unreadable(_) => false,
        };
        match name {
            CONFIG => false,
            LOCAL_SCRIPT => self.has_loader,
            key if is_key(key) => self.files.iter().any(|(other, found)| is_key(other) && is_used(other, found)),
            _ => self.files.get(CONFIG).is_some_and(|config| is_used(CONFIG, config)),
        }
    }
}

impl FromIterator<(String, Original)> for Originals {
    fn from_iter<T: IntoIterator<Item = (String, Original)>>(files: T) -> Self {
        Self { files: files.into_iter().collect(), has_loader: false }
    }
}

/// Use of a text in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileWorth {
    /// It is not such a file at all.
    Nothing,
    /// A part of it is not understood.
    Partly,
    /// All of it is understood, and it lacks what has no default.
    Incomplete,
    /// It is right.
    Right,
}

/// The least use of a text that is kept where there is no copy.
pub(super) const LEAST_TO_KEEP: FileWorth = FileWorth::Partly;

/// Finds out what a text is worth in the place of the file of this name. Pure.
pub(super) fn worth(name: &str, text: &str) -> FileWorth {
    let is_right = match name {
        CONFIG => return worth_of_config(text),
        key if is_key(key) => TrustedKeys::default().add(name, text).is_ok(),
        _ => !text.trim().is_empty() && text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t')),
    };
    if is_right { FileWorth::Right } else { FileWorth::Nothing }
}

fn worth_of_config(text: &str) -> FileWorth {
    match Layer::parse_usable(CONFIG, text) {
        Err(_) => FileWorth::Nothing,
        Ok(usable) if !usable.problems.is_empty() => FileWorth::Partly,
        Ok(usable) if !usable.value.is_complete() => FileWorth::Incomplete,
        Ok(_) => FileWorth::Right,
    }
}

/// Whether a robot cannot work with this text alone. Pure.
pub(super) fn is_useless(name: &str, text: &str) -> bool {
    match name {
        CONFIG => Layer::parse_usable(CONFIG, text).map_or(true, |usable| !usable.value.is_complete()),
        _ => worth(name, text) == FileWorth::Nothing,
    }
}

/// Whether a name is that of a trusted key.
pub(super) fn is_key(name: &str) -> bool {
    name.strip_prefix(KEYS).is_some_and(|rest| rest.starts_with('/') && rest.ends_with(".pub"))
}

/// Reads a file of the recovery partition.
pub(super) fn read_text(root: &Path, name: &str) -> io::Result<String> {
    let bytes = files::read_below(root, Path::new(name), MAX_FILE_BYTES)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}
