//! A subscriber of the journal that writes what matters of it into the black box.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Attempt, AttemptOutcome, BlackBox, DrillRecord, PhaseRecord, RefusedRelease, keep_last};
use crate::record::event::{Entry, Event, Phase, cut};
use crate::record::journal::Journal;
use crate::record::wire::millis;
use crate::sys::clock::now_unix_s;
use crate::sys::thread::lock;

/// A network that is down warns every few seconds for hours: that must not wear out the disk.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);
/// Errors that are kept of one attempt, the last ones.
const MAX_ERRORS: usize = 6;
/// Damaged ranges that are kept of one attempt, the first ones.
const MAX_RANGES: usize = 16;
/// Repairs of the boot chain that are kept of one attempt, the last ones.
const MAX_MENDED: usize = 8;
/// Bytes that are kept of one error: the chain of a fetch from several mirrors can be long.
const MAX_ERROR_BYTES: usize = 500;

/// Recorder of the attempt that is going on. Clones write to the same attempt.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Current>>);

struct Current {
    open: BlackBox,
    attempt: Attempt,
    written: Option<Instant>,
}

impl Recorder {
    /// Begins an attempt for `reason` in an opened black box, and follows `journal` from now on. A `resumed` one goes
    /// on with the last attempt, whose process died: the attempts that are kept must not all be deaths.
    #[must_use]
    pub fn begin(open: BlackBox, reason: &str, requested: bool, resumed: bool, journal: &Journal) -> Self {
        let last = open.attempts().last().filter(|last| resumed && last.outcome.is_none());
        let attempt = match last {
            Some(last) => Attempt { phases: Vec::new(), ..last.clone() },
            None => Attempt { id: open.next_id(), ..Attempt::begin(reason, requested) },
        };
        let current = Arc::new(Mutex::new(Current { open, attempt, written: None }));
        lock(&current).write();
        let subscriber = Arc::clone(&current);
        journal.subscribe(Box::new(move |entry| lock(&subscriber).take(entry)));
        Self(current)
    }

    /// Records how the attempt ended; a parked one may end again.
    pub fn finish(&self, outcome: AttemptOutcome) {
        let mut current = lock(&self.0);
        current.attempt.outcome = Some(outcome);
        current.write();
    }

    /// Records how far a drill has come.
    pub fn drill(&self, record: DrillRecord) {
        let mut current = lock(&self.0);
        current.attempt.drill = Some(record);
        current.write();
    }

    /// Serial of the release that this attempt is about, once it is known.
    #[must_use]
    pub fn serial(&self) -> Option<u64> {
        lock(&self.0).attempt.serial
    }

    /// Number of attempts in a row, up to this one, that gave up.
    #[must_use]
    pub fn failures_in_a_row(&self) -> u32 {
        self.with(|open| open.failures_in_a_row())
    }

    /// Works with the opened black box.
    pub fn with<T>(&self, work: impl FnOnce(&mut BlackBox) -> T) -> T {
        work(&mut lock(&self.0).open)
    }
}

impl Current {
    fn take(&mut self, entry: &Entry<'_>) {
        let recently = self.written.is_some_and(|written| written.elapsed() < BETWEEN_WARNINGS);
        match self.attempt.take(entry) {
            Flush::Now => self.write(),
            Flush::Throttled if !recently => self.write(),
            Flush::Throttled | Flush::Deferred => (),
        }
    }

    fn write(&mut self) {
        self.written = Some(Instant::now());
        // A black box that cannot be written is no reason to stop; the console shows the same.
        let _ = self.open.record(&self.attempt);
    }
}

/// An attempt that makes the disk on which its black box will lie, and is kept in memory until then.
pub struct Remembered(Arc<Mutex<Attempt>>);

impl Remembered {
    /// Begins an attempt that a person asked for, for `reason`, with a release of this version and serial.
    #[must_use]
    pub fn begin(reason: &str, version: &str, serial: u64, journal: &Journal) -> Self {
        let attempt =
            Attempt { version: Some(version.to_owned()), serial: Some(serial), ..Attempt::begin(reason, true) };
        let attempt = Arc::new(Mutex::new(attempt));
        let subscriber = Arc::clone(&attempt);
        journal.subscribe(Box::new(move |entry| {
            // There is no medium yet to flush to.
            let _ = lock(&subscriber).take(entry);
        }));
        Self(attempt)
    }

