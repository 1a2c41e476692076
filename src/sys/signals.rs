//! The signals that PID 1 takes over, as a mask of the calling thread.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// SIGTERM and SIGINT, which the kernel sends for ctrl-alt-del.
pub(super) fn of_pid1() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals
}

/// Lets the signals through to this thread again, for a program that takes over: masks survive exec, and a program that
/// does not expect SIGTERM to be blocked misses it for ever.
///
/// # Errors
/// None in practice; the kernel knows these signals.
pub(super) fn unblock() -> io::Result<()> {
    of_pid1().thread_unblock().map_err(Into::into)
}
