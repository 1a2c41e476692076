//! The black box: what the last attempts did and how far they came, kept on the state partition.
//!
//! One file of fixed size, laid out once and then overwritten in place, so that it never grows and can be written when
//! the partition is full. It consists of slots of 4 KiB: two for the marks, then two for each of the last [`KEPT`]
//! attempts, written in turns. A power cut in the middle of a write spoils one slot, and the other of the pair still
//! has the state before.
//!
//! | slot | bytes | content |
//! |---|---|---|
//! | magic | 8 | `RFLASHBB` |
//! | sequence | 8 | u64, little endian; the higher one of a pair counts |
//! | length | 4 | u32, little endian, bytes of JSON |
//! | digest | 32 | BLAKE3 of the JSON |
//! | JSON | length | [`Attempt`] or [`Marks`] |

pub mod drill;
mod fitting;
mod in_vain;
mod losses;
mod recorder;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::boot::decide::Recoveries;
use crate::boot::worth::Worth;
use crate::order;
use crate::record::event::Phase;
use crate::record::totals::Totals;
use crate::release::digest::Digest;
use crate::sys::files;

pub use drill::{DrillCheck, DrillRecord};
pub use recorder::{Recorder, Remembered};

/// Number of attempts that are kept.
pub const KEPT: u64 = KEPT_LEN as u64;
/// Length of a list of the attempts that are kept.
const KEPT_LEN: usize = 16;

const SLOT_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"RFLASHBB";
const HEADER_BYTES: usize = 52;
const SLOTS: u64 = 2 + 2 * KEPT;
/// The highest number of an attempt or of a write that is believed. One that is higher was not counted up to by any
/// machine, so its slot is damaged; believed, it would leave no number for the attempt that comes next.
const MAX_NUMBER: u64 = u32::MAX as u64;
/// Size of the file, bytes.
pub const SIZE_BYTES: u64 = SLOTS * SLOT_BYTES as u64;
/// Content of every slot when the file is made.
const EMPTY_SLOT: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

/// Ending of an attempt. An attempt without an outcome was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttemptOutcome {
    /// A release was written, verified and made bootable.
    Installed,
    /// The system was intact and was started again.
    Started,
    /// The agent waits for another release.
    Parked,
    /// The agent gave up; the errors of the attempt say why.
    Failed,
}

/// One phase of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// The phase that began.
    pub phase: Phase,
    /// Duration of the phase, milliseconds; `None` while it runs, and for ever if it was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Whether the phase failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

/// A release that an attempt was to install, and did not, or that it took back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRelease {
    /// Version of the release, if that became known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Serial of the release, if that became known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// The reason for which it was not installed, or was taken back.
    pub why: String,
}

/// One run of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Number of the attempt, from 1.
    pub id: u64,
    /// Version of the agent.
    pub agent: String,
    /// Reason for which GRUB started the agent, as in `reflash.reason=`.
    pub reason: String,
    /// A person or the running system asked for it. Black boxes in the field and those who take reports know the member
    /// by the name that it had in version 0.1.0.
    #[serde(rename = "asked_for")]
    pub requested: bool,
    /// Start of the attempt, seconds since 1970 by the machine's clock, which may be wrong.
    pub started_unix_s: u64,
    /// Version of the release that the attempt was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Serial of that release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Release that was to be installed, where the attempt ended with another one: `version` and `serial` are then
    /// those of the release that was repaired or started instead. Unknown to agents of version 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedRelease>,
    /// Release that was taken back, where the attempt went back to the one before it: `version` and `serial` are then
    /// those of the release that is installed again. Unknown to agents of version 0.1.0, for which such an attempt
    /// installed a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<RefusedRelease>,
    /// Phases in the order in which they began.
    pub phases: Vec<PhaseRecord>,
    /// Quantities of the first plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// The first few byte ranges of the system partition that differed from the installed release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_byte_ranges: Vec<[u64; 2]>,
    /// The last few errors and warnings, each with its causes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Result of the attempt, if it was a drill: it wrote nothing, and its ending is `started`, which older readers
    /// know. Unknown to agents of version 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillRecord>,
    /// Parts of the boot chain that were damaged and that the attempt mended. Unknown to agents of version 0.1.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mended: Vec<String>,
    /// Losses of the starts of the system after this attempt: what was given up of the machine's data, the last
    /// sentences. Unknown to agents of version 0.1.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// Ending of the attempt, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AttemptOutcome>,
}

