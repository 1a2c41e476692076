//! `reflash flash`: a target becomes equal to a release.

use std::path::PathBuf;

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::context::{Context, this_machine};
use super::mounted::MountedState;
use super::options::Options;
use crate::chain::chain;
use crate::fetch::FetchOptions;
use crate::flash::target::{BlockTarget, DeviceTarget};
use crate::flash::undo::{self, UndoTarget};
use crate::jobs::recovery::{self, InstalledRelease, Keep, Policy, RecoveryError, RecoveryReport};
use crate::jobs::state::InstalledRecord;
use crate::record::blackbox::BlackBox;
use crate::record::report::{Ending, Poster};

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = match (&options.state, &options.target) {
        // An image file or a disk on a bench has no state of this machine.
        (None, Some(_)) => None,
        _ => Some(MountedState::open(options)?),
    };
    let context = Context::open(options, mounted.as_ref())?;
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

/// Has the last good release stay within reach of an undo, as a recovery does: by all that the machine keeps of the
/// installed one. What cannot be read is no witness.
fn keep_by_the_rule(
    policy: &mut Policy,
    mounted: &MountedState,
    record: Option<&InstalledRecord>,
    kept: Option<UndoTarget>,
) {
    let env = mounted.state.boot_env().load_or_empty().unwrap_or_default();
    let black_box = BlackBox::open_read_only(&mounted.state.blackbox_path()).ok();
    let recorded = |serial| black_box.as_ref().map(|open| open.worth(serial)).unwrap_or_default();
    policy.installed = record.map(|record| {
        let floor = mounted.floor().record();
        InstalledRelease::judge(record, &env, &floor, recorded(record.manifest().serial))
    });
    let worth = policy.installed.map(|installed| installed.worth).unwrap_or_default();
    policy.keep = Keep::by_worth(worth, kept.as_ref());
}

fn target_path(options: &Options, mounted: Option<&MountedState>) -> Result<PathBuf, Failure> {
    match (&options.target, mounted) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(mounted)) => mounted.system_partition(),
        (None, None) => failure("no target: give --target DEV"),
    }
}

/// Recovers, and posts meanwhile to `report.url` what happens, if that is configured and the machine is known.
fn reported(
    context: &Context,
    mounted: Option<&MountedState>,
    recover: impl FnOnce() -> Result<RecoveryReport, RecoveryError>,
) -> Result<RecoveryReport, RecoveryError> {
    let poster = mounted.and_then(|mounted| {
        let Context { config, journal, .. } = context;
        let options = FetchOptions::with_clock_as_it_is(&config.network);
        Poster::start(this_machine(config, mounted), config.report_url.as_deref()?, &options, journal)
            .inspect_err(|error| journal.warn(&chain(error)))
            .ok()
    });
    let result = recover();
    if let Some(poster) = poster {
        poster.close(match &result {
            Ok(_) => Ending::Installed,
            Err(error) if error.is_of_the_release() => Ending::Refused,
            Err(_) => Ending::Failed,
        });
    }
    result
}
