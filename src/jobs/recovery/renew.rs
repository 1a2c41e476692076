//! The recovery renews itself: what the release carries for the recovery partition is brought into the slot that is not
//! in use, and proven to be there, before anything points at it.
//!
//! Nothing in here can fail a recovery. Whatever goes wrong leaves the slots in use as they are, byte for byte.

use std::io::{self, Read};

use crate::boot::slots::{
    FILES, IncompleteRecovery, ReadySlot, RecoveryFiles, Slot, SlotPlan, SlotState, Trial, generation, plan,
};
use crate::boot::systems::GENERATION;
use crate::chain::chain;
use crate::fetch::{FetchError, SinkError, Source};
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::partition::{Renewal, SlotStorage};
use crate::jobs::recovery::release;
use crate::jobs::state::StatePartition;
use crate::record::journal::Journal;
use crate::record::progress::bytes;
use crate::release::digest::Digest;
use crate::release::manifest::{Manifest, Object, object_path};

/// Reason for which the recovery stays as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    /// The release carries a recovery that would start the first of two systems whatever was installed.
    #[error("its boot script ({file}) cannot be had or does not know two systems")]
    OneSystem {
        /// Name of the boot script.
        file: &'static str,
    },
    /// The release carries some of the files of a recovery and lacks others.
    #[error(transparent)]
    Release(#[from] IncompleteRecovery),
    /// A file of the release cannot be downloaded.
    #[error("cannot download {file}")]
    Fetch {
        /// Name of the file in the slot.
        file: &'static str,
        /// Error of the transfer.
        source: FetchError,
    },
    /// The recovery partition cannot be read or written.
    #[error("cannot {doing} slot {slot} of the recovery partition")]
    SlotStorage {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The slot that was being written.
        slot: Slot,
        /// Error of the file system.
        source: io::Error,
    },
    /// The disk does not keep what is written.
    #[error("slot {slot} of the recovery partition reads back wrong")]
    ReadBack {
        /// The slot that was written.
        slot: Slot,
    },
}

/// Whether a step may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetworkUse {
    /// Only what is on the disk is used: a start of the intact system needs no network.
    Forbidden,
    /// Files may be fetched from the source of the release.
    Allowed,
}

/// Brings the recovery up to date with the release, as far as that is possible. Returns what GRUB's pointers have to
/// say of the slots afterwards, or `None` to keep them as they are. What goes wrong is a warning, and not an error.
pub(super) fn renew(job: &RecoveryJob<'_>, manifest: &Manifest, network_use: NetworkUse) -> Option<SlotState> {
    let (renewal, state) = (job.resources.renewal?, job.resources.state?);
    let slots = state.boot_env().slots().ok()?;
    let ready = try_renew(job, renewal, state, manifest, slots.active, network_use).unwrap_or_else(|error| {
        job.journal.warn(&format!("the recovery stays as it is: {}", chain(&error)));
        None
    })?;
    let (ReadySlot::Found(slot) | ReadySlot::Written(slot)) = ready;
    let pointers = slots.leading_to(ready, renewal.booted);
    match pointers.trial {
        Some(Trial::Due(_)) => job.journal.note(&format!("the next recovery tries slot {slot}")),
        Some(Trial::Tried(tried)) if tried == slot => job.journal.warn(&format!(
            "the recovery of {} in slot {slot} did not come up when it was tried: the one before it stays",
            manifest.version
        )),
        _ => {}
    }
    Some(pointers)
}

/// Makes sure that a slot holds the recovery of the release, read back; returns that slot, if there is one.
fn try_renew(
    job: &RecoveryJob<'_>,
    renewal: Renewal<'_>,
    state: &StatePartition,
    manifest: &Manifest,
    named: Option<Slot>,
    network_use: NetworkUse,
) -> Result<Option<ReadySlot>, RenewError> {
    let Some(carried) = RecoveryFiles::of(manifest)? else { return Ok(None) };
    match plan(named, renewal.booted, |slot| holds(renewal.medium, slot, &carried)) {
        SlotPlan::PointTo(slot) => Ok(Some(ReadySlot::Found(slot))),
        SlotPlan::Write(slot) if network_use == NetworkUse::Allowed => {
            let size_bytes = carried.files().map(|(_, object)| object.size_bytes).fold(0, u64::saturating_add);
            job.journal.note(&format!("the release has another recovery: {} to slot {slot}", bytes(size_bytes)));
            state.forget_slot(slot.name());
            write_files(renewal, slot, &carried, job)?;
            // The file system was unmounted and mounted again meanwhile, so this reads what is on the disk.
            if !holds(renewal.medium, slot, &carried) {
                return Err(RenewError::ReadBack { slot });
            }
            Ok(Some(ReadySlot::Written(slot)))
        }
        SlotPlan::Write(_) | SlotPlan::ChangeNothing => Ok(None),
    }
}

