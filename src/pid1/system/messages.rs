//! What the first step writes to the kernel log and to the consoles.

use std::fs;
use std::io::Write;

use crate::sys::init;
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
    for console in init::consoles() {
        if let Ok(mut console) = fs::OpenOptions::new().write(true).open(console) {
            let _ = write!(console, "reflash: {text}\r\n");
        }
    }
}
