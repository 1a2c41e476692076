//! The recovery agent: the process that PID 1 of the recovery initramfs supervises. This page has the whole sequence;
//! each step has its own file.
//!
//! | step | phase on the console | what it does | file |
//! |---|---|---|---|
//! | start | | gives up rights, opens every console and the kernel log | [`worker`], `console` |
//! | command line | | chooses recovery, factory reset or provisioning | `provisioning` |
//! | disk | init | loads drivers, finds the robot's disk, mounts recovery and state, opens event log and black box | `setup`, `drivers`, `robot_disk` |
//! | configuration | config | reads keys and the record of the installed release, merges configuration, starts the watchdog | `configuration`, `setup` |
//! | standing | | whether the installed release was ever good, what is kept of another one, what was asked for | `standing` |
//! | clock | | sets a clock that cannot be right | `sources` |
//! | unwritable disk | | instead of all below, where nothing can be stored: starts the system without GRUB | `direct_start` |
//! | factory reset | | makes the data partition anew, if that was asked for and confirmed | `reset` |
//! | drill | network, manifest, plan | instead of all below, where the running system asked for one: everything but writing | `drill` |
//! | systems | | instead of all below, where the running system asked for another number of systems: changes the table | `relayout` |
//! | trial | | restarts into the other slot if this recovery is new and finds no release for long | `trial` |
//! | sources | | opens the release servers, USB drive and medium | `sources` |
//! | comparison | plan | compares the system with the record, unless a release was asked for | `setup` |
//! | decision | | start the intact system, take it back, fetch a release, or park ([`decide`](crate::boot::decide)) | `course` |
//! | without a release | | starts the system, normally or safely, goes back, or waits | `without` |
//! | fetched update | manifest, plan, write, verify, commit | applies what the running system has fetched, where that was asked for | `staged` |
//! | undo | plan, write, verify, commit | goes back to the release that is kept, without a network | `undo` |
//! | network | network | brings it up, unless the release is on a USB drive or a medium; posts reports | `online` |
//! | installation | manifest, plan, write, verify, commit | [`jobs::recovery::run`](crate::jobs::recovery::run), again until it succeeds or the disk is broken | `install` |
//! | restart | | posts the last reports; GRUB then starts the system | `ending` |
//!
//! Whatever goes wrong ends in a restart of the machine, at once or after a pause: see `NextState`. Whatever ends this
//! process, PID 1 starts it again, and it goes on where it was: to be killed is no more than a power cut.

mod boot_medium;
mod configuration;
mod course;
mod data_store;
mod direct_start;
mod drill;
mod drivers;
mod ending;
mod error;
mod inputs;
mod install;
mod online;
mod pause;
mod provision_disk;
mod provisioning;
mod relayout;
mod reset;
mod robot_disk;
mod settle;
mod setup;
mod sources;
mod staged;
mod standing;
mod trial;
mod undo;
mod usb_release;
mod without;

use std::sync::Arc;

use super::link::{Handover, WorkPart};
use super::{console, worker};
use crate::chain::chain;
use crate::fetch::RetryPolicy;
use crate::jobs::factory_reset;
use crate::machine::config::{Action, BootArgs, Layer};
use crate::record::journal::Journal;
use ending::{NextState, start_over};
use error::SetupError;
use setup::Setup;
use sources::SupervisedSource;

/// Rounds over all mirrors before the recovery's own update is given up until the next release. A transfer that makes
/// progress resets the count.
const RENEWAL_ROUNDS: u32 = 3;

/// Runs the agent in the process that PID 1 started for it. Never returns: PID 1 restarts the machine.
pub fn run(handover: &Handover) -> ! {
    let problems = worker::begin();
    let journal = Arc::new(console::open_journal());
    worker::stay_in_touch(&journal);
    problems.iter().for_each(|problem| journal.warn(&format!("this process has more rights than it needs: {problem}")));
    match recover(handover, &journal) {
        Ok(NextState::Reboot(why)) => {
            journal.note(&why);
            worker::restart()
        }
        Ok(NextState::StartDirectly(why)) => {
            journal.note(&why);
            worker::start_directly()
        }
        Ok(NextState::StartOver(why)) => start_over(&journal, &why),
        Err(error) => start_over(&journal, &chain(&error)),
    }
}

fn recover(handover: &Handover, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let command_line = inputs::read("/proc/cmdline")?;
    let (over, args) = Layer::usable_kernel_arguments(&command_line)?;
    console::log_libraries(args.verbose);
    for problem in &over.problems {
        journal.warn(&format!("a kernel argument is left out: {}", chain(problem)));
    }
    let over = over.value;
    for argument in &args.unknown {
        journal.warn(&format!("kernel argument {argument:?} is not known to this agent and is left out"));
    }
    match args.action {
        Some(Action::Provision) => provisioning::run(&args, over, handover, journal),
        Some(Action::FactoryReset) => reset::run(&Setup::new(args, over, handover, journal)?),
        Some(Action::Reflash) | None => reflash(args, over, handover, journal),
    }
}

/// Runs everything up to the decision, which needs no network, and carries it out.
fn reflash(args: BootArgs, over: Layer, handover: &Handover, journal: &Arc<Journal>) -> Result<NextState, SetupError> {
    let setup = Setup::new(args, over, handover, journal)?;
    if let Some(why) = &setup.disk.unwritable {
        let mirrors = setup.open_mirrors()?;
        return Ok(direct_start::of_unwritable(&setup, &setup.job(&mirrors, &mirrors), why));
    }
    // An environment that cannot be read says nothing of a reset, and the system may be intact all the same.
    if let Ok(Some(confirmed)) = factory_reset::pending(&setup.disk.state.boot_env()) {
        return reset::renew(&setup, confirmed);
    }
    if let Some(next) = drill::run(&setup) {
        return Ok(next);
    }
    if let Some(next) = relayout::run(&setup) {
        return Ok(next);
    }
    trial::watch(&setup);
    let mirrors = setup.open_mirrors()?;
    let bounded_mirrors = mirrors.clone().with_retry_policy(RetryPolicy::Rounds(RENEWAL_ROUNDS));
    let for_renewal = SupervisedSource::new(WorkPart::Renewal, Box::new(bounded_mirrors));
    let job = setup.job(&mirrors, &for_renewal);
    let next = course::run(&setup, &mirrors, &job);
    if next.is_ok()
        && let Err(error) = undo::offer(&setup)
    {
        journal.warn(&format!("the boot menu cannot offer what an undo leads back to: {}", chain(&error)));
    }
    next
}