impl Attempt {
    /// Whether the attempt ended, by itself or by a power cut: only the last one can still be going on.
    #[must_use]
    pub fn is_over(&self, next_id: u64) -> bool {
        self.outcome.is_some() || self.id + 1 < next_id
    }
}

/// Marks up to where attempts were dealt with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Number of the last attempt that was followed by a boot that called itself good.
    pub good_through: u64,
    /// Number of the last attempt that was reported.
    pub reported_through: u64,
}

/// The black box, opened.
#[derive(Debug)]
pub struct BlackBox {
    file: File,
    sequence: u64,
    attempts: Vec<Attempt>,
    marks: Marks,
}

impl BlackBox {
    /// Opens the black box, makes it first where there is none, and reads the slots that are whole.
    ///
    /// # Errors
    /// The file system's. The caller goes on without a black box: a record is never a reason to stop a recovery.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = files::open_to_write(path).or_else(|error| match files::is_other_kind(&error) {
            // A link would lead the records into another file, and a pipe or a directory holds none.
            true => files::put_aside(path).and_then(|_| files::open_to_write(path)),
            false => Err(error),
        })?;
        if file.metadata()?.len() != SIZE_BYTES {
            // Written, not merely extended: later writes must not need room.
            file.set_len(0)?;
            file.write_all_at(&EMPTY_SLOT.repeat(2 + 2 * KEPT_LEN), 0)?;
            file.sync_all()?;
        }
        let mut this = Self::load(file);
        if this.next_id() > MAX_NUMBER || this.sequence >= MAX_NUMBER {
            // No number is left for what comes next, so what is there was damaged, or made to do harm.
            this.file.write_all_at(&EMPTY_SLOT.repeat(2 + 2 * KEPT_LEN), 0)?;
            this.file.sync_all()?;
            this = Self::load(this.file);
        }
        Ok(this)
    }

    /// Opens the black box for reading only.
    ///
    /// # Errors
    /// The file system's, or [`io::ErrorKind::UnexpectedEof`] for a shorter file.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        let file = files::open(path)?;
        if file.metadata()?.len() < SIZE_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::load(file))
    }

    /// The attempts that are kept, oldest first.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Marks up to where the attempts were dealt with.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Replaces the marks and returns when they are on the medium.
    ///
    /// # Errors
    /// The file system's.
    pub fn mark(&mut self, marks: Marks) -> io::Result<()> {
        self.marks = marks;
        self.write(0, &serde_json::to_vec(&marks)?)
    }

    /// Number that the next attempt gets: above every recorded attempt and both marks, so that it is new even where
    /// attempts were lost.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        let Marks { good_through, reported_through } = self.marks;
        let last = self.attempts.last().map_or(0, |last| last.id);
        last.max(good_through).max(reported_through).saturating_add(1)
    }

    /// Writes an attempt as far as it is known and returns when that is on the medium.
    ///
    /// # Errors
    /// The file system's.
    pub fn record(&mut self, attempt: &Attempt) -> io::Result<()> {
        match self.attempts.iter_mut().find(|known| known.id == attempt.id) {
            Some(known) => known.clone_from(attempt),
            None => self.attempts.push(attempt.clone()),
        }
        keep_last(&mut self.attempts, KEPT_LEN);
        self.write(2 + attempt.id % KEPT * 2, &attempt.fitting()?)
    }

    /// Automatic recoveries, since the last good boot, to the release that was last recovered to. The boot environment
    /// has this count for the loop brake; this one is for when the environment is lost.
    #[must_use]
    pub fn recoveries(&self) -> Recoveries {
        let mut found = Recoveries::default();
        for attempt in self.attempts.iter().rev().take_while(|attempt| attempt.id > self.marks.good_through) {
            if !matches!(attempt.outcome, Some(AttemptOutcome::Installed | AttemptOutcome::Started)) {
                continue;
            }
            let serial = attempt.serial.unwrap_or_default();
            if attempt.requested || (found.count > 0 && serial != found.serial) {
                break;
            }
            found = Recoveries { serial, count: found.count + 1 };
        }
        found
    }

    /// Whether a boot of the installed release, which has this serial, called itself good, as far as the attempts that
    /// are kept show that: the second witness where the boot environment is lost.
    #[must_use]
    pub fn worth(&self, serial: u64) -> Worth {
        let put_there = |attempt: &Attempt| match attempt.outcome {
            // A drill names what is offered, and starts what is installed.
            _ if attempt.drill.is_some() => false,
            Some(AttemptOutcome::Installed | AttemptOutcome::Started) => true,
            // Cut during the commit or after it; before, nothing was installed.
            None => attempt.phases.iter().any(|phase| phase.phase == Phase::Commit),
            Some(_) => false,
        };
        for attempt in self.attempts.iter().rev() {
            let installed = attempt.outcome == Some(AttemptOutcome::Installed);
            if attempt.serial == Some(serial) && put_there(attempt) {
                // Only what was good is gone back to.
                if attempt.id <= self.marks.good_through || (installed && attempt.undone.is_some()) {
                    return Worth::Before;
                }
            } else if installed {
                // Another release was there before, and no attempt since then was followed by a good boot.
                return Worth::Never;
            }
        }
        // The first attempt of all is the one that made the robot.
        match self.attempts.first() {
            Some(first) if first.id == 1 => Worth::Never,
            _ => Worth::Unknown,
        }
    }

    /// Serial of the release that one of the last two attempts, the present one among them, was about when it was cut
    /// short.
    #[must_use]
    pub fn cut_short(&self) -> Option<u64> {
        let cut = |attempt: &&Attempt| attempt.outcome.is_none() && attempt.drill.is_none();
        self.attempts.iter().rev().take(2).filter(cut).find_map(|attempt| attempt.serial)
    }

    /// Releases that were taken back, the last one first, each with the attempt that did so.
    pub fn undone(&self) -> impl Iterator<Item = (&Attempt, &RefusedRelease)> {
        let taken_back = |attempt: &Attempt| attempt.outcome == Some(AttemptOutcome::Installed);
        self.attempts
            .iter()
            .rev()
            .filter(move |attempt| taken_back(attempt))
            .filter_map(|attempt| Some((attempt, attempt.undone.as_ref()?)))
    }

    /// Number of attempts in a row, up to the last one, that gave up.
    #[must_use]
    pub fn failures_in_a_row(&self) -> u32 {
        let failed = |attempt: &&Attempt| {
            // One that waited because of such failures is one of them: the pauses grow.
            matches!(attempt.outcome, Some(AttemptOutcome::Failed | AttemptOutcome::Parked))
        };
        u32::try_from(self.attempts.iter().rev().take_while(failed).count()).unwrap_or(u32::MAX)
    }

    /// Writes to the slot of the pair at `pair` that was not written last.
    fn write(&mut self, pair: u64, json: &[u8]) -> io::Result<()> {
        let too_long =
            || io::Error::other(format!("a record of {} bytes does not fit a slot of the black box", json.len()));
        let length = u32::try_from(json.len()).map_err(|_| too_long())?;
        self.sequence += 1;
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&self.sequence.to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&Digest::of(json).0);
        slot.extend_from_slice(json);
        if slot.len() > SLOT_BYTES {
            return Err(too_long());
        }
        slot.resize(SLOT_BYTES, 0);
        let [first, second] = [self.read::<serde_json::Value>(pair), self.read(pair + 1)];
        let newer_first = first.map_or(0, |(sequence, _)| sequence) > second.map_or(0, |(sequence, _)| sequence);
        let place = pair + u64::from(newer_first);
        self.file.write_all_at(&slot, place * SLOT_BYTES as u64)?;
        self.file.sync_data()
    }

    /// Reads the content of a slot, with its sequence number, if the slot is whole. A sector that cannot be read costs
    /// its slot alone.
    fn read<T: DeserializeOwned>(&self, slot: u64) -> Option<(u64, T)> {
        let mut bytes = vec![0; SLOT_BYTES];
        self.file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).ok()?;
        decode(&bytes)
    }

    fn load(file: File) -> Self {
        let mut this = Self { file, sequence: 0, attempts: Vec::new(), marks: Marks::default() };
        this.load_slots();
        this
    }

    fn load_slots(&mut self) {
        let mut newest = 0;
        for (sequence, marks) in (0..2).filter_map(|slot| self.read::<Marks>(slot)).collect::<Vec<_>>() {
            // What is not believed has a number all the same, and the next write needs a higher one.
            self.sequence = self.sequence.max(sequence);
            if sequence > newest && marks.good_through.max(marks.reported_through) <= MAX_NUMBER {
                (newest, self.marks) = (sequence, marks);
            }
        }
        let mut found: Vec<(u64, Attempt)> = (2..SLOTS).filter_map(|slot| self.read(slot)).collect();
        self.sequence = found.iter().map(|(sequence, _)| *sequence).fold(self.sequence, u64::max);
        found.retain(|(_, attempt)| attempt.id <= MAX_NUMBER);
        order::by_key(&mut found, |(sequence, attempt)| (attempt.id, *sequence));
        for (_, attempt) in found {
            match self.attempts.last_mut() {
                Some(last) if last.id == attempt.id => *last = attempt,
                _ => self.attempts.push(attempt),
            }
        }
        keep_last(&mut self.attempts, KEPT_LEN);
    }
}

