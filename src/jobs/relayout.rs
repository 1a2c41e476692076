//! Gives the disk of a robot a second system, or takes it away, without a technician: data, state and recovery stay
//! where they are, and so does the beginning of the system.
//!
//! GRUB starts the same system before, in the middle of it and afterwards: a cut costs the request, and nothing else.
//! What is kept for an undo behind the image gives way where the system partition is divided.

use std::io;

use crate::boot::env::BootEnvError;
use crate::boot::grubenv::names;
use crate::boot::systems::{SystemCount, SystemNumber, Systems};
use crate::disk::raw::RawDisk;
use crate::disk::second_system::{PlannedSystems, SystemsRefusal};
use crate::flash::target::BlockTarget;
use crate::flash::undo;
use crate::jobs::mend::{MendError, table};
use crate::jobs::recovery::other::OlderBootScript;
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::release::manifest::SYSTEM_IMAGE;

/// The reason for which a robot keeps the systems that it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayoutRefusal {
    /// The installed release is not known to work, and what is kept for an undo would be given up.
    #[error("the installed release has not called itself good, and what an undo leads back to would be given up")]
    NotGood,
    /// The size of the image is not known.
    #[error("no release is recorded as installed, so that it is not known how much room it needs")]
    NoRecord,
    /// An older boot script starts the first system whatever the environment says.
    #[error(transparent)]
    OlderScript(#[from] OlderBootScript),
    /// The system that would go is the one that GRUB starts.
    #[error("GRUB starts the second system: the next update goes to the first one, or `reflash request undo`")]
    SecondIsActive,
    /// The table does not allow it.
    #[error(transparent)]
    Table(#[from] SystemsRefusal),
}

/// A change of the table that was begun and failed. The system that GRUB starts is the same.
#[derive(Debug, thiserror::Error)]
pub enum RelayoutError {
    /// The boot environment cannot be written.
    #[error(transparent)]
    Environment(#[from] BootEnvError),
    /// The record of the second system cannot be removed.
    #[error("the record of the second system cannot be removed")]
    Record(#[source] io::Error),
    /// The release that is kept for an undo cannot be removed.
    #[error("what is kept for an undo cannot be removed")]
    Undo(#[source] io::Error),
    /// The disk does not take the table.
    #[error(transparent)]
    Table(#[from] MendError),
}

/// The facts of the robot that a change depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RobotFacts {
    /// Size of the installed image, bytes, if that is known.
    pub image_bytes: Option<u64>,
    /// Whether the installed release called itself good.
    pub is_good: bool,
    /// Whether every boot script that GRUB may read knows two systems.
    pub scripts_know_two: bool,
    /// State of the two systems, by the environment.
    pub systems: Systems,
}

impl RobotFacts {
    /// The size of the image that a record names, bytes.
    #[must_use]
    pub fn image_bytes(record: Option<&InstalledRecord>) -> Option<u64> {
        Some(record?.manifest().image(SYSTEM_IMAGE).ok()?.size_bytes)
    }
}

/// Plans the change. Nothing is written.
///
/// # Errors
/// [`RelayoutRefusal`].
pub fn plan(disk: &dyn RawDisk, wanted: SystemCount, robot: RobotFacts) -> Result<PlannedSystems, RelayoutRefusal> {
    if !robot.is_good || robot.systems.on_trial {
        return Err(RelayoutRefusal::NotGood);
    }
    match wanted {
        SystemCount::One if robot.systems.active == SystemNumber::Second => Err(RelayoutRefusal::SecondIsActive),
        SystemCount::One => Ok(table::without_second(disk)?),
        SystemCount::Two if !robot.scripts_know_two => Err(OlderBootScript.into()),
        SystemCount::Two => {
            let image_bytes = robot.image_bytes.ok_or(RelayoutRefusal::NoRecord)?;
            Ok(table::with_second(disk, image_bytes)?)
        }
    }
}

/// Carries the change out. `system` is the first system, and `image_bytes` what its image has of it.
///
/// # Errors
/// [`RelayoutError`]: at least one copy of the table is whole, and the system that GRUB starts is in both.
pub fn carry_out(
    disk: &dyn RawDisk,
    system: &dyn BlockTarget,
    image_bytes: u64,
    planned: &PlannedSystems,
    state: &StatePartition,
) -> Result<(), RelayoutError> {
    let env = state.boot_env();
    // What the menu offers has to be there. A robot with one system has none of the variables of two.
    env.update(&[(names::UNDO, None), (names::SYSTEM, None), (names::BEFORE, None)])?;
    // Nothing is known of the second system: it is new, or gone.
    state.of_system(SystemNumber::Second).forget_installed().map_err(RelayoutError::Record)?;
    if planned.first_shrinks {
        undo::forget(system, image_bytes).map_err(RelayoutError::Undo)?;
    }
    Ok(table::replace(disk, &planned.writes)?)
}
