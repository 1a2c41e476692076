//! What a recovery by hand shares with that of PID 1: what is kept for an undo, and reports.

use super::context::{Context, this_machine};
use super::mounted::MountedState;
use crate::chain::chain;
use crate::fetch::FetchOptions;
use crate::flash::undo::UndoTarget;
use crate::jobs::recovery::{InstalledRelease, Keep, Policy, RecoveryError};
use crate::jobs::state::InstalledRecord;
use crate::record::blackbox::BlackBox;
use crate::record::report::{Ending, Poster};

/// Sets `policy.keep` as a recovery does, so that the last good release can still be gone back to. Records that cannot
/// be read are ignored.
pub(super) fn keep_by_the_rule(
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

/// Recovers, and posts meanwhile to `report.url` what happens, if that is configured and the machine is known.
pub(super) fn reported<T>(
    context: &Context,
    mounted: Option<&MountedState>,
    recover: impl FnOnce() -> Result<T, RecoveryError>,
) -> Result<T, RecoveryError> {
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
