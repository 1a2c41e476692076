//! The request for a recovery that applies what was fetched, with the permission to do so without a network.

use crate::boot::env::{BootEnv, BootEnvError};
use crate::boot::grubenv::names;
use crate::boot::request::{self, RecoveryRequest, UpdatePermission};
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
    Ok(request::pending(&env.load_or_empty()?).map(|pending| match pending {
        Ok(RecoveryRequest::Update(permission)) => Ok(permission),
        other => Err(other.map_or_else(|entry| entry, |request| request.to_string())),
    }))
}

/// Has the next start apply the release. Both are one write of one sector: a cut leaves the start of the system, or
/// that of the recovery with its permission. A recovery that knows no such request asks a network.
///
/// # Errors
/// The next start is asked for something else by now, and that stays; the environment cannot be read or written.
pub fn grant(env: &BootEnv, permission: UpdatePermission) -> Result<(), BootEnvError> {
    env.make_room()?;
    env.ask(RecoveryRequest::Update(permission))
}

/// Takes back what [`grant`] wrote, and nothing else.
///
/// # Errors
/// The environment cannot be written.
pub fn take_back(env: &BootEnv) -> Result<(), BootEnvError> {
    let is_granted = |env: &_| matches!(request::pending(env), Some(Ok(RecoveryRequest::Update(_))));
    env.update_if(&is_granted, &[(names::NEXT_ENTRY, None), (names::REQUEST, None)]).map(drop)
}
