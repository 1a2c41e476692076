//! The other system of a robot with two, as a recovery sees it.

use std::path::Path;

use crate::boot::systems::{GENERATION, SystemNumber, Systems};
use crate::boot::{boot_scripts, slots};
use crate::flash::target::BlockTarget;
use crate::flash::undo::{UndoObstacle, UndoTarget};
use crate::jobs::floor::Floor;
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::release::digest::Digest;
use crate::release::manifest::{SYSTEM_IMAGE, TrustedKeys};

/// The other system, as far as a recovery needs it.
#[derive(Clone, Copy)]
pub struct OtherSystem<'a> {
    /// Partition of it.
    pub target: &'a dyn BlockTarget,
    /// State partition, with the record of it.
    pub state: &'a StatePartition,
    /// Number of it.
    pub number: SystemNumber,
    /// Whether every boot script that GRUB may read knows two systems.
    pub is_known_to_grub: bool,
    /// Whether GRUB goes back to it now when the active one does not come up.
    pub is_gone_back_to: bool,
    /// Whether it holds a release that was good here and is not refused.
    pub is_good: bool,
}

impl<'a> OtherSystem<'a> {
    /// Looks at the other system. `recovery` is where the recovery partition is mounted, if it is.
    #[must_use]
    pub fn look(
        target: &'a dyn BlockTarget,
        state: &'a StatePartition,
        systems: Systems,
        recovery: Option<&Path>,
        keys: &TrustedKeys,
        floor: &Floor,
    ) -> Self {
        Self {
            target,
            state,
            number: systems.active.other(),
            is_known_to_grub: recovery.is_some_and(scripts_know_two),
            is_gone_back_to: systems.on_trial,
            is_good: good_record(state, keys, floor).is_some(),
        }
    }
}

/// An older boot script starts the first system, whatever the environment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a boot script of the recovery partition does not know two systems, or cannot be read: a recovery to a release of \
     today renews it (reflash request)"
)]
pub struct OlderBootScript;

/// Whether every boot script on the recovery partition knows two systems: an older one always starts the first.
#[must_use]
pub fn scripts_know_two(recovery: &Path) -> bool {
    let generations: Vec<u32> = boot_scripts::read(recovery).iter().map(|(_, text)| slots::generation(text)).collect();
    slots::all_have(GENERATION, &generations)
}

/// Returns the record of the other system if its release was good and is not refused.
fn good_record(state: &StatePartition, keys: &TrustedKeys, floor: &Floor) -> Option<InstalledRecord> {
    let record = state.record(keys)?;
    (state.is_good_system(&record) && !floor.refuses(&record.id())).then_some(record)
}

/// Returns what a switch to the other system would lead back to. Its bytes are compared only when it is made.
///
/// # Errors
/// [`UndoObstacle::Nothing`] where it holds nothing that was good.
pub fn possible(state: &StatePartition, keys: &TrustedKeys, floor: &Floor) -> Result<UndoTarget, UndoObstacle> {
    let record = good_record(state, keys, floor).ok_or(UndoObstacle::Nothing)?;
    let manifest = record.manifest();
    Ok(UndoTarget {
        version: manifest.version.clone(),
        serial: manifest.serial,
        manifest_digest: Digest::of(record.release().signed.bytes()),
        image_id: manifest.image(SYSTEM_IMAGE)?.content_id(),
        kept_bytes: 0,
        missing_chunks: 0,
    })
}
