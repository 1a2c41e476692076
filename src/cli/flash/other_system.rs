//! `reflash flash` on a robot with two systems: the other system is written while this one works, and is started next.

use std::path::Path;

use serde_json::json;

use super::super::answer::{Exit, Failure, failure, print};
use super::super::context::Context;
use super::super::mounted::{MountedState, own_partuuid};
use super::super::options::Options;
use super::by_hand::{keep_by_the_rule, reported};
use crate::boot::decide::System;
use crate::boot::grubenv::names;
use crate::boot::slots::Slot;
use crate::boot::systems::Systems;
use crate::flash::target::DeviceTarget;
use crate::jobs::recovery::other::{OtherSystem, scripts_know_two};
use crate::jobs::recovery::{self, RecoveryError, RecoveryPartition, Renewal};

/// Writes the offered release to the system in `other`, and has GRUB start that one.
pub(super) fn run(options: &Options, context: &Context, mounted: &MountedState, other: &Path) -> Result<Exit, Failure> {
    let env = mounted.state.boot_env();
    let variables = env.load_or_empty()?;
    let systems = Systems::of(&variables);
    if let Some(why) = obstacle(mounted, systems, variables.get(names::BOOT_OK) == Some("1")) {
        return failure(why);
    }
    let active = DeviceTarget::open_read_only(&mounted.system_partition()?)?;
    let target = if options.dry_run { DeviceTarget::open_read_only(other)? } else { DeviceTarget::open(other)? };
    let (state, floor) = (mounted.state.of_system(systems.active.other()), mounted.floor());
    let mut job = context.job(&active, options.allow_older);
    job.resources.state = Some(&mounted.state);
    job.resources.floor = Some(&floor);
    let keys = job.resources.keys;
    job.resources.other = Some(OtherSystem::look(&target, &state, systems, mounted.recovery.as_deref(), keys, &floor));
    let record = job.read_record();
    keep_by_the_rule(&mut job.policy, mounted, record.as_ref(), None);
    (job.policy.active, job.policy.two_systems) = (System::Intact, true);
    let failed = |error: RecoveryError| Failure::of(&error, error.is_retryable());
    if options.dry_run {
        let Some((release, totals)) = recovery::estimate_other(&job, record.as_ref()).map_err(failed)? else {
            return nothing_to_do(options);
        };
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        print(options, &answer, || format!("{} on {}: {totals}", release.version, other.display()))?;
        return Ok(Exit::Done);
    }
    let medium = mounted
        .recovery
        .as_deref()
        .zip(mounted.recovery_device.as_deref())
        .map(|(root, device)| RecoveryPartition::mounted(device, root));
    // GRUB begins with slot a where nothing names one.
    let booted = Some(env.slots()?.active.unwrap_or(Slot::A));
    job.resources.renewal = medium.as_ref().map(|medium| Renewal { medium, source: job.resources.source, booted });
    let report = reported(context, Some(mounted), || recovery::update_other(&job, record.as_ref())).map_err(failed)?;
    let Some(report) = report else { return nothing_to_do(options) };
    let answer = json!({
        "version": report.version, "serial": report.serial, "totals": report.totals, "system": state.system().name(),
    });
    print(options, &answer, || {
        format!("{} holds {}, verified; the next start is of it", other.display(), report.version)
    })?;
    Ok(Exit::Done)
}

/// Returns why the other system must not be written now. The one that is gone back to has to be good: a switch that
/// fails ends there.
fn obstacle(mounted: &MountedState, systems: Systems, is_good: bool) -> Option<String> {
    let running = mounted.state.system();
    if own_partuuid().is_none() || systems.active != running {
        return Some(format!(
            "this is system {}, and GRUB starts system {}: restart first",
            running.name(),
            systems.active.name()
        ));
    }
    if !mounted.recovery.as_deref().is_some_and(scripts_know_two) {
        return Some(
            "a boot script of the recovery partition does not know two systems, or cannot be read: a recovery to a \
             release of today renews it (reflash request)"
                .to_owned(),
        );
    }
    (!is_good).then(|| "this boot has not called itself good yet, and is what GRUB would go back to".to_owned())
}

fn nothing_to_do(options: &Options) -> Result<Exit, Failure> {
    print(options, &json!({ "written": false }), || "this system holds the offered release already".to_owned())?;
    Ok(Exit::Done)
}
