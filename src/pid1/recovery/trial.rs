//! The trial of a renewed recovery. A recovery that came up is not trusted yet: it may have no driver for the network.
//! One that finds no release for long gives way to the one before it.

use std::sync::Arc;
use std::time::Duration;

use super::setup::Setup;
use crate::boot::env::BootEnv;
use crate::boot::slots::{Slot, Trial};
use crate::pid1::background::background;
use crate::pid1::worker::restart;

/// Time beyond `boot.offline_s`, after which a machine with an intact system stops waiting by itself: enough to hash a
/// large system partition on a slow disk, and for a network that is slow to come up.
const GRACE: Duration = Duration::from_secs(300);

/// Restarts the machine if this recovery is on trial and the time is over; GRUB then starts the other slot. The trial
/// ends with the first authentic manifest.
pub(super) fn watch(setup: &Setup) {
    let Some(booted) = Slot::parse(setup.args.slot.as_deref()) else { return };
    let env = setup.disk.state.boot_env();
    if !is_on_trial(&env, booted) {
        return;
    }
    setup.journal.note("this recovery is new, and on trial until it has found a release");
    let (limit, age, journal) = (setup.config.offline + GRACE, setup.began.elapsed(), Arc::clone(&setup.journal));
    background(&setup.journal, "trial", move || {
        std::thread::sleep(limit.saturating_sub(age));
        // Only the environment knows whether the trial is over, and that is what GRUB goes by.
        if is_on_trial(&env, booted) {
            let seconds = limit.as_secs();
            journal
                .warn(&format!("no release within {seconds} s of this recovery's trial: the one before it takes over"));
            restart();
        }
    });
}

fn is_on_trial(env: &BootEnv, booted: Slot) -> bool {
    env.slots().is_ok_and(|slots| slots.trial == Some(Trial::Tried(booted)))
}