    /// Makes the black box at `path`, with this attempt in it.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path, outcome: AttemptOutcome) -> io::Result<()> {
        let mut open = BlackBox::open(path)?;
        let attempt = lock(&self.0).clone();
        open.record(&Attempt { id: open.next_id(), outcome: Some(outcome), ..attempt })
    }
}

/// When a change of an attempt is written to the medium.
enum Flush {
    /// At once.
    Now,
    /// At once, unless something was written within [`BETWEEN_WARNINGS`].
    Throttled,
    /// Together with the next change.
    Deferred,
}

impl Attempt {
    /// An attempt that begins now and has no number yet.
    fn begin(reason: &str, requested: bool) -> Self {
        Self {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            reason: reason.to_owned(),
            requested,
            started_unix_s: now_unix_s(),
            ..Self::default()
        }
    }

    /// Takes what matters of an event.
    fn take(&mut self, entry: &Entry<'_>) -> Flush {
        match entry.event {
            Event::PhaseBegan { .. } => {
                let began = |phase| PhaseRecord { phase, duration_ms: None, failed: false };
                self.phases.extend(entry.phase.map(began));
                return Flush::Now;
            }
            Event::PhaseEnded { duration } => {
                self.phase_over(entry.phase, duration, false);
                return Flush::Now;
            }
            Event::PhaseFailed { duration } => {
                self.phase_over(entry.phase, duration, true);
                return Flush::Now;
            }
            Event::Warning(text) => {
                self.errors.push(cut(text, MAX_ERROR_BYTES).to_owned());
                keep_last(&mut self.errors, MAX_ERRORS);
                return Flush::Throttled;
            }
            Event::ReleaseFound { version, serial, .. } => {
                // The release that an undo goes back to is found on the machine.
                self.undone = self.undone.take().filter(|_| self.serial == Some(serial));
                (self.version, self.serial) = (Some(version.to_owned()), Some(serial));
                // What was refused before is no longer what becomes of the attempt.
                self.refused = None;
            }
            Event::UndoBegan { version, serial, undone, why } => {
                (self.version, self.serial) = (Some(version.to_owned()), Some(serial));
                // A repair from what is kept takes nothing back.
                self.undone = undone.map(|(version, serial)| RefusedRelease {
                    version: Some(version.to_owned()),
                    serial: Some(serial),
                    why: cut(why, MAX_ERROR_BYTES).to_owned(),
                });
                return Flush::Now;
            }
            Event::SystemIntact { version, serial } | Event::RepairBegan { version, serial } => {
                (self.version, self.serial) = (Some(version.to_owned()), Some(serial));
            }
            Event::ReleaseRefused { why } => {
                let why = cut(why, MAX_ERROR_BYTES).to_owned();
                let (version, serial) = (self.version.take(), self.serial.take());
                let before = self.refused.take().unwrap_or_default();
                // Refused again, before a manifest came: it is still the same release.
                let (version, serial) = (version.or(before.version), serial.or(before.serial));
                self.refused = Some(RefusedRelease { version, serial, why });
                return Flush::Now;
            }
            Event::Mended(what) => {
                self.mended.push(cut(what, MAX_ERROR_BYTES).to_owned());
                keep_last(&mut self.mended, MAX_MENDED);
                return Flush::Now;
            }
            // Later plans only write again what read back wrong.
            Event::Planned(totals) => drop(self.totals.get_or_insert(totals)),
            Event::Damaged(ranges) => {
                let first = ranges.iter().take(MAX_RANGES);
                self.damaged_byte_ranges = first.map(|range| [range.start, range.end]).collect();
            }
            Event::Note(_) | Event::Progress(_) => (),
        }
        Flush::Deferred
    }

