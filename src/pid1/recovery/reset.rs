//! Factory reset at the console.

use std::path::Path;
use std::time::Duration;

use super::ending::NextState;
use super::error::SetupError;
use super::robot_disk::STATE;
use super::setup::Setup;
use super::undo::restart_may_help;
use crate::chain::chain;
use crate::disk::roles::Role;
use crate::flash::target::DeviceTarget;
use crate::jobs::factory_reset::{self, Confirmed};
use crate::pid1::system::forget_saved;
use crate::pid1::{console, worker};
use crate::sys::{self, files};

/// Time to answer each question. Without an answer the machine goes back to work.
const ANSWER: Duration = Duration::from_secs(60);
/// Template of an empty data partition.
const DATA_TEMPLATE: &str = "/recovery/templates/data.ext4.zst";
/// Mount point of the new file system, while it gets its identity.
const DATA: &str = "/data";

/// Asks at the console, and does what was confirmed. Any other answer restarts the machine as it is.
pub(super) fn run(setup: &Setup) -> Result<NextState, SetupError> {
    // The process that asked may have died after the answer.
    if let Some(confirmed) = factory_reset::pending(&setup.disk.state.boot_env())? {
        return renew(setup, confirmed);
    }
    let typed = console::lines(&setup.journal);
    let confirmed = factory_reset::ask(|text| setup.journal.warn(text), || typed.recv_timeout(ANSWER).ok());
    let Some(confirmed) = confirmed else {
        return Ok(NextState::Reboot("no factory reset: nothing was changed; restarting".to_owned()));
    };
    renew(setup, confirmed)
}

/// Makes the data partition anew. After several failures in a row the system starts with what is left of it: a person
/// often asks for a reset because data acts up, and may not be there any more.
pub(super) fn renew(setup: &Setup, confirmed: Confirmed) -> Result<NextState, SetupError> {
    let error = match make_anew(setup, confirmed) {
        Ok(next) => return Ok(next),
        Err(error) => error,
    };
    if restart_may_help(setup) {
        return Err(error);
    }
    factory_reset::end(&setup.disk.state.boot_env())?;
    let why = chain(&error);
    Ok(NextState::Reboot(format!(
        "the factory reset is given up: {why}; starting the system with what is left of data"
    )))
}

fn make_anew(setup: &Setup, confirmed: Confirmed) -> Result<NextState, SetupError> {
    let (disk, journal) = (&setup.disk, &setup.journal);
    let no_data = || SetupError::Partition { disk: disk.description.clone(), role: Role::Data };
    let data = disk.data.as_deref().ok_or_else(no_data)?;
    let target = DeviceTarget::open(data)?.on_disk(&disk.description);
    journal.warn("factory reset: the data partition is being made anew");
    if let Err(error) = forget_saved(Path::new(STATE)) {
        journal.warn(&format!("what was saved of an earlier data partition cannot be removed: {error}"));
    }
    factory_reset::run(confirmed, &disk.state.boot_env(), &target, || files::open(Path::new(DATA_TEMPLATE)))?;
    drop(target);
    worker::done();
    if let Err(error) = new_identity(data) {
        journal.note(&format!("the data file system keeps the identity of its template: {}", chain(&error)));
    }
    Ok(NextState::Reboot("factory reset done: all data of this machine is gone; starting the system".to_owned()))
}

fn new_identity(data: &Path) -> Result<(), SetupError> {
    sys::mount::Mount::device(data, "ext4").data_only().on(DATA)?;
    let named = sys::ext4::new_uuid(Path::new(DATA));
    sys::mount::unmount(DATA)?;
    named.map_err(|source| SetupError::Identity { path: data.to_owned(), source })
}
