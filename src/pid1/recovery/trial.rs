//! A renewed recovery that came up is not trusted yet: it may have no driver for the network. One that finds no release for
//! long gives way to the one before it.

use std::sync::Arc;
use std::time::Duration;

use super::restart;
use super::setup::Setup;
use crate::boot::env::BootEnv;
use crate::boot::slots::{Slot, Trial};
use crate::record::journal::Journal;

/// Beside `boot.offline_s`, after which a machine with an intact system stops waiting by itself: time to hash a large
/// system partition on a slow disk, and for a network that is slow to come up.
const GRACE: Duration = Duration::from_secs(300);

/// Restarts the machine if this recovery is on trial and the time is over; GRUB then starts the other slot.
pub(super) fn watch(setup: &Setup, journal: &Arc<Journal>) {
    let Some(booted) = Slot::parse(setup.args.slot.as_deref()) else { return };
    let env = setup.state.boot_env();
    if !is_on_trial(&env, booted) {
        return;
    }
    journal.note("this recovery is new, and on trial until it has found a release");
    let (limit, journal) = (setup.config.offline + GRACE, Arc::clone(journal));
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        // Only the environment knows whether the trial is over, and that is what GRUB goes by.
        if is_on_trial(&env, booted) {
            let seconds = limit.as_secs();
            journal
                .warn(&format!("no release within {seconds} s of this recovery's trial: the one before it takes over"));
            restart(&journal);
        }
    });
}

fn is_on_trial(env: &BootEnv, booted: Slot) -> bool {
    env.slots().is_ok_and(|slots| slots.trial == Some(Trial::Tried(booted)))
}
