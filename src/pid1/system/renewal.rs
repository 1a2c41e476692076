//! `data.on_loss = "renew"`: a data partition that cannot be written any more is made anew, once several starts in a
//! row have shown that it cannot, and after its readable files were copied to the state partition.
//!
//! It is done here and not in the recovery: the robot is not to stand still for it, and no error of a recovery may ever
//! reach the data. A note on the state partition has the stage, and is on the disk before the next stage begins. From
//! `saved` on the old content is not looked at again: a check could make a wreck of old and new out of it.
//!
//! An image of before this note, which an undo goes back to, uses the partition and leaves the note alone. So the note
//! has what the superblock was when it was written: one that was mounted since belongs to its files, over which nothing
//! is put, and the partition is not made anew by a count of before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::copy::{Copied, Existing, Room, copy};
use super::error::SysrootError;
use super::messages::say;
use super::plan::BootPlaces;
use super::take::answer_within;
use crate::chain::chain;
use crate::disk::filesystem::{Ext4Life, ext4_life};
use crate::flash::target::{AlignedBuf, BlockTarget, DeviceTarget};
use crate::flash::template::WholeTemplate;
use crate::record::start::{DataUse, StartRecord};
use crate::release::digest::{BLOCK_SIZE_BYTES, hex};
use crate::sys::mount::{self, Mount};
use crate::sys::{ext4, files, power};

/// Starts in a row in which the partition could not be written.
const STARTS: u32 = 3;
/// Name of the note on the state partition.
const NOTE: &str = "data-renewal.json";
/// Size of the largest note that is read, bytes.
const MAX_NOTE_BYTES: u64 = 4096;
/// Directory of the copied files, on the state partition.
const SAVED: &str = "saved-data";
/// Template of an empty data partition, below the mount point of the recovery partition.
const TEMPLATE: &str = "templates/data.ext4.zst";
/// Room that stays free on the state partition, bytes: the next release's index and manifest must fit.
const MARGIN_BYTES: u64 = 12 << 20;
/// Inodes that stay free on the state partition.
const MARGIN_FILES: u64 = 128;
/// Time for a stage. The template has 64 MiB, and the copied files have less.
const LIMIT: Duration = Duration::from_secs(600);
/// Parts of `/var` that are made again by whatever uses them. The record of what releases brought is one of them: it
/// would keep files from being made again for which there was no room.
const NOT_SAVED: &[&str] = &["cache", "tmp", "log/journal", "lost+found", crate::jobs::shipped::record::OWN];

/// The devices that a renewal needs.
#[derive(Debug, Clone)]
pub struct RenewalParts {
    /// Device of the state partition.
    pub state: PathBuf,
    /// Device of the recovery partition.
    pub recovery: PathBuf,
}

/// Stage of a renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// Starts without the partition are counted.
    #[default]
    Counting,
    /// What can be read was copied; the partition is being made anew.
    Saved,
    /// The partition is new; what was copied is being put back.
    Made,
}

/// The note on the state partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Note {
    stage: Stage,
    /// Starts in a row without a writable partition.
    starts: u32,
    /// Identity and last mount of the file system that the note is about, as far as that can be read.
    data: Option<String>,
    /// Whether what was copied is kept, since the partition was written over after that, in part.
    keep_saved: bool,
}

impl Note {
    /// The note as far as it still counts for the partition whose file system has this life now.
    fn of_this_life(self, found: Option<Ext4Life>) -> Self {
        let is_new = |found: &Ext4Life| self.data.as_ref().is_some_and(|noted| *noted != described_life(*found));
        // A partition that is being made anew has a superblock that was never mounted, or none that can be read.
        let was_used = found.filter(|found| found.mounted_unix_s != 0).is_some_and(|found| is_new(&found));
        match self.stage {
            _ if !was_used => self,
            Stage::Counting => Self { starts: 0, ..self },
            // Its files count, and what was copied of it before adds to them what they lack.
            Stage::Saved | Stage::Made => Self { stage: Stage::Counting, starts: 0, keep_saved: true, ..self },
        }
    }
}

/// The life of the file system as the medium has it, past what is cached.
fn life(device: &Path) -> Option<Ext4Life> {
    let target = DeviceTarget::open_read_only(device).ok()?;
    let mut head = AlignedBuf::zeroed(BLOCK_SIZE_BYTES);
    target.read_at(0, &mut head).ok()?;
    ext4_life(&head)
}

fn described_life(life: Ext4Life) -> String {
    format!("{}:{}", hex(&life.uuid), life.mounted_unix_s)
}

/// A renewal that goes on or may begin. The state partition is mounted as long as this lives.
pub(super) struct DataRenewal<'a> {
    parts: &'a RenewalParts,
    device: PathBuf,
    places: &'a BootPlaces,
    state: PathBuf,
    note: Note,
}