fn decode<T: DeserializeOwned>(slot: &[u8]) -> Option<(u64, T)> {
    let rest = slot.strip_prefix(MAGIC)?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (digest, rest) = rest.split_first_chunk::<32>()?;
    let json = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    // The digest covers the content alone, so that the sequence is judged by itself.
    let sequence = u64::from_le_bytes(*sequence);
    if Digest::of(json).0 != *digest || sequence > MAX_NUMBER {
        return None;
    }
    Some((sequence, serde_json::from_slice(json).ok()?))
}

/// Drops the first of `items`, so that at most `most` are kept.
fn keep_last<T>(items: &mut Vec<T>, most: usize) {
    items.drain(..items.len().saturating_sub(most));
}

#[cfg(test)]
mod tests {
    use super::{Attempt, AttemptOutcome, BlackBox, DrillRecord, KEPT, Marks, PhaseRecord, RefusedRelease, SLOT_BYTES};
    use crate::boot::worth::Worth;
    use crate::record::event::Phase;
    use std::os::unix::fs::FileExt;

    fn attempt(id: u64, outcome: Option<AttemptOutcome>) -> Attempt {
        Attempt { id, outcome, reason: "tries".into(), serial: Some(7), ..Attempt::default() }
    }

    #[test]
    fn the_attempts_bear_witness_to_what_was_good() {
        let dir = tempfile::tempdir().unwrap();
        let box_of = |name: &str, through: u64, attempts: &[(u64, Option<AttemptOutcome>, u64, bool)]| {
            let mut open = BlackBox::open(&dir.path().join(name)).unwrap();
            for (id, outcome, serial, undone) in attempts {
                let undone = undone.then(RefusedRelease::default);
                let attempt = Attempt { serial: Some(*serial), undone, ..attempt(*id, *outcome) };
                open.record(&attempt).unwrap();
            }
            open.mark(Marks { good_through: through, ..Marks::default() }).unwrap();
            open.worth(8)
        };
        let (installed, started) = (Some(AttemptOutcome::Installed), Some(AttemptOutcome::Started));
        let failed = Some(AttemptOutcome::Failed);
        assert_eq!(box_of("empty", 0, &[]), Worth::Unknown);
        assert_eq!(box_of("first", 0, &[(1, installed, 8, false)]), Worth::Never);
        assert_eq!(box_of("first-good", 1, &[(1, installed, 8, false)]), Worth::Before);
        let update = [(4, installed, 7, false), (5, installed, 8, false)];
        assert_eq!(box_of("update", 4, &update), Worth::Never);
        assert_eq!(box_of("update-good", 5, &update), Worth::Before);
        // Good once, and then recovered twice without a good boot.
        let later = [(5, installed, 8, false), (6, started, 8, false), (7, installed, 8, false)];
        assert_eq!(box_of("good-once", 5, &later), Worth::Before);
        assert_eq!(box_of("later", 4, &later), Worth::Unknown);
        // Cut before the commit: what was good then is the release before, whatever becomes of this one later.
        let cut = [(4, installed, 7, false), (5, None, 8, false), (6, installed, 8, false)];
        assert_eq!(box_of("cut-early", 5, &cut), Worth::Never);
        // Another release was looked for in vain.
        let vain = [(5, installed, 8, false), (6, failed, 9, false)];
        assert_eq!(box_of("vain", 5, &vain), Worth::Before);
        assert_eq!(box_of("vain-never", 4, &vain), Worth::Unknown);
        // Gone back to.
        assert_eq!(box_of("undone", 3, &[(4, installed, 9, false), (5, installed, 8, true)]), Worth::Before);
    }

