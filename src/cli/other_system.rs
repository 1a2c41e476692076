//! The other system of a robot with two, as `reflash flash` and `reflash update` write it while this one works.

use std::fs;
use std::path::Path;

use super::answer::{Failure, complain, failure};
use super::by_hand::keep_by_the_rule;
use super::context::Context;
use super::mounted::{MountedState, own_partuuid};
use crate::boot::decide::System;
use crate::boot::grubenv::names;
use crate::boot::slots::Slot;
use crate::boot::systems::{SystemNumber, Systems};
use crate::boot::this_boot;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::jobs::recovery::other::{OlderBootScript, OtherSystem, scripts_know_two};
use crate::jobs::recovery::{RecoveryJob, RecoveryPartition, Renewal};
use crate::jobs::state::InstalledRecord;
use crate::jobs::systems;

/// The reason for which the other system must not be written now. The one that is gone back to has to be good: a switch
/// that fails ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Obstacle {
    /// GRUB starts another system than the one that runs.
    #[error("this is system {}, and GRUB starts system {}: restart first", .running.name(), .active.name())]
    RestartFirst {
        /// System that runs.
        running: SystemNumber,
        /// System that GRUB starts.
        active: SystemNumber,
    },
    /// An older boot script would start the first system whatever is written.
    #[error(transparent)]
    OlderScript(#[from] OlderBootScript),
    /// Nothing is known of the system that would be gone back to.
    #[error("this boot has not called itself good yet, and is what GRUB would go back to")]
    NotGoodYet,
}

/// Mark of a switch for which this boot was not ended yet: it is in memory.
const SWITCHED: &str = "switched";

/// Notes that GRUB is switched in this boot, so that the restart is tried again where it does not come. To be called
/// before the switch, since the process may end right after it, and once nothing is in the way of it.
pub(super) fn note_switch() {
    if let Err(error) = fs::write(Path::new(this_boot::DIRECTORY).join(SWITCHED), "") {
        complain(&format!("a restart that fails is not tried again: {error}"));
    }
}

/// Whether an update has switched GRUB in this boot, and the restart has not come yet. Without the mark, GRUB has
/// started this system because it could start nothing else, and to restart would be for nothing.
pub(super) fn is_restart_due(mounted: &MountedState) -> Result<bool, Failure> {
    let systems = Systems::of(&mounted.state.boot_env().load_or_empty()?);
    let is_noted = Path::new(this_boot::DIRECTORY).join(SWITCHED).exists();
    Ok(is_noted && mounted.other.is_some() && systems::is_switched(systems, mounted.state.system()))
}

/// Returns why the other system must not be written now, if there is a reason.
pub(super) fn obstacle(mounted: &MountedState) -> Result<Option<Obstacle>, Failure> {
    let variables = mounted.state.boot_env().load_or_empty()?;
    let (running, active) = (mounted.state.system(), Systems::of(&variables).active);
    Ok(if own_partuuid().is_none() || active != running {
        Some(Obstacle::RestartFirst { running, active })
    } else if !mounted.recovery.as_deref().is_some_and(scripts_know_two) {
        Some(OlderBootScript.into())
    } else {
        (variables.get(names::BOOT_OK) != Some("1")).then_some(Obstacle::NotGoodYet)
    })
}

/// What is done to the other system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OtherUse {
    /// Nothing of the machine is changed.
    Look,
    /// It is written.
    Write,
}

/// Calls `work` with a recovery to the system in `other`, whose active system is this one, and with the record of this
/// one. Refused while there is an [`Obstacle`].
pub(super) fn with_job<T>(
    context: &Context,
    mounted: &MountedState,
    other: &Path,
    what: OtherUse,
    allow_older: bool,
    work: impl FnOnce(&RecoveryJob<'_>, Option<&InstalledRecord>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if let Some(why) = obstacle(mounted)? {
        return failure(why.to_string());
    }
    mounted.check_overlap()?;
    let env = mounted.state.boot_env();
    let systems = Systems::of(&env.load_or_empty()?);
    let active = DeviceTarget::open_read_only(&mounted.system_partition()?)?;
    let target = match what {
        OtherUse::Look => DeviceTarget::open_read_only(other)?,
        // Somebody looks at it, as by a mount.
        OtherUse::Write => DeviceTarget::open(other).map_err(|error| Failure::of(&error, true))?,
    };
    let (state, floor) = (mounted.state.of_system(systems.active.other()), mounted.floor());
    let mut job = context.job(&active, allow_older);
    job.resources.state = Some(&mounted.state);
    job.resources.floor = Some(&floor);
    let note_seen = |numbers| {
        let change = (what == OtherUse::Write).then(|| floor.note_seen(numbers));
        change.iter().flat_map(|change| &change.failed).for_each(|error| complain(&chain(error)));
    };
    job.resources.learn_rollout = &note_seen;
    let keys = job.resources.keys;
    job.resources.other = Some(OtherSystem::look(&target, &state, systems, mounted.recovery.as_deref(), keys, &floor));
    let record = job.read_record();
    keep_by_the_rule(&mut job.policy, mounted, record.as_ref(), None);
    (job.policy.active, job.policy.two_systems, job.policy.in_running_system) = (System::Intact, true, true);
    let medium = mounted
        .recovery
        .as_deref()
        .zip(mounted.recovery_device.as_deref())
        .map(|(root, device)| RecoveryPartition::mounted(device, root));
    // GRUB begins with slot a where nothing names one.
    let booted = Some(env.slots()?.active.unwrap_or(Slot::A));
    job.resources.renewal = medium.as_ref().map(|medium| Renewal { medium, source: job.resources.source, booted });
    work(&job, record.as_ref())
}