/// Refuses a recovery whose boot script does not know two systems, before a slot is emptied for it: it would start the
/// first system, whatever the second one holds.
fn check_script(source: &dyn Source, carried: &RecoveryFiles) -> Result<(), RenewError> {
    let [.., file] = FILES;
    let script = carried.files().find(|(name, _)| *name == file);
    let text = script.and_then(|(_, object)| release::fetch_object(source, "boot script", object).ok());
    match text.map(|text| generation(&String::from_utf8_lossy(&text))) {
        Some(GENERATION..) => Ok(()),
        _ => Err(RenewError::OneSystem { file }),
    }
}

/// Whether a slot holds exactly these files. A slot that cannot be read does not.
pub(super) fn holds(medium: &dyn SlotStorage, slot: Slot, carried: &RecoveryFiles) -> bool {
    carried.files().all(|(file, object)| {
        // One byte more than there should be is enough to know.
        let found = digest_of(medium, slot, file, object.size_bytes.saturating_add(1));
        found.is_ok_and(|found| found == object.blake3)
    })
}

/// Whether a slot holds exactly these files, so that a renewal would fetch none of them.
pub fn is_in_a_slot(medium: &dyn SlotStorage, carried: &RecoveryFiles) -> bool {
    [Slot::A, Slot::B].into_iter().any(|slot| holds(medium, slot, carried))
}

/// Digest of at most so many bytes of a file.
pub(super) fn digest_of(medium: &dyn SlotStorage, slot: Slot, file: &str, limit_bytes: u64) -> io::Result<Digest> {
    Digest::of_reader(medium.open(slot, file)?.take(limit_bytes))
}

pub(super) fn write_files(
    renewal: Renewal<'_>,
    slot: Slot,
    carried: &RecoveryFiles,
    job: &RecoveryJob<'_>,
) -> Result<(), RenewError> {
    let Renewal { medium, source, .. } = renewal;
    if job.policy.two_systems {
        check_script(source, carried)?;
    }
    let failed = |doing| move |source| RenewError::SlotStorage { doing, slot, source };
    let written = medium.clear(slot).map_err(failed("empty")).and_then(|()| {
        carried.files().try_for_each(|(file, object)| {
            fetch(medium, source, slot, file, object, job.journal)?;
            medium.sync(slot, file).map_err(failed("write"))
        })
    });
    // The partition is made read-only after an error too.
    let settled = medium.settle().map_err(failed("close"));
    written.and(settled)
}

/// Streams one object into its file. An object that turns out wrong at its end is sent again from its beginning.
fn fetch(
    medium: &dyn SlotStorage,
    source: &dyn Source,
    slot: Slot,
    file: &'static str,
    object: &Object,
    journal: &Journal,
) -> Result<(), RenewError> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    let mut refused = None;
    let mut sink = |content: &[u8]| {
        if let Err(error) = medium.write(slot, file, at, content) {
            let copy = io::Error::new(error.kind(), error.to_string());
            refused = Some(error);
            return Err(SinkError::Local(Box::new(copy)));
        }
        hasher.update(content);
        at += content.len() as u64;
        journal.progressed();
        if at < object.size_bytes {
            return Ok(());
        }
        let found = Digest(*hasher.finalize().as_bytes());
        if found == object.blake3 {
            return Ok(());
        }
        hasher.reset();
        at = 0;
        Err(SinkError::Wrong { from: 0, reason: format!("{found}, expected {}", object.blake3) })
    };
    let fetched = source.get_range(&object_path(&object.blake3), 0..object.size_bytes, &mut sink);
    match (fetched, refused) {
        (_, Some(source)) => Err(RenewError::SlotStorage { doing: "write", slot, source }),
        (Err(source), None) => Err(RenewError::Fetch { file, source }),
        (Ok(()), None) => Ok(()),
    }
}
