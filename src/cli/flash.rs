//! `reflash flash`: a target becomes equal to a release.

mod other_system;

use std::path::PathBuf;

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::by_hand::{keep_by_the_rule, reported};
use super::context::Context;
use super::mounted::MountedState;
use super::options::Options;
use crate::chain::chain;
use crate::flash::target::{BlockTarget, DeviceTarget};
use crate::flash::undo;
use crate::jobs::recovery::{self, RecoveryError};

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = match (&options.state, &options.target) {
        // An image file or a disk on a bench has no state of this machine.
        (None, Some(_)) => None,
        _ => Some(MountedState::open(options)?),
    };
    mounted.iter().try_for_each(MountedState::check_overlap)?;
    let context = Context::open(options, mounted.as_ref())?;
    if let (None, Some(mounted)) = (&options.target, &mounted)
        && let Some(other) = &mounted.other
    {
        return other_system::run(options, &context, mounted, other);
    }
    let path = target_path(options, mounted.as_ref())?;
    let target = if options.dry_run { DeviceTarget::open_read_only(&path)? } else { DeviceTarget::open(&path)? };
    let mut job = context.job(&target, options.allow_older);
    job.resources.state = mounted.as_ref().map(|mounted| &mounted.state);
    let floor = mounted.as_ref().map(MountedState::floor);
    job.resources.floor = floor.as_ref();
    let note_seen = |numbers| {
        let change = floor.as_ref().filter(|_| !options.dry_run).map(|floor| floor.note_seen(numbers));
        change.iter().flat_map(|change| &change.failed).for_each(|error| complain(&chain(error)));
    };
    job.resources.learn_rollout = &note_seen;
    let record = job.read_record();
    if let Some(mounted) = &mounted {
        keep_by_the_rule(&mut job.policy, mounted, record.as_ref(), undo::possible(&target, job.resources.keys).ok());
    }
    let failed = |error: RecoveryError| Failure::of(&error, error.is_retryable());
    if options.dry_run {
        let (release, totals) = recovery::estimate(&job, record.as_ref()).map_err(failed)?;
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        print(options, &answer, || format!("{} on {}: {totals}", release.version, target.name()))?;
    } else if options.no_read_back {
        let (release, totals) = recovery::write_only(&job, record.as_ref()).map_err(failed)?;
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        print(options, &answer, || format!("{} was written to {}, not read back", release.version, target.name()))?;
    } else {
        let report = reported(&context, mounted.as_ref(), || recovery::run(&job, record.as_ref())).map_err(failed)?;
        let answer = json!({ "version": report.version, "serial": report.serial, "totals": report.totals });
        print(options, &answer, || format!("{} holds {}, verified", target.name(), report.version))?;
    }
    Ok(Exit::Done)
}

fn target_path(options: &Options, mounted: Option<&MountedState>) -> Result<PathBuf, Failure> {
    match (&options.target, mounted) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(mounted)) => mounted.system_partition(),
        (None, None) => failure("no target: give --target DEV"),
    }
}
