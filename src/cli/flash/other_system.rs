//! `reflash flash` on a robot with two systems: the other system is written while this one works, and is started next.

use std::path::Path;

use serde_json::json;

use super::super::answer::{Exit, Failure, print};
use super::super::by_hand::reported;
use super::super::context::Context;
use super::super::mounted::{MountedState, turn_to_renew};
use super::super::options::Options;
use super::super::other_system::{OtherUse, note_switch, with_job};
use crate::jobs::recovery::{self, RecoveryError};

/// Writes the offered release to the system in `other`, and has GRUB start that one.
pub(super) fn run(options: &Options, context: &Context, mounted: &MountedState, other: &Path) -> Result<Exit, Failure> {
    let failed = |error: RecoveryError| Failure::of(&error, error.is_retryable());
    if options.dry_run {
        let looked = with_job(context, mounted, other, OtherUse::Look, options.allow_older, |job, record| {
            recovery::estimate_other(job, record).map_err(failed)
        });
        let Some((release, totals)) = looked? else { return nothing_to_do(options) };
        let answer = json!({ "version": release.version, "serial": release.serial, "totals": totals });
        print(options, &answer, || format!("{} on {}: {totals}", release.version, other.display()))?;
        return Ok(Exit::Done);
    }
    let _turn = turn_to_renew(options)?;
    let installed = with_job(context, mounted, other, OtherUse::Write, options.allow_older, |job, record| {
        note_switch();
        reported(context, Some(mounted), || recovery::update_other(job, record)).map_err(failed)
    });
    let Some(report) = installed? else { return nothing_to_do(options) };
    let answer = json!({
        "version": report.version, "serial": report.serial, "totals": report.totals,
        "system": mounted.state.system().other().name(),
    });
    print(options, &answer, || {
        format!("{} holds {}, verified; the next start is of it", other.display(), report.version)
    })?;
    Ok(Exit::Done)
}

fn nothing_to_do(options: &Options) -> Result<Exit, Failure> {
    print(options, &json!({ "written": false }), || "this system holds the offered release already".to_owned())?;
    Ok(Exit::Done)
}
