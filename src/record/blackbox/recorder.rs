//! Follows the journal and writes what matters of it into the black box.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Attempt, AttemptOutcome, BlackBox, PhaseRecord};
use crate::record::journal::{Event, Journal, Told};

/// A network that is down warns every few seconds for hours: that must not wear out the disk.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);
/// Errors and ranges that are kept of one attempt.
const MAX_ERRORS: usize = 6;
const MAX_RANGES: usize = 16;
/// Bytes of one error: a chain of a fetch from several mirrors can be long.
const MAX_ERROR_BYTES: usize = 500;

/// The attempt that is going on. Clones write to the same one.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Current>>);

struct Current {
    open: BlackBox,
    attempt: Attempt,
    written: Option<Instant>,
}

impl Recorder {
    /// Begins an attempt, for `reason`, in an opened black box.
    #[must_use]
    pub fn begin(open: BlackBox, reason: &str, requested: bool) -> Self {
        let attempt = Attempt { id: open.next_id(), ..Attempt::begin(reason, requested) };
        let this = Self(Arc::new(Mutex::new(Current { open, attempt, written: None })));
        this.lock().write();
        this
    }

    /// Takes what the journal told.
    pub fn witness(&self, told: &Told<'_>) {
        let mut current = self.lock();
        let recently = current.written.is_some_and(|written| written.elapsed() < BETWEEN_WARNINGS);
        match current.attempt.witness(told) {
            Flush::Much => current.write(),
            Flush::Warning if !recently => current.write(),
            Flush::Warning | Flush::Little => (),
        }
    }

    /// Writes down how the attempt ended; a parked one may end again.
    pub fn finish(&self, outcome: AttemptOutcome) {
        let mut current = self.lock();
        current.attempt.outcome = Some(outcome);
        current.write();
    }

    /// Serial of the release this attempt is about, once it is known.
    #[must_use]
    pub fn serial(&self) -> Option<u64> {
        self.lock().attempt.serial
    }

    /// Works with the black box.
    pub fn with<T>(&self, work: impl FnOnce(&mut BlackBox) -> T) -> T {
        work(&mut self.lock().open)
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // A thread that panicked while recording must not keep the others from it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn write(&mut self) {
        self.written = Some(Instant::now());
        // A black box that cannot be written is no reason to stop; the console tells the story too.
        let _ = self.open.record(&self.attempt);
    }
}

/// An attempt that makes the disk where its black box will lie. It is remembered until then.
pub struct Remembered(Arc<Mutex<Attempt>>);

impl Remembered {
    /// Begins an attempt that a person asked for, for `reason`, with a release of this version and serial.
    #[must_use]
    pub fn begin(reason: &str, version: &str, serial: u64, journal: &Journal) -> Self {
        let attempt =
            Attempt { version: Some(version.to_owned()), serial: Some(serial), ..Attempt::begin(reason, true) };
        let attempt = Arc::new(Mutex::new(attempt));
        let witness = Arc::clone(&attempt);
        journal.subscribe(Box::new(move |told| {
            witness.lock().unwrap_or_else(PoisonError::into_inner).witness(told);
        }));
        Self(attempt)
    }

    /// Makes the black box at `path`, with this attempt in it.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path, outcome: AttemptOutcome) -> io::Result<()> {
        let mut open = BlackBox::open(path)?;
        let attempt = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        open.record(&Attempt { id: open.next_id(), outcome: Some(outcome), ..attempt })
    }
}

/// How soon what an attempt was told belongs on the medium.
enum Flush {
    /// At once.
    Much,
    /// Not after every one.
    Warning,
    /// With the next.
    Little,
}

impl Attempt {
    /// One that begins now, and has no number yet.
    pub(crate) fn begin(reason: &str, requested: bool) -> Self {
        Self {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            reason: reason.to_owned(),
            requested,
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            ..Self::default()
        }
    }

    /// Takes what the journal told.
    fn witness(&mut self, told: &Told<'_>) -> Flush {
        match (told.event, told.phase) {
            (Event::Begin, Some(phase)) => {
                self.phases.push(PhaseRecord { phase, duration_ms: None, failed: false });
                Flush::Much
            }
            (Event::End | Event::Failed, Some(phase)) => {
                if let Some(running) = self.phases.iter_mut().rev().find(|known| known.phase == phase) {
                    running.duration_ms = told.duration.map(|duration| duration.as_millis() as u64);
                    running.failed = told.event == Event::Failed;
                }
                Flush::Much
            }
            (Event::Warning, _) => {
                let end = told.text.floor_char_boundary(MAX_ERROR_BYTES);
                self.errors.push(told.text[..end].to_owned());
                let keep_from = self.errors.len().saturating_sub(MAX_ERRORS);
                self.errors.drain(..keep_from);
                Flush::Warning
            }
            (Event::Note, _) => {
                self.note(told.data);
                Flush::Little
            }
            _ => Flush::Little,
        }
    }

    /// The quantities behind a note: which release, how much, what was damaged.
    fn note(&mut self, data: &serde_json::Value) {
        if let (Some(version), Some(serial)) = (data["version"].as_str(), data["serial"].as_u64()) {
            (self.version, self.serial) = (Some(version.to_owned()), Some(serial));
        }
        if self.totals.is_none() && data["image_bytes"].is_u64() {
            self.totals = serde_json::from_value(data.clone()).ok();
        }
        if let Ok(mut ranges) = serde_json::from_value::<Vec<[u64; 2]>>(data["damaged_byte_ranges"].clone()) {
            ranges.truncate(MAX_RANGES);
            self.damaged_byte_ranges = ranges;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Recorder, Remembered};
    use crate::record::blackbox::{AttemptOutcome, BlackBox};
    use crate::record::journal::{Journal, Phase};
    use crate::record::totals::Totals;
    use serde_json::json;

    #[test]
    fn an_attempt_is_known_as_far_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let journal = Journal::new(None, false);
        let recorder = Recorder::begin(BlackBox::open(&path).unwrap(), "tries", false);
        let witness = recorder.clone();
        journal.subscribe(Box::new(move |told| witness.witness(told)));
        let _: Result<(), ()> = journal.phase(Phase::Manifest, "", || {
            journal.data("release", json!({ "version": "2.0", "serial": 9 }));
            Ok(())
        });
        let _: Result<(), ()> = journal.phase(Phase::Write, "", || {
            journal.data("plan", json!(Totals { image_bytes: 5, ..Totals::default() }));
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
    fn an_attempt_that_makes_its_disk_is_the_first_in_its_black_box() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blackbox");
        let journal = Journal::new(None, false);
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
