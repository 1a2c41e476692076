//! What the first step writes to the kernel log and to the consoles.

use crate::sys::companion;
use crate::sys::kmsg::{Kmsg, Level};

/// Writes to the kernel log, where the system's journal finds it.
pub(super) fn log(text: &str) {
    if let Ok(kmsg) = Kmsg::open() {
        let _ = kmsg.write(Level::Info, text);
    }
}

/// Writes to every console, for a person, and to the kernel log.
pub(super) fn say(text: &str) {
    log(text);
    // A serial line that was stopped must not hold the start.
    companion::write_to_consoles(text);
}
