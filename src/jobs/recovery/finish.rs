//! The end of a recovery: what was verified is recorded and made the system that GRUB starts.

use crate::boot::env::WritePermit;
use crate::flash::verify::Verified;
use crate::jobs::recovery::commit::{self, Committed};
use crate::jobs::recovery::error::RecoveryError;
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::renew::{self, NetworkUse};
use crate::jobs::recovery::{boot_chain, spare_slot};
use crate::jobs::state::IndexedRelease;
use crate::record::journal::Phase;
use crate::record::totals::Totals;
use crate::release::manifest::Manifest;

/// Report of a finished recovery.
#[derive(Debug)]
pub struct RecoveryReport {
    /// Version that is now installed.
    pub version: String,
    /// Serial of that version.
    pub serial: u64,
    /// Quantities of the first plan.
    pub totals: Totals,
    /// Proof that the machine starts this version.
    pub committed: Committed,
}

/// Lets the machine start what was verified: records the release, brings the recovery up to date, then points GRUB at
/// both. A power cut before that last write repeats only the cheap comparisons.
pub(super) fn commit(
    job: &RecoveryJob<'_>,
    release: &IndexedRelease,
    verified: Verified,
    permit: WritePermit,
    network_use: NetworkUse,
) -> Result<Committed, RecoveryError> {
    let version = &release.manifest.version;
    job.journal.phase(Phase::Commit, &format!("make {version} the system to boot"), || {
        let recorded = commit::record(verified, job.resources.state, release);
        // The active one of two systems starts without a record too.
        let is_other = permit.is_switch() && job.resources.other.is_none();
        let recorded = if is_other { recorded.or_nothing()? } else { recorded };
        let slots = renew::renew(job, &release.manifest, network_use);
        if let Some(pointers) = slots {
            spare_slot::mend(job, &release.manifest, pointers, network_use);
        }
        boot_chain::mend(job, &release.release(), network_use);
        let committed = recorded.finish(permit, job.policy.tries, slots)?;
        if let Some(error) = &committed.unrecorded {
            job.journal.warn(&format!("{version} starts, but cannot be recorded as installed: {error}"));
        }
        Ok(committed)
    })
}

/// The report of a recovery to `release`.
pub(super) fn report(release: &IndexedRelease, totals: Totals, committed: Committed) -> RecoveryReport {
    let Manifest { version, serial, .. } = &release.manifest;
    RecoveryReport { version: version.clone(), serial: *serial, totals, committed }
}
