//! `reflash request`: the next boot starts recovery, for this or that, or offers a factory reset.

use serde_json::json;

use super::answer::{Exit, Failure, print};
use super::commands::RequestedAction;
use super::context::{Context, keys};
use super::mounted::MountedState;
use super::options::Options;
use super::status::look_for_undo;
use crate::boot::grubenv::names;
use crate::boot::request::RecoveryRequest;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::jobs::recovery;

pub(super) fn run(options: &Options, action: RequestedAction) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    match action {
        RequestedAction::Reflash => {
            let asked = options.serial.map(RecoveryRequest::Release);
            request(options, &mounted, "recovery", asked, "the next boot goes to recovery")
        }
        RequestedAction::FactoryReset => {
            let sentence = "the next boot asks at the console whether to delete all data";
            request(options, &mounted, "factory-reset", None, sentence)
        }
        RequestedAction::Undo => undo(options, &mounted),
        RequestedAction::Newer => newer(options, &mounted),
    }
}

/// Writes the request. What an earlier one asked for beside `next_entry` does not outlive it.
fn request(
    options: &Options,
    mounted: &MountedState,
    entry: &str,
    asked: Option<RecoveryRequest>,
    sentence: &str,
) -> Result<Exit, Failure> {
    let asked = asked.map(|asked| asked.to_string());
    mounted.state.boot_env().update(&[(names::NEXT_ENTRY, Some(entry)), (names::REQUEST, asked.as_deref())])?;
    let mut answer = json!({ "next_entry": entry });
    if let Some(asked) = asked {
        answer["request"] = asked.into();
    }
    print(options, &answer, || sentence.to_owned())?;
    Ok(Exit::Done)
}

/// Asks for an undo, if there is one to ask for.
fn undo(options: &Options, mounted: &MountedState) -> Result<Exit, Failure> {
    let keys = keys(options, Some(mounted))?;
    let installed = mounted.state.record(&keys);
    match look_for_undo(mounted, &keys, installed.as_ref()) {
        Ok(kept) => {
            let of = installed.map(|record| record.manifest().serial);
            let sentence = format!("the next boot goes back to {} (serial {})", kept.version, kept.serial);
            request(options, mounted, "recovery", Some(RecoveryRequest::Undo { of }), &sentence)
        }
        Err(obstacle) => {
            print(options, &json!({ "obstacle": obstacle }), || format!("no undo is possible: {obstacle}"))?;
            Ok(Exit::No)
        }
    }
}

/// Asks the servers for a release with a higher serial, and requests recovery if there is one.
fn newer(options: &Options, mounted: &MountedState) -> Result<Exit, Failure> {
    let context = Context::open(options, Some(mounted))?;
    let target = DeviceTarget::open_read_only(&mounted.system_partition()?)?;
    let (mut job, floor) = (context.job(&target, false), mounted.floor());
    job.resources.state = Some(&mounted.state);
    job.resources.floor = Some(&floor);
    let record = job.read_record();
    job.policy.above = record.as_ref().map(|record| record.manifest().serial);
    match recovery::fetch_release(&job, record.as_ref()) {
        Ok(release) => {
            let (version, serial) = (&release.manifest.version, release.manifest.serial);
            let sentence = format!("{version} (serial {serial}) is offered: the next boot goes to recovery");
            request(options, mounted, "recovery", None, &sentence)
        }
        Err(error) if error.is_of_the_release() && !error.is_denied() => {
            let why = chain(&error);
            print(options, &json!({ "refused": why }), || format!("no newer release: {why}"))?;
            Ok(Exit::No)
        }
        Err(error) => Err(Failure::of(&error, error.is_retryable())),
    }
}
