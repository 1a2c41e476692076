//! `reflash request newer`: the next boot starts recovery if there is a newer release. The boot watch asks so in a safe
//! start, and a fleet may do it from a timer.

use std::cell::{Cell, RefCell};

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::context::Context;
use super::mounted::MountedState;
use super::options::Options;
use crate::boot::request::RecoveryRequest;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::jobs::floor::{FloorRecord, SeenRollout};
use crate::jobs::recovery::{self, LeftOut, RecoveryError};

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let context = Context::open(options, Some(&mounted))?;
    let target = DeviceTarget::open_read_only(&mounted.system_partition()?)?;
    let state = mounted.state.clone();
    let mut job = context.job(&target, false);
    job.resources.state = Some(&state);
    // What is refused on this machine would be asked for in vain, again and again.
    let floor = mounted.floor();
    job.resources.floor = Some(&floor);
    let seen = Cell::new(None);
    let learn = |numbers| seen.set(Some(numbers));
    job.resources.learn_rollout = &learn;
    let left_out = RefCell::new(LeftOut::default());
    let learn = |left| drop(left_out.replace(left));
    job.resources.learn_left_out = &learn;
    let record = job.read_record();
    let Some(installed) = record.as_ref().map(|record| record.manifest().serial) else {
        return failure("no release is recorded as installed, so that none can be newer; see reflash status");
    };
    // The question may take minutes, in which the state partition is better not mounted.
    job.resources.state = None;
    drop(mounted);
    job.policy.above = Some(installed);
    let found = recovery::fetch_release(&job, record.as_ref());
    if let Some(numbers) = seen.get() {
        note_seen(options, numbers)?;
    }
    let manifest = match found {
        Ok(release) => release.manifest,
        Err(error @ (RecoveryError::Manifest(_) | RecoveryError::Rollout(_))) => {
            let why = context.with_facts_fault(chain(&error), &left_out.borrow());
            print(options, &json!({ "next_entry": null, "installed": installed }), || {
                format!("nothing newer than serial {installed}: {why}")
            })?;
            return Ok(Exit::No);
        }
        Err(error) => return Err(Failure::of(&error, error.is_retryable())),
    };
    // An older recovery does not know the word, and installs what is offered all the same.
    MountedState::open(options)?.state.boot_env().ask(RecoveryRequest::Newer)?;
    let (version, serial) = (manifest.version, manifest.serial);
    let answer = json!({ "next_entry": "recovery", "installed": installed, "version": version, "serial": serial });
    print(options, &answer, || format!("{version} (serial {serial}) is newer: the next boot goes to recovery"))?;
    Ok(Exit::Done)
}

/// Keeps the numbers of a roll-out that was seen: nothing older is taken from now on, by recovery either. Returns what
/// the floor is by then.
pub(super) fn note_seen(options: &Options, numbers: SeenRollout) -> Result<FloorRecord, Failure> {
    let mounted = MountedState::open(options)?;
    let floor = mounted.floor();
    let change = floor.note_seen(numbers);
    change.failed.iter().for_each(|error| complain(&chain(error)));
    Ok(floor.record())
}
