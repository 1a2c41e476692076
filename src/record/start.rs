//! The record of how this boot of the system was put together: `/run/reflash/boot.json`.
//!
//! The first step of the boot writes it, before there is a system; commands and units of the running system read it.
//! Its members persist: they are added, and never change. `docs/failure-modes.md` documents them.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys::files;

/// Path of the record in the running system.
pub const PATH: &str = "/run/reflash/boot.json";
/// Name of the record in its directory.
const NAME: &str = "boot.json";
/// Size of the largest record that is read, bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// Most sentences of losses that are kept: a partition that is damaged all over has no end of them.
const MAX_LOSSES: usize = 40;

/// Use of the data partition in this boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataUse {
    /// The partition is mounted for reading and writing, as it should be.
    Writable,
    /// The partition is mounted for reading.
    ReadOnly,
    /// The partition cannot be read.
    #[default]
    Lost,
}

/// Origin of `/var` in this boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VarFrom {
    /// The directory of the data partition, as it should be.
    Data,
    /// The directory of the data partition; what changes is kept in memory.
    MemoryOverData,
    /// A directory in memory that began empty.
    Memory,
    /// The directory of the image, which cannot be written.
    #[default]
    Image,
}

/// Origin of `/etc` in this boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcFrom {
    /// The machine's own changes lie over that of the image, and are kept, as it should be.
    Data,
    /// The machine's own changes lie over that of the image, and what changes now is kept in memory.
    MemoryOverData,
    /// The machine's own changes lie over that of the image, and nothing can be changed.
    ReadOnly,
    /// The directory of the image; what changes is kept in memory.
    Memory,
    /// The directory of the image, which cannot be written.
    #[default]
    Image,
}

/// Record of how this boot was put together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartRecord {
    /// Number of this safe start, counted from 1; absent in a normal one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_start: Option<u32>,
    /// Use of the data partition.
    pub data: DataUse,
    /// Mount point of a data partition that is mounted for reading beside the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_at: Option<String>,
    /// Origin of `/var`.
    pub var: VarFrom,
    /// Origin of `/etc`.
    pub etc: EtcFrom,
    /// Whether the data partition was made anew in this boot.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub data_renewed: bool,
    /// Losses of this boot, and what was given up, a sentence each.
    pub lost: Vec<String>,
    /// Sentences about what keeps this boot from being called good. Only in a report: in memory, `health.json` has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_good: Vec<String>,
    /// Serial of the release that runs. Only in a report, as the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// BLAKE3 digest of the signed manifest of that release, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// In a safe start: accounts with which a person can log in, by password or key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logins: Option<Vec<String>>,
}

impl StartRecord {
    /// The record of a safe start of which nothing else is known.
    #[must_use]
    pub fn of_safe_start(number: u32) -> Self {
        Self { safe_start: Some(number), ..Self::default() }
    }

    /// Adds the sentence of a loss.
    pub fn lose(&mut self, sentence: impl Into<String>) {
        if self.lost.len() < MAX_LOSSES {
            self.lost.push(sentence.into());
        }
    }

    /// Adds the sentence of a loss to the record of this boot in `directory`, while the system runs. A boot of an older
    /// image, without a record, gets one that says no more than this.
    ///
    /// # Errors
    /// The file system's.
    pub fn add_loss(directory: &Path, sentence: impl Into<String>) -> io::Result<()> {
        let path = directory.join(NAME);
        // What a record does not say is good is not to be reported as lost by this one.
        let whole = Self { data: DataUse::Writable, var: VarFrom::Data, etc: EtcFrom::Data, ..Self::default() };
        let mut record = Self::read(&path).unwrap_or(whole);
        let sentence = sentence.into();
        if record.lost.contains(&sentence) {
            return Ok(());
        }
        record.lose(sentence);
        record.write(directory)
    }

    /// Whether all is as it should be.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        (self.data, self.var, self.etc) == (DataUse::Writable, VarFrom::Data, EtcFrom::Data)
            && self.safe_start.is_none()
            && self.lost.is_empty()
            && self.not_good.is_empty()
    }

    /// Reads the record of this boot; `None` where the system's first step wrote none, as that of older images.
    #[must_use]
    pub fn of_this_boot() -> Option<Self> {
        Self::read(Path::new(PATH))
    }

    /// Reads a record.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&files::read(path, MAX_BYTES).ok()?).ok()
    }

    /// Writes the record into `directory`, which must be there.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        // Whole or not at all: a unit may read it at any time.
        let new = directory.join(NAME).with_added_extension("new");
        fs::write(&new, text + "\n")?;
        fs::rename(new, directory.join(NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::{DataUse, EtcFrom, StartRecord, VarFrom};

    #[test]
    fn a_record_is_read_as_it_was_written_and_by_its_documented_members() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = StartRecord {
            safe_start: Some(2),
            data: DataUse::ReadOnly,
            data_at: Some("/run/reflash/data".into()),
            var: VarFrom::MemoryOverData,
            etc: EtcFrom::MemoryOverData,
            logins: Some(vec!["pilot".into()]),
            serial: Some(7),
            manifest: Some("00".into()),
            ..StartRecord::default()
        };
        record.lose("something");
        record.write(dir.path()).unwrap();
        let path = dir.path().join("boot.json");
        assert_eq!(StartRecord::read(&path), Some(record));
        let text = std::fs::read_to_string(&path).unwrap();
        for member in [
            "\"safe_start\": 2",
            "\"data\": \"read-only\"",
            "\"data_at\": \"/run/reflash/data\"",
            "\"var\": \"memory-over-data\"",
            "\"etc\": \"memory-over-data\"",
            "\"lost\": [",
            "\"logins\": [",
            "\"serial\": 7",
            "\"manifest\": \"00\"",
        ] {
            assert!(text.contains(member), "{member}: {text}");
        }
    }

    #[test]
    fn members_of_later_versions_are_passed_over_and_missing_ones_are_not_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.json");
        std::fs::write(&path, "{\"data\":\"writable\",\"var\":\"data\",\"etc\":\"data\",\"later\":[1]}").unwrap();
        assert!(StartRecord::read(&path).unwrap().is_whole());
        std::fs::write(&path, "{}").unwrap();
        assert!(!StartRecord::read(&path).unwrap().is_whole());
        std::fs::write(&path, "{").unwrap();
        assert_eq!(StartRecord::read(&path), None);
    }

    #[test]
    fn the_running_system_adds_a_loss_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.json");
        StartRecord::add_loss(dir.path(), "x").unwrap();
        assert_eq!(StartRecord::read(&path).unwrap().data, DataUse::Writable);
        let before = StartRecord { data: DataUse::Lost, ..StartRecord::default() };
        before.write(dir.path()).unwrap();
        (0..2).for_each(|_| StartRecord::add_loss(dir.path(), "x").unwrap());
        let record = StartRecord::read(&path).unwrap();
        assert_eq!((record.data, record.lost), (DataUse::Lost, vec!["x".to_owned()]));
    }

    #[test]
    fn losses_have_an_end() {
        let mut record = StartRecord::default();
        (0..1000).for_each(|_| record.lose("x"));
        assert!(record.lost.len() < 100);
    }
}
