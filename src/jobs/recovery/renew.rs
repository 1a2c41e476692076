//! The recovery renews itself: what the release carries for the recovery partition is brought into the slot that nobody
//! uses, and proven to be there, before anything points at it.
//!
//! Nothing in here can fail a recovery. Whatever goes wrong leaves the slots in use as they are, byte for byte.

use std::io::{self, Read};

use crate::boot::slots::{IncompleteRecovery, ReadySlot, RecoveryFiles, Slot, SlotPlan, plan};
use crate::chain::chain;
use crate::fetch::{FetchError, SinkError, Source};
use crate::record::journal::Journal;
use crate::record::progress::bytes;
use crate::release::digest::Digest;
use crate::release::manifest::{Manifest, Object, object_path};

/// Read at once.
const READ_BYTES: usize = 256 * 1024;

/// The recovery partition, as far as it is renewed.
pub trait SlotStorage: Sync {
    /// Opens a file of a slot, as the medium holds it: what was cached when it was written must not be taken for it.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self, slot: Slot, file: &str) -> io::Result<Box<dyn Read>>;

    /// Makes the partition writable, and removes the files of a slot, the last of them first.
    ///
    /// # Errors
    /// The file system's; some files may be gone.
    fn clear(&self, slot: Slot) -> io::Result<()>;

    /// Writes at an offset of a file, which is made if it is missing; at offset 0 it is emptied first.
    ///
    /// # Errors
    /// The file system's.
    fn write(&self, slot: Slot, file: &str, offset: u64, content: &[u8]) -> io::Result<()>;

    /// Returns when a file is on the medium, with its name.
    ///
    /// # Errors
    /// The file system's.
    fn sync(&self, slot: Slot, file: &str) -> io::Result<()>;

    /// Returns when GRUB, which replays no journal, sees what was written; from then on nothing is read from a cache and
    /// nothing can be written.
    ///
    /// # Errors
    /// Nobody may be pointed at what was written.
    fn settle(&self) -> io::Result<()>;
}

/// What a renewal works with.
#[derive(Clone, Copy)]
pub struct Renewal<'a> {
    /// The recovery partition.
    pub medium: &'a dyn SlotStorage,
    /// Where files come from. It must give up by itself: the system that was just verified waits for it.
    pub source: &'a dyn Source,
    /// The slot that GRUB says it started this agent from.
    pub booted: Option<Slot>,
}

/// Why the recovery stays the one it was.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The release is at fault.
    #[error(transparent)]
    Release(#[from] IncompleteRecovery),
    /// A file of the release.
    #[error("cannot download {file}")]
    Fetch {
        /// Its name in the slot.
        file: &'static str,
        /// Why.
        source: FetchError,
    },
    /// The recovery partition.
    #[error("cannot {doing} slot {slot} of the recovery partition")]
    SlotStorage {
        /// What was being done.
        doing: &'static str,
        /// Where.
        slot: Slot,
        /// What the file system says.
        source: io::Error,
    },
    /// The disk does not keep what is written.
    #[error("slot {slot} of the recovery partition reads back wrong")]
    ReadBack {
        /// Where.
        slot: Slot,
    },
}

/// Whether files may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkUse {
    /// Only what is on the disk: a start of the intact system needs no network.
    Forbidden,
    /// The release's source too.
    Allowed,
}

/// Makes sure that a slot holds the recovery of the release, as far as that can be had; which one does, read back, or
/// `None` to leave GRUB's pointers as they are. What went wrong is told, and no error.
pub fn renew(
    renewal: Renewal<'_>,
    manifest: &Manifest,
    named: Option<Slot>,
    network_use: NetworkUse,
    journal: &Journal,
) -> Option<ReadySlot> {
    try_renew(renewal, manifest, named, network_use, journal).unwrap_or_else(|error| {
        journal.warn(&format!("the recovery stays as it is: {}", chain(&error)));
        None
    })
}

fn try_renew(
    renewal: Renewal<'_>,
    manifest: &Manifest,
    named: Option<Slot>,
    network_use: NetworkUse,
    journal: &Journal,
) -> Result<Option<ReadySlot>, RenewError> {
    let Some(carried) = RecoveryFiles::of(manifest)? else { return Ok(None) };
    match plan(named, renewal.booted, |slot| holds(renewal.medium, slot, &carried)) {
        SlotPlan::PointTo(slot) => Ok(Some(ReadySlot::Found(slot))),
        SlotPlan::Write(slot) if network_use == NetworkUse::Allowed => {
            let size_bytes = carried.files().map(|(_, object)| object.size_bytes).fold(0, u64::saturating_add);
            journal.note(&format!("the release has another recovery: {} to slot {slot}", bytes(size_bytes)));
            write(renewal, slot, &carried, journal)?;
            // The file system was taken apart and put together again meanwhile: this is what is on the disk.
            if !holds(renewal.medium, slot, &carried) {
                return Err(RenewError::ReadBack { slot });
            }
            Ok(Some(ReadySlot::Written(slot)))
        }
        SlotPlan::Write(_) | SlotPlan::ChangeNothing => Ok(None),
    }
}

/// Whether a slot holds exactly these files. One that cannot be read does not.
fn holds(medium: &dyn SlotStorage, slot: Slot, carried: &RecoveryFiles) -> bool {
    carried.files().all(|(file, object)| {
        let digest = || {
            // One byte more than there should be is enough to know.
            let mut reader = medium.open(slot, file)?.take(object.size_bytes.saturating_add(1));
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match reader.read(&mut buffer)? {
                    0 => return Ok::<_, io::Error>(Digest(*hasher.finalize().as_bytes())),
                    len => hasher.update(&buffer[..len]),
                };
            }
        };
        digest().is_ok_and(|found| found == object.blake3)
    })
}

fn write(renewal: Renewal<'_>, slot: Slot, carried: &RecoveryFiles, journal: &Journal) -> Result<(), RenewError> {
    let Renewal { medium, source, .. } = renewal;
    let failed = |doing| move |source| RenewError::SlotStorage { doing, slot, source };
    let written = medium.clear(slot).map_err(failed("empty")).and_then(|()| {
        carried.files().try_for_each(|(file, object)| {
            fetch(medium, source, slot, file, object, journal)?;
            medium.sync(slot, file).map_err(failed("write"))
        })
    });
    // Also after an error: the partition is not left open for writing.
    let settled = medium.settle().map_err(failed("close"));
    written.and(settled)
}

/// Streams one object into its file. What turns out wrong at its end is sent again from its beginning.
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
            let told = io::Error::new(error.kind(), error.to_string());
            refused = Some(error);
            return Err(SinkError::Local(Box::new(told)));
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
