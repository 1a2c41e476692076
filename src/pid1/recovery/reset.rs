//! Factory reset at the console.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::setup::{DATA_TEMPLATE, Setup};
use super::{NextState, SetupError, console};
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::jobs::factory_reset::{self, Confirmed};
use crate::record::journal::Journal;
use crate::sys;

/// How long each answer is waited for. Nobody there: the machine goes back to work.
const ANSWER: Duration = Duration::from_secs(60);
/// Where the new file system is mounted to get its identity.
const DATA: &str = "/data";

/// Asks, and does what was confirmed. Everything else starts the machine as it is.
pub(super) fn run(setup: &Setup, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let typed = console::lines();
    let confirmed = factory_reset::ask(|text| journal.warn(text), || typed.recv_timeout(ANSWER).ok());
    let Some(confirmed) = confirmed else {
        return Ok(NextState::Reboot("no factory reset: nothing was changed; restarting".to_owned()));
    };
    renew(setup, confirmed, journal)
}

/// Renews the data partition.
pub(super) fn renew(setup: &Setup, confirmed: Confirmed, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let target = DeviceTarget::open(&setup.data)?.on_disk(&setup.disk);
    let template = File::open(DATA_TEMPLATE)
        .and_then(zstd::stream::read::Decoder::new)
        .map_err(|source| SetupError::Read { path: DATA_TEMPLATE.to_owned(), source })?;
    journal.warn("factory reset: the data partition is being made anew");
    factory_reset::run(confirmed, &setup.state.boot_env(), &target, template)?;
    drop(target);
    if let Err(error) = new_identity(&setup.data) {
        journal.note(&format!("the data file system keeps the identity of its template: {}", chain(&error)));
    }
    Ok(NextState::Reboot("factory reset done: all data of this machine is gone; starting the system".to_owned()))
}

fn new_identity(data: &Path) -> Result<(), SetupError> {
    sys::mount::Mount::device(data, "ext4").data_only().on(DATA)?;
    let named = sys::ext4::new_uuid(Path::new(DATA));
    sys::mount::unmount(DATA)?;
    named.map_err(|source| SetupError::Read { path: "the file system's identity".to_owned(), source })
}