impl<'a> DataRenewal<'a> {
    /// Reads how far the renewal is, and makes the partition anew if that was begun: its content does not count.
    pub(super) fn go_on(parts: &'a RenewalParts, device: &Path, places: &'a BootPlaces) -> Result<Self, SysrootError> {
        let state = places.run.join("state");
        let (mount, at) = (Mount::device(&parts.state, "ext4").data_only(), state.clone());
        let note = answer_within(LIMIT, "read the state partition", move || {
            mount.on(&at)?;
            let text = files::read(&at.join(NOTE), MAX_NOTE_BYTES).unwrap_or_default();
            // What makes no sense is a beginning: nothing is made anew without its count.
            let note = serde_json::from_slice::<Note>(&text).unwrap_or_default();
            Ok(if note.starts < STARTS { note } else { Note { starts: 0, ..note } })
        })?;
        let at = device.to_owned();
        let found = answer_within(LIMIT, "read the superblock of the data partition", move || Ok(life(&at)))?;
        let note = note.of_this_life(found);
        let mut this = Self { parts, device: device.to_owned(), places, state, note };
        if this.note.stage == Stage::Saved {
            this.make()?;
        }
        Ok(this)
    }

    /// Takes what became of the data partition in this start, and returns what became of it by a renewal. `open` opens
    /// the partition again.
    pub(super) fn after(
        &mut self,
        used: DataUse,
        record: &mut StartRecord,
        open: impl FnOnce(&mut StartRecord) -> DataUse,
    ) -> Result<DataUse, SysrootError> {
        let used = match self.note.stage {
            // It was written over in part, and what was copied before that is all that is left of its content.
            Stage::Counting if used == DataUse::Writable && self.note.keep_saved => {
                self.restore()?;
                record.data_renewed = true;
                return Ok(used);
            }
            Stage::Counting if used == DataUse::Writable => {
                self.forget()?;
                return Ok(used);
            }
            Stage::Counting if self.note.starts + 1 < STARTS => {
                self.note.starts += 1;
                record.lose(format!(
                    "the data partition is made anew if it cannot be written at start {STARTS} either: this is start {}",
                    self.note.starts
                ));
                self.write_note()?;
                return Ok(used);
            }
            Stage::Counting => {
                let saved = if used == DataUse::ReadOnly { self.save()? } else { Copied::default() };
                record.lose(format!("the data partition is made anew: {}", described(&saved)));
                self.note.stage = Stage::Saved;
                self.write_note()?;
                record.data_at = None;
                mount::detach_below(&self.places.readable_data());
                self.make()?;
                open(record)
            }
            Stage::Saved | Stage::Made => used,
        };
        if used == DataUse::Writable && self.note.stage == Stage::Made {
            self.restore()?;
            record.data_renewed = true;
        }
        Ok(used)
    }

    fn save(&self) -> Result<Copied, SysrootError> {
        let (from, state, keep) = (self.places.readable_data(), self.state.clone(), self.note.keep_saved);
        say("the data partition is to be made anew: copying what can be read of it to the state partition");
        answer_within(LIMIT, "copy what can be read of the data partition", move || {
            let failed = SysrootError::file("copy what can be read of the data partition");
            save_into(&from, &state, keep).map_err(failed)
        })
    }

    /// Writes the template over the partition.
    fn make(&mut self) -> Result<(), SysrootError> {
        say("the data partition is being made anew");
        let (device, recovery, at) =
            (self.device.clone(), self.parts.recovery.clone(), self.places.run.join("recovery"));
        let made = answer_within(LIMIT, "make the data partition anew", move || {
            let target = DeviceTarget::open(&device)
                .map_err(|error| SysrootError::file("write to the data partition")(io::Error::other(error)))?;
            Mount::device(&recovery, "ext4").read_only().no_load().data_only().on(&at)?;
            let written =
                WholeTemplate::read(|| files::open(&at.join(TEMPLATE))).and_then(|whole| whole.write(&target));
            let _ = mount::unmount(&at);
            written.map_err(SysrootError::file("make the data partition anew"))
        });
        if let Err(error) = made {
            // It may be the disk that takes no more writes: then what can be read of it is worth more than a new try at
            // each start.
            self.note = Note { keep_saved: true, ..Note::default() };
            self.write_note()?;
            return Err(error);
        }
        self.note.stage = Stage::Made;
        self.write_note()
    }

    /// Puts back what was copied.
    fn restore(&mut self) -> Result<(), SysrootError> {
        let (saved, data) = (self.state.join(SAVED), self.places.data.clone());
        answer_within(LIMIT, "put back what was copied of the data partition", move || {
            if let Err(error) = ext4::new_uuid(&data) {
                say(&format!("the data file system keeps the identity of its template: {error}"));
            }
            if saved.is_dir() {
                let mut room = Room { bytes: u64::MAX, files: u64::MAX };
                let copied = copy(&saved, &data, Existing::Keep, &mut room, |_| false)
                    .map_err(SysrootError::file("put back what was copied of the data partition"))?;
                say(&format!("the data partition is new; {}", described(&copied)));
            }
            power::sync();
            Ok(())
        })?;
        self.forget()
    }

