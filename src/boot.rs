//! Lets the machine boot what was verified, and only that.

use std::io;

use crate::bootenv::{BootEnvError, Recovering};
use crate::index::Index;
use crate::manifest::Authentic;
use crate::state::State;
use crate::verify::Verified;

/// The verified system is recorded as installed and GRUB will start it.
#[derive(Debug)]
pub struct Committed(());

/// Why a verified system could not be made bootable.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The record of what is installed.
    #[error("cannot record the release as installed")]
    Record(#[source] io::Error),
    /// The boot environment.
    #[error("the system is verified, but cannot be made bootable")]
    Environment(#[source] BootEnvError),
}

/// Records the release, then gives the system its tries; a cut between the two repeats only the cheap comparison.
///
/// # Errors
/// [`CommitError`]; the machine stays in recovery.
pub fn commit(
    _proof: Verified,
    permit: Recovering,
    state: Option<&State>,
    manifest: &Authentic,
    index: &Index,
    tries: u8,
) -> Result<Committed, CommitError> {
    if let Some(state) = state {
        state.record_installed(manifest, index).map_err(CommitError::Record)?;
    }
    permit.finish(tries).map_err(CommitError::Environment)?;
    Ok(Committed(()))
}
