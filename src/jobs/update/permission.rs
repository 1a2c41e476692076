//! The request for a recovery that applies what was fetched, with the permission to do so without a network.

use crate::boot::env::{BootEnv, BootEnvError};
use crate::boot::grubenv::names;
use crate::boot::request::{RecoveryRequest, UpdatePermission};
use crate::jobs::floor::ReleaseId;

/// Permission for this release: the servers have said that it stands.
#[must_use]
pub fn of(release: ReleaseId, asked_unix_s: u64, hours: u32) -> UpdatePermission {
    UpdatePermission { serial: release.serial, digest: release.digest, asked_unix_s, hours }
}

/// The request for an update that waits for the next start, or the name of another entry that does.
///
/// # Errors
/// The environment cannot be read.
pub fn pending(env: &BootEnv) -> Result<Option<Result<UpdatePermission, String>>, BootEnvError> {
    let env = env.load_or_empty()?;
    let Some(entry) = env.get(names::NEXT_ENTRY).filter(|entry| !entry.is_empty()) else { return Ok(None) };
    Ok(Some(match RecoveryRequest::parse(env.get(names::REQUEST)) {
        Some(RecoveryRequest::Update(permission)) if entry == "recovery" => Ok(permission),
        Some(other) => Err(other.to_string()),
        None => Err(entry.to_owned()),
    }))
}

/// Has the next start apply the release. Both are one write of one sector: a cut leaves the start of the system, or
/// that of the recovery with its permission. A recovery that knows no such request asks a network.
///
/// Where the next start is asked for something else by now, that stays, and its name is returned.
///
/// # Errors
/// The environment cannot be read or written.
pub fn grant(env: &BootEnv, permission: UpdatePermission) -> Result<Result<(), String>, BootEnvError> {
    if let Some(Err(other)) = pending(env)? {
        return Ok(Err(other));
    }
    env.make_room()?;
    let request = RecoveryRequest::Update(permission).to_string();
    env.update(&[(names::NEXT_ENTRY, Some("recovery")), (names::REQUEST, Some(&request))]).map(Ok)
}

/// Takes back what [`grant`] wrote, and nothing else.
///
/// # Errors
/// The environment cannot be written.
pub fn take_back(env: &BootEnv) -> Result<(), BootEnvError> {
    match pending(env)? {
        Some(Ok(_)) => env.update(&[(names::NEXT_ENTRY, None), (names::REQUEST, None)]),
        _ => Ok(()),
    }
}
