//! Feeds the hardware watchdog for as long as something moves, and lets it reset the machine when nothing does.
//!
//! What counts is the journal's pulse: a phase that begins or ends, a byte that was fetched, written or read back, a
//! poll that was answered. That a thread is alive does not count, nor that a transfer is tried again and again: a
//! machine whose network card or disk has hung is cured by a reset, and one that merely waits loses nothing by it.
//!
//! Many machines have no watchdog, or one whose driver does not reset. PID 1 then restarts the machine itself, which
//! cures all but a kernel that has stopped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::record::journal::Journal;
use crate::sys::thread::background;
use crate::sys::watchdog::Watchdog;

/// Timeout that the hardware is set to: long enough for firmware, GRUB and a kernel to start in after a restart.
pub const HARDWARE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that hardware has to reset the machine, and half as much again: some counts its timeout twice over.
const HARDWARE_PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks at the pulse, well below the shortest timeout that hardware has.
const INTERVAL: Duration = Duration::from_secs(2);

/// Decision whether the watchdog is fed. Pure: the caller brings pulse and time.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    pulse: u64,
    moved: Instant,
    /// Time at which the standstill was reported.
    reported: Option<Instant>,
}

/// Next act of the watchdog's thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something moves: feed the watchdog.
    Feed,
    /// Nothing has moved for the limit: report it, and stop feeding.
    Starve(Duration),
    /// Nothing moves, which was reported: go on not feeding.
    Wait,
    /// Nothing moves, and no hardware has reset the machine in its time: restart it.
    Restart,
}

impl Stall {
    /// Allows a standstill of `limit`, beginning `now`.
    #[must_use]
    pub fn new(limit: Duration, pulse: u64, now: Instant) -> Self {
        Self { limit, pulse, moved: now, reported: None }
    }

    /// Decides by the pulse at this moment.
    pub fn judge(&mut self, pulse: u64, now: Instant) -> Verdict {
        if pulse != self.pulse {
            (self.pulse, self.moved, self.reported) = (pulse, now, None);
        }
        let still = now.saturating_duration_since(self.moved);
        match (still < self.limit, self.reported) {
            (true, _) => Verdict::Feed,
            (false, Some(reported)) if now.saturating_duration_since(reported) > HARDWARE_PATIENCE => Verdict::Restart,
            (false, Some(_)) => Verdict::Wait,
            (false, None) => {
                self.reported = Some(now);
                Verdict::Starve(still)
            }
        }
    }
}

/// Arms the watchdog as soon as there is one, and feeds it by the pulse of `journal` from then on, in a thread. Calls
/// `restart` where nothing moves and no hardware resets the machine. What is worth keeping goes to `on_warning` too.
pub fn start(
    journal: &Arc<Journal>,
    limit: Duration,
    on_warning: impl Fn(&str) + Send + 'static,
    restart: impl Fn() + Send + 'static,
) {
    let reporter = Arc::clone(journal);
    let started = background("watchdog", move || {
        let journal = reporter;
        let warn = |text: &str| {
            journal.warn(text);
            on_warning(text);
        };
        let (mut watchdog, mut could_not_be_armed) = (None, false);
        let mut stall = Stall::new(limit, journal.pulse(), Instant::now());
        loop {
            // Its driver is loaded when its device is found, which may be later than this thread starts.
            if watchdog.is_none() {
                watchdog = arm(&journal, &mut could_not_be_armed);
                if let Some(Watchdog { identity, timeout, .. }) = &watchdog {
                    let (timeout, limit_s) = (timeout.as_secs(), limit.as_secs());
                    journal.note(&format!(
                        "watchdog {identity}: resets the machine {timeout} s after {limit_s} s without progress"
                    ));
                }
                if watchdog.as_ref().is_some_and(|watchdog| watchdog.caused_last_reset) {
                    warn("the watchdog caused the last restart: there had been no progress");
                }
            }
            match stall.judge(journal.pulse(), Instant::now()) {
                // A driver that cannot be fed resets the machine, which is what it is there for.
                Verdict::Feed => watchdog.as_ref().map_or((), |watchdog| drop(watchdog.feed())),
                Verdict::Starve(still) => {
                    let (still, patience) = (still.as_secs(), HARDWARE_PATIENCE.as_secs());
                    warn(&match &watchdog {
                        Some(watchdog) => {
                            let timeout = watchdog.timeout.as_secs();
                            format!("no progress for {still} s: the watchdog resets the machine in {timeout} s")
                        }
                        None => {
                            format!("no progress for {still} s, and no watchdog: the machine restarts in {patience} s")
                        }
                    });
                }
                Verdict::Wait => {}
                Verdict::Restart => {
                    warn("still no progress, and nothing has reset the machine: restarting");
                    restart();
                }
            }
            std::thread::sleep(INTERVAL);
        }
    });
    // Without a thread there is no watchdog, as on a machine that has none.
    if let Err(error) = started {
        journal.warn(&format!("there is no thread for the watchdog: {error}"));
    }
}

/// Arms the watchdog, if there is one. That it cannot be armed is said once.
fn arm(journal: &Journal, is_reported: &mut bool) -> Option<Watchdog> {
    match Watchdog::arm(HARDWARE_TIMEOUT) {
        Ok(watchdog) => return Some(watchdog),
        Err(error) if error.kind() == io::ErrorKind::NotFound || *is_reported => {}
        Err(error) => {
            *is_reported = true;
            journal.note(&format!("the watchdog cannot be armed: {error}"));
        }
    }
    None
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
        assert_eq!(stall.judge(1, at(210)), Verdict::Wait);
        assert_eq!(stall.judge(1, at(211)), Verdict::Restart);
        // Something moves again before the hardware acted.
        assert_eq!(stall.judge(2, at(212)), Verdict::Feed);
        assert_eq!(stall.judge(2, at(272)), Verdict::Starve(Duration::from_secs(60)));
        assert_eq!(stall.judge(2, at(300)), Verdict::Wait);
    }
}
