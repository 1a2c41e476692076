//! The first step of every job of the agent: drivers for what is plugged in.

use std::sync::Arc;

use super::error::SetupError;
use crate::chain::chain;
use crate::jobs::provision::Firmware;
use crate::machine::drivers::{Coldplug, LoadedModules, Loader};
use crate::pid1::background::background;
use crate::pid1::link::Handover;
use crate::record::journal::Journal;

/// Loads the modules that no device asks for (`more` beside the ones that are always needed) and those that the devices
/// ask for, now and when they are plugged in later. After the death of the process before this one, drivers are also
/// offered the devices that they did not take.
pub(super) fn load_modules(more: &[&str], handover: &Handover, journal: &Arc<Journal>) -> Result<Coldplug, SetupError> {
    let loader = Arc::new(Loader::for_running_kernel()?);
    // No device names these: file systems, and raw sockets for DHCP.
    for name in ["ext4", "af_packet"].iter().chain(more) {
        loader.load(name)?;
    }
    // Without UEFI the kernel refuses to load it. Where it is missing the firmware is one witness less.
    if Firmware::of_this_machine() == Firmware::Uefi
        && let Err(error) = loader.load("efivarfs")
    {
        journal.warn(&format!("going on without the variables of the firmware: {}", chain(&error)));
    }
    // Started before the walk, so that a device which appears meanwhile is not missed.
    let reporter = Arc::clone(journal);
    let coldplug = Coldplug::start(Arc::clone(&loader), move |loaded| report_modules(&reporter, loaded))
        .map_err(|source| SetupError::Read { path: "kernel device events".to_owned(), source })?;
    // In the background: the disk has its own wait, and a robot that only has to be started again needs no more
    // drivers.
    let (reporter, resumed) = (Arc::clone(journal), handover.died.is_some());
    background(journal, "drivers", move || {
        report_modules(&reporter, &loader.load_for_present_devices());
        if resumed {
            loader.bind_present_devices();
        }
    });
    Ok(coldplug)
}

/// Has the kernel look once more for the disk that is waited for.
pub(super) fn look_again(journal: &Journal) {
    match Loader::for_running_kernel() {
        Ok(loader) => loader.look_again(),
        Err(error) => journal.warn(&chain(&error)),
    }
}

fn report_modules(journal: &Journal, loaded: &LoadedModules) {
    if !loaded.modules.is_empty() {
        journal.note(&format!("drivers: {}", loaded.modules.join(" ")));
    }
    for failure in &loaded.failures {
        journal.warn(&chain(failure));
    }
}