    fn phase_over(&mut self, phase: Option<Phase>, duration: Duration, failed: bool) {
        if let Some(running) = self.phases.iter_mut().rev().find(|known| Some(known.phase) == phase) {
            (running.duration_ms, running.failed) = (Some(millis(duration)), failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Recorder, Remembered};
    use crate::record::blackbox::{AttemptOutcome, BlackBox};
    use crate::record::event::Event;
    use crate::record::journal::{Journal, Phase};
    use crate::record::totals::Totals;

    #[test]
    fn an_attempt_is_known_as_far_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let journal = Journal::silent();
        let recorder = Recorder::begin(BlackBox::open(&path).unwrap(), "tries", false, false, &journal);
        let _: Result<(), ()> = journal.phase(Phase::Manifest, "", || {
            journal.report(Event::ReleaseFound { version: "2.0", serial: 9, signed_by: "a.pub" });
            Ok(())
        });
        let _: Result<(), ()> = journal.phase(Phase::Write, "", || {
            journal.report(Event::Planned(Totals { image_bytes: 5, ..Totals::default() }));
            journal.warn("first: second");
            // Power is cut here.
            let read = BlackBox::open(&path).unwrap();
            let last = read.attempts().last().unwrap();
            assert_eq!((last.version.as_deref(), last.serial, last.outcome), (Some("2.0"), Some(9), None));
            assert_eq!((last.phases.len(), last.phases[0].failed, last.phases[1].duration_ms), (2, false, None));
            Err(())
        });
        recorder.finish(AttemptOutcome::Failed);
        let read = BlackBox::open(&path).unwrap();
        let last = read.attempts().last().unwrap();
        assert!(last.phases[1].failed && last.errors == ["first: second"] && last.totals.unwrap().image_bytes == 5);
        assert_eq!(read.failures_in_a_row(), 1);
    }

    #[test]
    fn a_release_that_was_refused_is_not_taken_for_what_was_installed_instead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let journal = Journal::silent();
        let recorder = Recorder::begin(BlackBox::open(&path).unwrap(), "requested", true, false, &journal);
        let found = |version, serial| journal.report(Event::ReleaseFound { version, serial, signed_by: "a.pub" });
        found("2.0", 9);
        journal.report(Event::ReleaseRefused { why: "HTTP status 403" });
        journal.report(Event::ReleaseRefused { why: "HTTP status 404" });
        journal.report(Event::RepairBegan { version: "1.0", serial: 7 });
        recorder.finish(AttemptOutcome::Installed);
        let last = || BlackBox::open(&path).unwrap().attempts().last().unwrap().clone();
        let refused = last().refused.unwrap();
        assert_eq!((last().version.as_deref(), last().serial), (Some("1.0"), Some(7)));
        assert_eq!((refused.version.as_deref(), refused.serial), (Some("2.0"), Some(9)));
        assert_eq!(refused.why, "HTTP status 404");
        found("3.0", 10);
        recorder.finish(AttemptOutcome::Installed);
        assert_eq!((last().serial, last().refused), (Some(10), None));
        // Taken back: the release that is kept is found, as every other one that is installed.
        let undone = Some(("3.0", 10));
        journal.report(Event::UndoBegan { version: "1.0", serial: 7, undone, why: "it never came up" });
        found("1.0", 7);
        recorder.finish(AttemptOutcome::Installed);
        let undone = last().undone.unwrap();
        assert_eq!((last().serial, undone.serial, undone.why.as_str()), (Some(7), Some(10), "it never came up"));
        found("4.0", 11);
        recorder.finish(AttemptOutcome::Installed);
        assert_eq!((last().serial, last().undone), (Some(11), None));
    }

    #[test]
    fn an_attempt_that_makes_its_disk_is_the_first_in_its_black_box() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let journal = Journal::silent();
        let attempt = Remembered::begin("provision", "2.0", 9, &journal);
        let _: Result<(), ()> = journal.phase(Phase::Commit, "", || Ok(()));
        assert!(!path.exists());
        attempt.write(&path, AttemptOutcome::Installed).unwrap();
        let read = BlackBox::open(&path).unwrap();
        let [only] = read.attempts() else { panic!("{:?}", read.attempts()) };
        assert_eq!(
            (only.id, only.serial, only.outcome, only.requested),
            (1, Some(9), Some(AttemptOutcome::Installed), true)
        );
        assert!(only.phases[0].phase == Phase::Commit && only.phases[0].duration_ms.is_some());
    }
}