    #[test]
    fn an_attempt_bears_witness_to_a_release_only_when_it_put_that_there() {
        let dir = tempfile::tempdir().unwrap();
        let worth = |name: &str, through: u64, between: Attempt| {
            let mut open = BlackBox::open(&dir.path().join(name)).unwrap();
            open.record(&Attempt { serial: Some(7), ..attempt(4, Some(AttemptOutcome::Installed)) }).unwrap();
            open.record(&Attempt { serial: Some(8), ..between }).unwrap();
            open.mark(Marks { good_through: through, ..Marks::default() }).unwrap();
            open.worth(8)
        };
        let committed = || {
            let phase = PhaseRecord { phase: Phase::Commit, duration_ms: None, failed: false };
            Attempt { phases: vec![phase], ..attempt(5, None) }
        };
        // Cut between the commit and the outcome.
        assert_eq!(worth("cut", 4, committed()), Worth::Never);
        assert_eq!(worth("cut-good", 5, committed()), Worth::Before);
        let drill = DrillRecord::of(Vec::new());
        let drilled = Attempt { drill: Some(drill), ..attempt(5, Some(AttemptOutcome::Started)) };
        assert_eq!(worth("drill", 5, drilled), Worth::Never);
    }

    #[test]
    fn losses_of_starts_are_with_the_last_attempt_and_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let losses = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut open = BlackBox::open(&path).unwrap();
        open.add_losses(&losses(&["nobody reads this"])).unwrap();
        assert!(open.attempts().is_empty());
        open.record(&attempt(1, Some(AttemptOutcome::Installed))).unwrap();
        open.add_losses(&losses(&["the data partition cannot be read", "x"])).unwrap();
        let before = std::fs::read(&path).unwrap();
        open.add_losses(&losses(&["x"])).unwrap();
        assert!(before == std::fs::read(&path).unwrap(), "nothing new");
        (0..40).for_each(|number| open.add_losses(&[format!("{number} {}", "y".repeat(5000))]).unwrap());
        let open = BlackBox::open_read_only(&path).unwrap();
        let lost = &open.attempts().last().unwrap().lost;
        assert!(lost.len() == 6 && lost[5].starts_with("39 "), "{lost:?}");
        // Older readers know no such member, and one that is not there is empty.
        assert!(!serde_json::to_string(&attempt(1, None)).unwrap().contains("lost"));
    }

    #[test]
    fn recoveries_that_were_asked_for_and_changed_nothing_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let count = |attempts: &[Attempt]| {
            let path = dir.path().join("blackbox");
            let _ = std::fs::remove_file(&path);
            let mut open = BlackBox::open(&path).unwrap();
            attempts.iter().for_each(|attempt| open.record(attempt).unwrap());
            open.asked_in_vain(7)
        };
        let asked = |id, outcome| Attempt { reason: "requested".into(), ..attempt(id, outcome) };
        let (installed, started) = (Some(AttemptOutcome::Installed), Some(AttemptOutcome::Started));
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[asked(1, installed)]), 0, "it brought the release");
        assert_eq!(count(&[asked(1, installed), asked(2, started), asked(3, installed)]), 2);
        assert_eq!(count(&[attempt(1, installed), asked(2, started)]), 1);
        assert_eq!(count(&[attempt(1, installed), asked(2, None)]), 1, "a cut did not help either");
        assert_eq!(count(&[asked(1, started), attempt(2, started)]), 0, "the last one was for another reason");
        let other = Attempt { serial: Some(6), ..asked(1, started) };
        assert_eq!(count(&[other.clone(), asked(2, installed), asked(3, started)]), 1);
        assert_eq!(count(&[asked(1, started), other]), 0);
        let drill = Attempt { drill: Some(DrillRecord::of(Vec::new())), ..asked(2, started) };
        assert_eq!(count(&[asked(1, installed), drill]), 0);
    }

    #[test]
    fn the_last_attempts_are_kept_in_a_file_that_does_not_grow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let size = || std::fs::metadata(&path).unwrap().len();
        BlackBox::open(&path).unwrap();
        let before = size();
        for id in 1..=3 * KEPT {
            let mut open = BlackBox::open(&path).unwrap();
            assert_eq!(open.next_id(), id);
            open.record(&attempt(id, None)).unwrap();
            open.record(&attempt(id, Some(AttemptOutcome::Installed))).unwrap();
        }
        assert_eq!(size(), before);
        let read = BlackBox::open(&path).unwrap();
        let ids: Vec<u64> = read.attempts().iter().map(|attempt| attempt.id).collect();
        assert_eq!(ids, (2 * KEPT + 1..=3 * KEPT).collect::<Vec<_>>());
        assert!(read.attempts().iter().all(|attempt| attempt.outcome == Some(AttemptOutcome::Installed)));
    }

    #[test]
    fn a_write_cut_anywhere_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let mut open = BlackBox::open(&path).unwrap();
        open.mark(Marks { good_through: 1, reported_through: 1 }).unwrap();
        open.record(&attempt(1, Some(AttemptOutcome::Installed))).unwrap();
        open.record(&attempt(2, None)).unwrap();
        let before = std::fs::read(&path).unwrap();
        open.record(&attempt(2, Some(AttemptOutcome::Parked))).unwrap();
        open.mark(Marks { good_through: 2, reported_through: 2 }).unwrap();
        let after = std::fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
        for cut in changed.iter().step_by(7) {
            let mut torn = before.clone();
            torn[..*cut].copy_from_slice(&after[..*cut]);
            std::fs::write(&path, &torn).unwrap();
            let read = BlackBox::open(&path).unwrap();
            assert_eq!(read.attempts().len(), 2, "cut at {cut}");
            assert_eq!(read.attempts()[0].outcome, Some(AttemptOutcome::Installed));
            assert!(read.marks().good_through >= 1);
        }
    }

    #[test]
    fn numbers_at_their_end_begin_the_black_box_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let ids = || BlackBox::open(&path).unwrap().attempts().iter().map(|attempt| attempt.id).collect::<Vec<_>>();
        let mut open = BlackBox::open(&path).unwrap();
        open.record(&attempt(1, None)).unwrap();
        open.record(&attempt(super::MAX_NUMBER - 1, None)).unwrap();
        assert_eq!(ids(), [1, super::MAX_NUMBER - 1], "there is a number left");
        open.record(&attempt(super::MAX_NUMBER, None)).unwrap();
        assert!(ids().is_empty());
        BlackBox::open(&path).unwrap().record(&attempt(1, None)).unwrap();
        assert_eq!(ids(), [1]);
        // The number of the write, which no digest covers.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&super::MAX_NUMBER.to_le_bytes(), 4 * SLOT_BYTES as u64 + 8).unwrap();
        assert!(ids().is_empty());
        for marks in [
            Marks { good_through: u64::MAX, reported_through: 1 },
            Marks { good_through: 1, reported_through: 1 << 40 },
        ] {
            let mut open = BlackBox::open(&path).unwrap();
            open.mark(Marks { good_through: 3, reported_through: 2 }).unwrap();
            open.mark(marks).unwrap();
            assert_eq!(BlackBox::open(&path).unwrap().marks(), Marks { good_through: 3, reported_through: 2 });
        }
        // The attempts are lost and the marks are not: those that come were neither reported nor good.
        assert_eq!(BlackBox::open(&path).unwrap().next_id(), 4);
    }

    #[test]
    fn garbage_is_no_record_and_does_not_stop_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        for garbage in [vec![], vec![0xff; 10], vec![0xa5; SLOT_BYTES * 34], vec![1; 1 << 20]] {
            std::fs::write(&path, garbage).unwrap();
            let mut open = BlackBox::open(&path).unwrap();
            assert!(open.attempts().is_empty());
            open.record(&attempt(1, None)).unwrap();
            assert_eq!(BlackBox::open(&path).unwrap().attempts().len(), 1);
        }
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"RFLASHBB\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0).unwrap();
        BlackBox::open(&path).unwrap();
    }

    #[test]
    fn numbers_that_nothing_can_follow_are_damage_and_the_next_attempt_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let file = |open: &BlackBox| open.file.try_clone().unwrap();
        let mut open = BlackBox::open(&path).unwrap();
        open.record(&attempt(1, None)).unwrap();
        open.record(&attempt(u64::MAX, None)).unwrap();
        let mut open = BlackBox::open(&path).unwrap();
        assert_eq!((open.attempts().len(), open.next_id()), (1, 2));
        // The sequence of the first mark; no digest covers it.
        open.mark(Marks { good_through: 1, reported_through: 1 }).unwrap();
        file(&open).write_all_at(&u64::MAX.to_le_bytes(), 8).unwrap();
        let mut open = BlackBox::open(&path).unwrap();
        assert_eq!(open.marks().good_through, 0);
        open.record(&attempt(2, None)).unwrap();
        assert_eq!(BlackBox::open(&path).unwrap().next_id(), 3);
    }

    #[test]
    fn what_is_too_long_loses_its_oldest_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let mut long = attempt(1, None);
        long.errors = (0..20).map(|number| format!("{number}{}", "x".repeat(400))).collect();
        long.damaged_byte_ranges = vec![[1 << 40, 1 << 41]; 64];
        BlackBox::open(&path).unwrap().record(&long).unwrap();
        let read = BlackBox::open(&path).unwrap();
        assert!(read.attempts()[0].errors.last().unwrap().starts_with("19x"));
    }

    #[test]
    fn recoveries_are_counted_back_to_a_good_boot_or_a_wish_or_another_release() {
        let dir = tempfile::tempdir().unwrap();
        let count = |attempts: &[Attempt], good_through| {
            let path = dir.path().join("blackbox");
            let _ = std::fs::remove_file(&path);
            let mut open = BlackBox::open(&path).unwrap();
            attempts.iter().for_each(|attempt| open.record(attempt).unwrap());
            open.mark(Marks { good_through, reported_through: 0 }).unwrap();
            open.recoveries().count
        };
        let installed = |id| attempt(id, Some(AttemptOutcome::Installed));
        let asked = |id| Attempt { requested: true, ..installed(id) };
        let other = |id| Attempt { serial: Some(6), ..installed(id) };
        assert_eq!(count(&[installed(1), attempt(2, None), installed(3)], 0), 2);
        assert_eq!(count(&[installed(1), installed(2), installed(3)], 2), 1);
        assert_eq!(count(&[installed(1), asked(2), installed(3)], 0), 1);
        assert_eq!(count(&[other(1), installed(2)], 0), 1);
        assert_eq!(count(&[installed(1), attempt(2, Some(AttemptOutcome::Parked))], 0), 1);
    }
}
