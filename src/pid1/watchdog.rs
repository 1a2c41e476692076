//! Feeds the hardware watchdog for as long as something moves, and lets it reset the machine when nothing does.
//!
//! What counts is the journal's pulse: a phase that begins or ends, a byte that was fetched, written or read back, a
//! poll that was answered. That a thread is alive does not count, nor that a transfer is tried again and again: a
//! machine whose network card or disk has hung is cured by a reset, and one that merely waits loses nothing by it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::record::journal::Journal;
use crate::sys::watchdog::Watchdog;

/// What the hardware is set to. Long enough for firmware, GRUB and a kernel to start in after a restart.
pub const HARDWARE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at the pulse; well below the shortest timeout that hardware has.
const INTERVAL: Duration = Duration::from_secs(2);

/// Decides over food. Pure.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    pulse: u64,
    moved: Instant,
    told: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Feed.
    Feed,
    /// Nothing has moved for the limit: say so, and stop feeding.
    Starve(Duration),
    /// Go on not feeding.
    Wait,
}

impl Stall {
    /// Nothing may stand still for longer than `limit`.
    #[must_use]
    pub fn new(limit: Duration, pulse: u64, now: Instant) -> Self {
        Self { limit, pulse, moved: now, told: false }
    }

    /// Takes the pulse.
    pub fn judge(&mut self, pulse: u64, now: Instant) -> Verdict {
        if pulse != self.pulse {
            (self.pulse, self.moved, self.told) = (pulse, now, false);
        }
        let still = now.saturating_duration_since(self.moved);
        match (still < self.limit, self.told) {
            (true, _) => Verdict::Feed,
            (false, true) => Verdict::Wait,
            (false, false) => {
                self.told = true;
                Verdict::Starve(still)
            }
        }
    }
}

/// Arms the watchdog as soon as there is one, and feeds it by the pulse of `journal` from then on, in a thread.
pub fn start(journal: &Arc<Journal>, limit: Duration) {
    let journal = Arc::clone(journal);
    let spawned = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let watchdog = wait_for_one(&journal);
        let (name, timeout) = (&watchdog.identity, watchdog.timeout.as_secs());
        let limit_s = limit.as_secs();
        journal.note(&format!("watchdog {name}: resets the machine {timeout} s after {limit_s} s without progress"));
        if watchdog.caused_last_reset {
            journal.warn("the last restart was the watchdog's: something had stood still");
        }
        let mut stall = Stall::new(limit, journal.pulse(), Instant::now());
        loop {
            match stall.judge(journal.pulse(), Instant::now()) {
                // A driver that refuses food will do what it is there for.
                Verdict::Feed => drop(watchdog.feed()),
                Verdict::Starve(still) => journal.warn(&format!(
                    "no progress for {} s: the watchdog resets the machine in {timeout} s",
                    still.as_secs()
                )),
                Verdict::Wait => {}
            }
            std::thread::sleep(INTERVAL);
        }
    });
    // Without a thread there is no watchdog, as on a machine that has none.
    drop(spawned);
}

/// Its driver is loaded when its device is found, which may be after us.
fn wait_for_one(journal: &Journal) -> Watchdog {
    let mut told = false;
    loop {
        match Watchdog::arm(HARDWARE_TIMEOUT) {
            Ok(watchdog) => return watchdog,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if !told => {
                told = true;
                journal.note(&format!("the watchdog cannot be armed: {error}"));
            }
            Err(_) => {}
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::{Stall, Verdict};
    use std::time::{Duration, Instant};

    #[test]
    fn only_what_moves_is_fed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stall = Stall::new(Duration::from_secs(60), 0, start);
        assert_eq!(stall.judge(0, at(59)), Verdict::Feed);
        assert_eq!(stall.judge(1, at(60)), Verdict::Feed);
        assert_eq!(stall.judge(1, at(119)), Verdict::Feed);
        assert_eq!(stall.judge(1, at(120)), Verdict::Starve(Duration::from_secs(60)));
        assert_eq!(stall.judge(1, at(130)), Verdict::Wait);
        // It moves again before the hardware acted.
        assert_eq!(stall.judge(2, at(140)), Verdict::Feed);
        assert_eq!(stall.judge(2, at(200)), Verdict::Starve(Duration::from_secs(60)));
    }
}
