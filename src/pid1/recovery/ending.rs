//! How the agent's work ends: always with a restart, at once or after a pause.

use std::time::{Duration, Instant};

use crate::pid1::worker::restart;
use crate::record::journal::Journal;

/// Time a person has to read a final message before the machine restarts.
pub(super) const READING_TIME: Duration = Duration::from_secs(20);
/// Time until a machine that cannot go on is restarted: long enough to read, short enough at night.
pub(super) const START_OVER: Duration = Duration::from_secs(600);
/// Well below the shortest `watchdog.stall_s`.
const REST_STEP: Duration = Duration::from_secs(10);

/// Next state of the machine. A value and not an error: [`super::run`] carries it out.
pub(super) enum NextState {
    /// GRUB starts what its environment now says. The text is for the console.
    Reboot(String),
    /// PID 1 starts the system, since GRUB starts nothing but recovery any more. The text is for the console.
    StartDirectly(String),
    /// Something basic failed. It may work after a restart, and a person may have mended it by then.
    StartOver(String),
}

/// Restarts a machine that lacks something basic (a disk that did not answer, a damaged file system, a configuration)
/// after [`START_OVER`].
pub(super) fn start_over(journal: &Journal, why: &str) -> ! {
    journal.warn(&format!("recovery cannot go on: {why}"));
    journal.note(&format!("restarting in {} minutes; ctrl-alt-del restarts at once", START_OVER.as_secs() / 60));
    rest(journal, START_OVER);
    restart()
}

/// Sleeps on purpose: the watchdog is fed meanwhile, since a reset would only repeat the wait.
pub(super) fn rest(journal: &Journal, pause: Duration) {
    let end = Instant::now() + pause;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        journal.progressed();
        std::thread::sleep(left.min(REST_STEP));
    }
}
