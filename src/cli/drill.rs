//! `reflash drill`: the next boot shows whether this machine could recover, or the same checks are made here and now.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::commands::DrillKind;
use super::context::Context;
use super::mounted::MountedState;
use super::options::Options;
use super::status::other_to_go_back_to;
use crate::boot::boot_scripts;
use crate::chain::chain;
use crate::flash::target::DeviceTarget;
use crate::flash::undo::{self, UndoObstacle, UndoTarget};
use crate::jobs::{drill, recovery};
use crate::record::blackbox::drill::UNDO;
use crate::record::blackbox::{DrillCheck, DrillRecord};
use crate::release::manifest::TrustedKeys;
use crate::sys::own_mounts::start_outside;
use crate::sys::power;

pub(super) fn run(options: &Options, kind: DrillKind) -> Result<Exit, Failure> {
    match kind {
        DrillKind::NextBoot => ask(options),
        DrillKind::Check => check(options),
    }
}

/// Has the next boot be a drill.
fn ask(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let env = mounted.state.boot_env();
    // A recovery partition that is not at hand has none.
    let scripts = mounted.recovery.as_deref().map(boot_scripts::read).unwrap_or_default();
    drill::check(&env.load_or_empty()?, &scripts)?;
    drill::ask(&env)?;
    // GRUB reads the blocks of the partition.
    drop(mounted);
    print(options, &json!({ "next_entry": "recovery", "reflash_request": "drill" }), || {
        "the next boot is a drill: recovery tries everything but writing, and starts the system again".to_owned()
    })?;
    if options.restart { restart() } else { Ok(Exit::Done) }
}

/// Restarts the machine as its service manager does, where there is one.
pub(super) fn restart() -> Result<Exit, Failure> {
    if Path::new("/run/systemd/system").is_dir() {
        let status = start_outside(Command::new("systemctl").args(["--no-block", "reboot"])).status()?;
        return if status.success() {
            Ok(Exit::Done)
        } else {
            failure(format!("systemctl reboot ended with {status}"))
        };
    }
    match power::reboot() {
        Ok(never) => match never {},
        Err(error) => failure(format!("the machine cannot be restarted: {error}")),
    }
}

/// Makes the checks here, without a restart.
fn check(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let context = Context::open(options, Some(&mounted))?;
    let path = match &options.target {
        Some(path) => path.clone(),
        None => mounted.system_partition()?,
    };
    let target = DeviceTarget::open_read_only(&path)?;
    let mut job = context.job(&target, false);
    job.resources.state = Some(&mounted.state);
    let record = job.read_record();
    let mut checks = Vec::new();
    let mut made = |check: DrillCheck| {
        if !options.json {
            complain(&check.to_string());
        }
        checks.push(check);
    };
    recovery::rehearse(&job, record.as_ref(), &mut made);
    made(match look_for_back(&mounted, &target, job.resources.keys) {
        Ok(back) => match back.obstacle() {
            None => DrillCheck::new(UNDO, true, &format!("back to {} (serial {})", back.version, back.serial)),
            Some(obstacle) => DrillCheck::new(UNDO, false, &chain(&obstacle)),
        },
        Err(obstacle) => DrillCheck::new(UNDO, false, &chain(&obstacle)),
    });
    let drill = DrillRecord::of(checks);
    print(options, &json!(drill), || drill.to_string())?;
    Ok(if drill.passed { Exit::Done } else { Exit::No })
}

/// Looks for the release that an undo would lead back to: on the other system of two, or behind the image.
fn look_for_back(
    mounted: &MountedState,
    target: &DeviceTarget,
    keys: &TrustedKeys,
) -> Result<UndoTarget, UndoObstacle> {
    other_to_go_back_to(mounted, keys).map_or_else(|| undo::possible(target, keys), Ok)
}
