//! Lets the machine boot what was verified, and only that.

use std::io;

use crate::boot::env::{BootEnvError, WritePermit};
use crate::boot::slots::SlotState;
use crate::flash::verify::Verified;
use crate::jobs::state::StatePartition;
use crate::release::manifest::Authentic;

/// GRUB will start the verified system.
#[derive(Debug)]
pub struct Committed {
    /// Why the release could not be recorded as installed. The system starts all the same: without the record a later
    /// recovery asks the network where it could have compared.
    pub unrecorded: Option<io::Error>,
}

/// A verified system could not be made bootable.
#[derive(Debug, thiserror::Error)]
#[error("the system is verified, but cannot be made bootable")]
pub struct CommitError(#[from] BootEnvError);

/// Records the release, lets `renew` bring the recovery up to date, then gives the system its tries and points GRUB at the
/// slots that `renew` proved to be whole; a cut before that last write repeats only the cheap comparisons.
///
/// # Errors
/// [`CommitError`]; the next boot comes back to recovery.
pub fn commit(
    _proof: Verified,
    permit: WritePermit,
    state: Option<&StatePartition>,
    manifest: &Authentic,
    index_object: &[u8],
    tries: u8,
    renew: impl FnOnce() -> Option<SlotState>,
) -> Result<Committed, CommitError> {
    let unrecorded = state.and_then(|state| state.record_installed(manifest, index_object).err());
    permit.finish(tries, renew())?;
    Ok(Committed { unrecorded })
}
