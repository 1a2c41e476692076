//! The disk to provision, which may appear late: it is waited for as long as nothing else can be done.

use std::time::{Duration, Instant};

use super::drivers::look_again;
use super::error::SetupError;
use super::settle::{POLL, Settling};
use crate::chain::chain;
use crate::jobs::provision::{ChooseError, DiskCandidate};
use crate::record::journal::Journal;

/// Time after which what is there is taken as it is: a disk that is not there by then is late.
pub(super) const SETTLED: Duration = Duration::from_secs(30);
/// Time until the machine is restarted because no disk appears: a controller that hangs may need a reset, which only a
/// restart gives it.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 60);
/// Pause between two reports of what is waited for.
const SAY: Duration = Duration::from_secs(60);

/// The search for the disk to provision.
pub(super) struct DiskChoice<'a, L> {
    journal: &'a Journal,
    look: L,
    began: Instant,
    settling: Settling,
    /// Time of the search from which on it is reported again what is waited for.
    say_at: Duration,
}

impl<'a, L: Fn() -> Result<DiskCandidate, SetupError>> DiskChoice<'a, L> {
    /// Begins a search that sees disks by `look`.
    pub(super) fn begin(journal: &'a Journal, look: L) -> Self {
        Self { journal, look, began: Instant::now(), settling: Settling::new(), say_at: SETTLED }
    }

    /// Waits until a disk fits and no other has joined for some time: the first that answers need not be the only one.
    ///
    /// # Errors
    /// No disk fits, `limit` after the beginning of the search. What another disk would not help against is an error
    /// after [`SETTLED`]: several disks fit, or the disks cannot be listed.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<DiskCandidate, SetupError> {
        loop {
            let found = (self.look)();
            let seen = match &found {
                Ok(candidate) => candidate.disk.to_string(),
                Err(error) => chain(error),
            };
            if self.settling.update(vec![seen.clone()]) {
                self.journal.note("another disk appeared");
                // Soon, so that what excludes it is seen.
                self.say_at = self.say_at.min(self.began.elapsed() + SETTLED / 10);
            }
            let waited = self.began.elapsed();
            match found {
                Ok(candidate) if self.settling.is_over() => return Ok(candidate),
                Err(error) if self.settling.is_over() && waited >= limit_for(&error, limit) => return Err(error),
                Err(_) if waited >= SETTLED.max(self.say_at) => self.say(waited, &seen),
                _ => {}
            }
            // A wait on purpose, which a reset would only repeat.
            self.journal.progressed();
            std::thread::sleep(POLL);
        }
    }

    fn say(&mut self, waited: Duration, why: &str) {
        let seconds = waited.as_secs();
        self.journal.note(&format!("still waiting for a disk to provision, after {seconds} s: {why}"));
        look_again(self.journal);
        self.say_at = waited + SAY;
    }
}

/// Whether another disk, which may appear late, is all that helps.
pub(super) fn is_only_late(error: &SetupError) -> bool {
    matches!(error, SetupError::Choose(ChooseError::None(_)))
}

/// Time after which this error is the result of a search that lasts `limit` at most.
fn limit_for(error: &SetupError, limit: Duration) -> Duration {
    if is_only_late(error) { limit } else { SETTLED }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::{Duration, Instant};

    use super::{DiskChoice, LONGEST, SETTLED, limit_for};
    use crate::disk::{Disk, Transport};
    use crate::jobs::provision::{ChooseError, DiskCandidate, DiskContent};
    use crate::pid1::recovery::error::SetupError;
    use crate::record::journal::Journal;

    fn none() -> SetupError {
        SetupError::Choose(ChooseError::None(vec!["a USB drive: the machine was started from it".into()]))
    }

    #[test]
    fn a_late_disk_is_waited_for_and_a_question_for_a_person_is_not() {
        assert_eq!(limit_for(&none(), LONGEST), LONGEST);
        let several = SetupError::Choose(ChooseError::Several { count: 2, disks: Vec::new() });
        assert_eq!(limit_for(&several, LONGEST), SETTLED);
        assert_eq!(limit_for(&SetupError::Disks(std::io::Error::other("x")), LONGEST), SETTLED);
        // The first part of the search, before the network.
        assert_eq!(limit_for(&none(), SETTLED), SETTLED);
    }

    #[test]
    fn the_disk_that_appears_after_a_while_is_taken() {
        let disk = Disk {
            name: "sda".into(),
            path: "/dev/sda".into(),
            size_bytes: 1 << 30,
            logical_block_size: 512,
            model: None,
            serial: Some("late".into()),
            transport: Transport::Ata,
            removable: false,
            read_only: false,
        };
        let candidate = DiskCandidate { disk, bus_path: None, in_use: None, content: DiskContent::Blank, medium: None };
        let (began, looks) = (Instant::now(), RefCell::new(0));
        let journal = Journal::silent();
        let mut choice = DiskChoice::begin(&journal, || {
            *looks.borrow_mut() += 1;
            if began.elapsed() < Duration::from_secs(1) { Err(none()) } else { Ok(candidate.clone()) }
        });
        assert_eq!(choice.wait(LONGEST).unwrap().disk.serial.as_deref(), Some("late"));
        assert!(*looks.borrow() > 2);
    }
}
