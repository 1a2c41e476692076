//! The spare slot: the one of the two that is neither in use nor on trial. It is there for the day on which a block of
//! the other is lost, so it is looked at, and written anew where it is damaged or was never filled.
//!
//! What it held before is known by a list of digests, which is made when a slot is first seen complete. A slot that
//! holds another recovery than the release, as it was noted, stays as it is: it is the older one that worked.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::boot::slots::{FILES, RecoveryFiles, Slot, SlotState};
use crate::chain::chain;
use crate::jobs::recovery::job::RecoveryJob;
use crate::jobs::recovery::partition::{Renewal, SlotStorage};
use crate::jobs::recovery::renew::{NetworkUse, RenewError, digest_of, holds, write_files};
use crate::jobs::state::StatePartition;
use crate::record::event::Event;
use crate::release::digest::Digest;
use crate::release::manifest::Manifest;

/// Size of the largest file of a slot that is looked at, bytes.
const MAX_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// Digests of the files of each slot, as they were when they were first seen.
type SlotDigests = BTreeMap<String, Vec<Digest>>;

/// Mends the spare slot, once it is known which one that is. What goes wrong is a warning.
pub(super) fn mend(job: &RecoveryJob<'_>, manifest: &Manifest, pointers: SlotState, network_use: NetworkUse) {
    let (Some(renewal), Some(state)) = (job.resources.renewal, job.resources.state) else { return };
    let Ok(Some(carried)) = RecoveryFiles::of(manifest) else { return };
    let Some(spare) = spare_of(pointers, renewal.booted) else { return };
    let known = state.slot_digests();
    let found = digests(renewal.medium, spare);
    let is_release = holds(renewal.medium, spare, &carried);
    let is_whole = match (&found, known.get(spare.name())) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(found), Some(known)) => is_release || found == known,
    };
    if !is_whole {
        state.forget_slot(spare.name());
        match write(renewal, spare, &carried, network_use, job) {
            Ok(true) => job.journal.report(Event::Mended(match spare {
                Slot::A => "slot a of the recovery partition",
                Slot::B => "slot b of the recovery partition",
            })),
            Ok(false) => return,
            Err(error) => {
                job.journal.warn(&format!("slot {spare} of the recovery is damaged and stays so: {}", chain(&error)));
                return;
            }
        }
    }
    note(state, renewal.medium, spare);
    // It will be the spare one some day.
    if holds(renewal.medium, spare.other(), &carried) {
        note(state, renewal.medium, spare.other());
    }
}

/// The slot that nothing needs now; `None` while one is on trial or it is not clear.
fn spare_of(pointers: SlotState, booted: Option<Slot>) -> Option<Slot> {
    let active = pointers.active.filter(|_| pointers.trial.is_none())?;
    Some(active.other()).filter(|spare| booted != Some(*spare))
}

/// Writes the recovery of the release to the spare slot: from the slot in use, if that holds it, or else from the
/// network. Returns whether it was written.
fn write(
    renewal: Renewal<'_>,
    spare: Slot,
    carried: &RecoveryFiles,
    network_use: NetworkUse,
    job: &RecoveryJob<'_>,
) -> Result<bool, RenewError> {
    let failed = |doing| move |source| RenewError::SlotStorage { doing, slot: spare, source };
    let other = spare.other();
    if !holds(renewal.medium, other, carried) {
        if network_use == NetworkUse::Forbidden {
            return Ok(false);
        }
        job.journal.note(&format!("slot {spare} of the recovery is damaged: it is downloaded anew"));
        write_files(renewal, spare, carried, job)?;
    } else {
        job.journal.note(&format!("slot {spare} of the recovery is damaged: it is copied from slot {other}"));
        let copied = renewal.medium.clear(spare).map_err(failed("empty")).and_then(|()| {
            FILES.iter().try_for_each(|file| {
                copy(renewal.medium, other, spare, file, job).map_err(failed("write"))?;
                renewal.medium.sync(spare, file).map_err(failed("write"))
            })
        });
        // The partition is made read-only after an error too.
        copied.and(renewal.medium.settle().map_err(failed("close")))?;
    }
    if holds(renewal.medium, spare, carried) { Ok(true) } else { Err(RenewError::ReadBack { slot: spare }) }
}

fn copy(medium: &dyn SlotStorage, from: Slot, to: Slot, file: &str, job: &RecoveryJob<'_>) -> io::Result<()> {
    let mut reader = medium.open(from, file)?.take(MAX_FILE_BYTES);
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        medium.write(to, file, offset, &buffer[..length])?;
        offset += length as u64;
        job.journal.progressed();
    }
}

/// Digests of the files of a slot; `None` when one of them is missing or cannot be read.
fn digests(medium: &dyn SlotStorage, slot: Slot) -> Option<Vec<Digest>> {
    FILES.iter().map(|file| digest_of(medium, slot, file, MAX_FILE_BYTES).ok()).collect()
}

/// Notes what a slot holds, if that is news.
fn note(state: &StatePartition, medium: &dyn SlotStorage, slot: Slot) {
    let mut known: SlotDigests = state.slot_digests();
    let Some(found) = digests(medium, slot).filter(|found| known.get(slot.name()) != Some(found)) else { return };
    known.insert(slot.name().to_owned(), found);
    // Without the list, damage of an older recovery is not noticed: nothing else depends on it.
    let _ = state.keep_slot_digests(&known);
}

#[cfg(test)]
mod tests {
    use super::spare_of;
    use crate::boot::slots::{Slot, SlotState, Trial};

    #[test]
    fn a_slot_in_use_or_on_trial_is_never_the_spare_one() {
        let (a, b) = (Slot::A, Slot::B);
        let state = |active, trial| SlotState { active, trial };
        assert_eq!(spare_of(state(Some(a), None), Some(a)), Some(b));
        assert_eq!(spare_of(state(Some(b), None), Some(b)), Some(a));
        assert_eq!(spare_of(state(Some(a), None), None), Some(b));
        assert_eq!(spare_of(state(Some(a), None), Some(b)), None);
        assert_eq!(spare_of(state(None, None), Some(a)), None);
        for trial in [Trial::Due(b), Trial::Tried(b), Trial::Due(a), Trial::Tried(a)] {
            assert_eq!(spare_of(state(Some(a), Some(trial)), Some(a)), None);
        }
    }
}
