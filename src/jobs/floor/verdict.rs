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

#[cfg(test)]
mod tests {
    use super::{Offered, check};
    use crate::jobs::floor::record::{FloorRecord, ReleaseId};
    use crate::release::manifest::ManifestError;

    fn id(serial: u64) -> ReleaseId {
        ReleaseId::new(serial, b"manifest")
    }

    /// Every release from 1 to 9 that is accepted with this floor and this installed release.
    fn accepted(floor: &FloorRecord, installed: Option<u64>, by_person: bool) -> Vec<u64> {
        let installed = installed.map(id);
        let offered = |serial| Offered { release: id(serial), version: "v", installed, by_person };
        (1..=9).filter(|serial| check(floor, offered(*serial)).is_ok()).collect()
    }

    #[test]
    fn what_is_accepted_with_every_floor_and_every_installed_release() {
        let all: Vec<u64> = (1..=9).collect();
        for serial in 0..=9 {
            for installed in (1..=9).map(Some).chain([None]) {
                let floor = FloorRecord { serial, ..FloorRecord::default() };
                let lowest = installed.unwrap_or(0).max(serial);
                let expected: Vec<u64> =
                    (1..=9).filter(|offered| *offered >= lowest || Some(*offered) == installed).collect();
                assert_eq!(accepted(&floor, installed, false), expected, "{floor:?} {installed:?}");
                assert_eq!(accepted(&floor, installed, true), all);
                for refused in 1..=9 {
                    let floor = FloorRecord { refused: vec![id(refused)], ..floor.clone() };
                    let left: Vec<u64> = expected.iter().copied().filter(|offered| *offered != refused).collect();
                    assert_eq!(accepted(&floor, installed, false), left);
                    assert_eq!(accepted(&floor, installed, true), all);
                }
            }
        }
    }

    #[test]
    fn below_the_floor_only_the_very_release_that_a_person_chose_is_accepted() {
        let floor = FloorRecord { serial: 7, allowed: Some(id(3)), ..FloorRecord::default() };
        assert_eq!(accepted(&floor, Some(3), false), [3, 7, 8, 9]);
        assert_eq!(accepted(&floor, None, false), [3, 7, 8, 9]);
        let published_again = ReleaseId::new(3, b"another manifest");
        let offered = Offered { release: published_again, version: "v", installed: Some(id(3)), by_person: false };
        assert!(matches!(check(&floor, offered), Err(ManifestError::BelowFloor { offered: 3, floor: 7, .. })));
    }

    #[test]
    fn a_record_with_a_serial_that_no_release_can_have_is_no_witness() {
        assert_eq!(accepted(&FloorRecord::default(), Some(u64::MAX), false), (1..=9).collect::<Vec<_>>());
    }
}
