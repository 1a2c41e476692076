//! Whether a release may be installed automatically on a robot with this floor. Pure.

use super::record::{FloorRecord, ReleaseId};
use crate::release::manifest::{MAX_SERIAL, ManifestError};

/// A release that is offered, and who wants it.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    /// Identity of the release.
    pub release: ReleaseId,
    /// Version of the release, for people.
    pub version: &'a str,
    /// Release that is installed, by its record.
    pub installed: Option<ReleaseId>,
    /// Whether a person at the machine takes any release.
    pub by_person: bool,
}

/// Checks an offered release against the floor, the refused releases and the installed one.
///
/// # Errors
/// [`ManifestError::Refused`], [`ManifestError::Older`] or [`ManifestError::BelowFloor`].
pub fn check(floor: &FloorRecord, offered: Offered<'_>) -> Result<(), ManifestError> {
    let Offered { release, version, installed, by_person } = offered;
    if by_person {
        return Ok(());
    }
    let version = || version.to_owned();
    if floor.refuses(&release) {
        return Err(ManifestError::Refused { version: version(), offered: release.serial });
    }
    // What is installed already may be repaired wherever the floor is, and so may what a person put below it.
    if installed == Some(release) || floor.allowed == Some(release) {
        return Ok(());
    }
    // A serial that no release can have is no witness.
    let before = installed.map_or(0, |installed| installed.serial);
    if before <= MAX_SERIAL && release.serial < before {
        return Err(ManifestError::Older { version: version(), offered: release.serial, installed: before });
    }
    if release.serial < floor.serial {
        return Err(ManifestError::BelowFloor { version: version(), offered: release.serial, floor: floor.serial });
    }
    Ok(())
}
