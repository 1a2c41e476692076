//! How an update stands, for people, commands and reports: `/run/reflash/update.json`.
//!
//! It is in memory: where the data partition is full or read-only, that is what has to be said. Its members persist:
//! they are added, and never change. `docs/updates.md` documents them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use crate::boot::this_boot;
use crate::release::manifest::Manifest;
use crate::sys::files;

/// Name of the record in its directory.
const NAME: &str = "update.json";
/// Size of the largest one that is read, bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// State of an update, by the word that programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateState {
    /// The system does nothing by itself.
    Off,
    /// No newer release is offered.
    Current,
    /// A release is being fetched, or what was fetched waits for the rest.
    Fetching,
    /// All is there, and a person or another program has to say when.
    Fetched,
    /// All is there, and the moment is waited for.
    Waiting,
    /// The next start applies it.
    Requested,
    /// The release that is offered is not for this robot, or cannot be installed on it.
    Refused,
    /// Something failed, and is tried again.
    Failed,
}

impl UpdateState {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Current => "current",
            Self::Fetching => "fetching",
            Self::Fetched => "fetched",
            Self::Waiting => "waiting",
            Self::Requested => "requested",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Place of the record.
#[derive(Debug, Clone)]
pub struct StandingFile {
    directory: PathBuf,
}

/// State of an update with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateStanding {
    /// The state, by its word.
    pub state: UpdateState,
    /// The sentence for people.
    pub sentence: String,
    /// Version and serial of the release that is offered, as far as that is known.
    pub offered: Option<(String, u64)>,
    /// Bytes that are stored, and that there are to be.
    pub bytes: (u64, u64),
    /// Obstacles to the restart, a phrase each.
    pub waits_for: Vec<String>,
    /// Time at which a server last answered, seconds since 1970.
    pub looked_unix_s: Option<u64>,
    /// Time before which the timer has nothing to do, seconds since 1970.
    pub next_unix_s: Option<u64>,
}

impl UpdateStanding {
    /// A state with its sentence, of which nothing else is known.
    #[must_use]
    pub fn new(state: UpdateState, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self {
            state,
            sentence,
            offered: None,
            bytes: (0, 0),
            waits_for: Vec::new(),
            looked_unix_s: None,
            next_unix_s: None,
        }
    }

    /// The standing with the release that is offered.
    #[must_use]
    pub fn offering(self, manifest: &Manifest) -> Self {
        Self { offered: Some((manifest.version.clone(), manifest.serial)), ..self }
    }

    /// The standing as programs read it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (stored, needed) = self.bytes;
        json!({
            "state": self.state.word(), "sentence": self.sentence,
            "offered": self.offered.as_ref().map(|(version, serial)| json!({ "version": version, "serial": serial })),
            "stored_bytes": stored, "needed_bytes": needed, "waits_for": self.waits_for,
            "looked_unix_s": self.looked_unix_s, "next_unix_s": self.next_unix_s,
        })
    }
}

impl StandingFile {
    /// The record of this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::within(Path::new(this_boot::DIRECTORY))
    }

    /// The record in another directory.
    #[must_use]
    pub fn within(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Reads the record; `None` where nothing was done since this machine was started.
    #[must_use]
    pub fn read(&self) -> Option<Value> {
        serde_json::from_slice(&files::read(&self.directory.join(NAME), MAX_BYTES).ok()?).ok()
    }

    /// Time at which the record was written, by the clock of then, seconds since 1970.
    #[must_use]
    pub fn written_unix_s(&self) -> Option<u64> {
        let written = self.directory.join(NAME).metadata().and_then(|file| file.modified()).ok()?;
        Some(written.duration_since(UNIX_EPOCH).ok()?.as_secs())
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, standing: &UpdateStanding) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let new = self.directory.join(NAME).with_added_extension("new");
        fs::write(&new, format!("{}\n", standing.to_json()))?;
        fs::rename(new, self.directory.join(NAME))
    }
}
