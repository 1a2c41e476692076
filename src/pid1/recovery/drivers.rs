//! The first steps of every job of the agent: signals, and drivers for what is plugged in.

use std::sync::Arc;
use std::time::Duration;

use super::background::background;
use super::error::SetupError;
use crate::chain::chain;
use crate::machine::drivers::{Coldplug, LoadedModules, Loader};
use crate::record::journal::Journal;
use crate::sys;

/// Time that the main thread has to end by itself after ctrl-alt-del. Nothing here needs it: a cut is always safe.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Makes ctrl-alt-del, and a program that asks PID 1 to end, restart the machine in order.
pub(super) fn take_signals(journal: &Arc<Journal>) {
    let warner = Arc::clone(journal);
    let signals = sys::init::start_signal_thread(SHUTDOWN_GRACE, move |text| warner.warn(text));
    if let Err(error) = signals {
        journal.warn(&format!("ctrl-alt-del will not work: {error}"));
    }
}

/// Loads the modules that no device asks for (`more` beside the ones that are always needed) and those that the devices
/// ask for, now and when they are plugged in later.
pub(super) fn load_modules(more: &[&str], journal: &Arc<Journal>) -> Result<Coldplug, SetupError> {
    let loader = Arc::new(Loader::for_running_kernel()?);
    // No device names these: file systems, and raw sockets for DHCP.
    for name in ["ext4", "af_packet"].iter().chain(more) {
        loader.load(name)?;
    }
    // Started before the walk, so that a device which appears meanwhile is not missed.
    let reporter = Arc::clone(journal);
    let coldplug = Coldplug::start(Arc::clone(&loader), move |loaded| report_modules(&reporter, loaded))
        .map_err(|source| SetupError::Read { path: "kernel device events".to_owned(), source })?;
    // In the background: the disk has its own wait, and a robot that only has to be started again needs no more
    // drivers.
    let reporter = Arc::clone(journal);
    background(journal, "drivers", move || report_modules(&reporter, &loader.load_for_present_devices()));
    Ok(coldplug)
}

fn report_modules(journal: &Journal, loaded: &LoadedModules) {
    if !loaded.modules.is_empty() {
        journal.note(&format!("drivers: {}", loaded.modules.join(" ")));
    }
    for failure in &loaded.failures {
        journal.warn(&chain(failure));
    }
}
