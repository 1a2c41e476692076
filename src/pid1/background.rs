//! Threads of the agent that nothing waits for.

use crate::record::journal::Journal;
use crate::sys::thread;

/// Starts a thread of this name. Without it the agent goes on, with a warning.
pub(super) fn background(journal: &Journal, name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::background(name, work) {
        journal.warn(&format!("cannot start the thread {name}: {error}"));
    }
}