    /// Removes the note, and then what was copied.
    fn forget(&mut self) -> Result<(), SysrootError> {
        self.note = Note::default();
        let state = self.state.clone();
        answer_within(LIMIT, "tidy the state partition", move || {
            let removed = files::removed_or_gone(fs::remove_file(state.join(NOTE)))
                .and_then(|()| files::removed_or_gone(fs::remove_dir_all(state.join(SAVED))));
            removed.map_err(SysrootError::file("tidy the state partition"))
        })
    }

    fn write_note(&self) -> Result<(), SysrootError> {
        let (state, device, mut note) = (self.state.clone(), self.device.clone(), self.note.clone());
        answer_within(LIMIT, "write to the state partition", move || {
            note.data = life(&device).map(described_life);
            let text = serde_json::to_vec(&note).unwrap_or_default();
            let write = || -> io::Result<()> {
                let new = state.join(NOTE).with_added_extension("new");
                let _ = fs::remove_file(&new);
                let mut file = fs::File::create_new(&new)?;
                io::Write::write_all(&mut file, &text)?;
                file.sync_all()?;
                fs::rename(&new, state.join(NOTE))?;
                fs::File::open(&state)?.sync_all()
            };
            write().map_err(SysrootError::file("write to the state partition"))
        })
    }
}

impl Drop for DataRenewal<'_> {
    fn drop(&mut self) {
        // GRUB reads this partition and replays no journal.
        if let Err(error) = mount::unmount(&self.state) {
            say(&chain(&error));
            let _ = mount::detach(&self.state);
        }
    }
}

/// Copies the machine's changes to `/etc`, and then of `/var` what there is room for. What an earlier copy has stays
/// only where the partition was written over since.
fn save_into(data: &Path, state: &Path, keep_earlier: bool) -> io::Result<Copied> {
    let saved = state.join(SAVED);
    if !keep_earlier {
        files::removed_or_gone(fs::remove_dir_all(&saved))?;
    }
    let free = ext4::free(state)?;
    let mut room =
        Room { bytes: free.bytes.saturating_sub(MARGIN_BYTES), files: free.inodes.saturating_sub(MARGIN_FILES) };
    let own = Path::new("etc-overlay/upper");
    let etc =
        copy(data, &saved, Existing::Replace, &mut room, |path| !(path.starts_with(own) || own.starts_with(path)))?;
    let not_saved = |path: &Path| NOT_SAVED.iter().any(|left_out| path == Path::new("var").join(left_out));
    let var = copy(data, &saved, Existing::Replace, &mut room, |path| !path.starts_with("var") || not_saved(path))?;
    power::sync();
    Ok(Copied {
        files: etc.files + var.files,
        failed: etc.failed + var.failed,
        too_large: etc.too_large + var.too_large,
    })
}

/// Removes the note of a renewal and what was copied for it: after a factory reset nothing of it must come back.
///
/// # Errors
/// The error of the state partition.
pub(crate) fn forget_saved(state: &Path) -> io::Result<()> {
    files::removed_or_gone(fs::remove_file(state.join(NOTE)))?;
    power::sync();
    files::removed_or_gone(fs::remove_dir_all(state.join(SAVED)))
}

/// One sentence on what became of the old content.
fn described(copied: &Copied) -> String {
    let Copied { files, failed, too_large } = copied;
    match (files, failed, too_large) {
        (0, 0, 0) => "nothing of it could be read".to_owned(),
        _ => format!(
            "{files} files, links and directories are kept, {failed} could not be read, and for {too_large} there was \
             no room"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Note, Stage, described_life};
    use crate::disk::filesystem::Ext4Life;

    #[test]
    fn a_note_counts_for_the_life_of_the_file_system_that_it_was_written_in() {
        let life = |uuid, mounted_unix_s| Ext4Life { uuid: [uuid; 16], mounted_unix_s };
        let note = |stage| Note { stage, starts: 2, keep_saved: false, data: Some(described_life(life(1, 500))) };
        for stage in [Stage::Counting, Stage::Saved, Stage::Made] {
            // The same life; or one of which nothing can be read, or a superblock that is new.
            for found in [Some(life(1, 500)), None, Some(life(9, 0))] {
                assert_eq!(note(stage).of_this_life(found), note(stage), "{stage:?} {found:?}");
            }
            // Another image has mounted it since, or another file system is there that is in use.
            for found in [life(1, 501), life(2, 500)] {
                let after = note(stage).of_this_life(Some(found));
                assert_eq!(
                    (after.stage, after.starts, after.keep_saved),
                    (Stage::Counting, 0, stage != Stage::Counting)
                );
            }
            // A note of before lives were noted.
            let old = Note { data: None, ..note(stage) };
            assert_eq!(old.clone().of_this_life(Some(life(1, 501))), old);
        }
    }
}
