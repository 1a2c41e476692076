//! The floor: the highest serial that was ever good on this robot, below which nothing is installed automatically, and
//! the releases that are refused on it.
//!
//! It is kept in places that are not lost together: on the state partition, in two blocks of the recovery partition,
//! and in a variable of UEFI firmware where there is one. Each of the first two has two copies that are overwritten in
//! turns, so that a write that is cut spoils one of them. The highest serial of all copies counts, and what is missing
//! or damaged is written again from the others. [`FloorRecord`] has the format.
//!
//! The release that is installed is one more witness, as it was before there was a floor: see
//! [`InstalledRecord`](crate::jobs::state::InstalledRecord).

mod place;
mod record;
mod seen;
mod verdict;

use std::path::PathBuf;
use std::sync::Mutex;

use crate::boot::efivars::EfiVars;
use crate::boot::grubenv::{GrubEnv, names};
use crate::sys::{random, thread, turn};
use place::{DiskPlace, FirmwarePlace};
pub use place::{FILE, FloorError, prepare_recovery};
pub use record::{FloorRecord, GoodRelease, Lowering, LoweringKind, ReleaseId};
pub use seen::{SeenCounter, SeenRollout};
pub use verdict::{Offered, check};

/// Identity of a disk for which there were no random bytes.
const UNKNOWN_IDENTITY: [u8; 16] = [1; 16];

/// Places of a machine in which its floor is kept.
#[derive(Debug, Clone, Default)]
pub struct FloorPlaces {
    /// Directory that the state partition is mounted on.
    pub state: Option<PathBuf>,
    /// Directory that the recovery partition is mounted on, read-only, and its device.
    pub recovery: Option<(PathBuf, PathBuf)>,
    /// Variables of the firmware, on a machine that was started by UEFI.
    pub firmware: Option<EfiVars>,
}

/// Result of a change of the floor.
#[derive(Debug)]
#[must_use]
pub struct FloorChange {
    /// Whether the floor is another one than before.
    pub changed: bool,
    /// Places in which it could not be kept. The others have it.
    pub failed: Vec<FloorError>,
}

/// The floor of this machine.
#[derive(Debug)]
pub struct Floor {
    /// Root of the state partition, where commands wait for their turn.
    root: Option<PathBuf>,
    disk: Vec<DiskPlace>,
    firmware: Option<FirmwarePlace>,
    record: Mutex<FloorRecord>,
}

/// When the variable of the firmware is written: its memory wears out, and some firmware forgets what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirmwareUse {
    /// Not for a list that changes.
    Never,
    /// At each good boot, if that raised the floor.
    WhenRaised,
    /// In a recovery, of which there are few.
    WhenWrong,
}

impl Floor {
    /// Reads the floor from all places of a machine. Nothing is written. What cannot be read counts as missing, and is
    /// listed when the floor is [mended](Self::mend) or changed.
    #[must_use]
    pub fn open(places: FloorPlaces) -> Self {
        let root = places.state.clone();
        let state = places.state.map(|root| DiskPlace::in_state(&root));
        let recovery = places.recovery.map(|(root, device)| DiskPlace::in_recovery(&root, &device));
        let disk: Vec<DiskPlace> = state.into_iter().chain(recovery).collect();
        let firmware = places.firmware.map(FirmwarePlace::new);
        let mut copies: Vec<FloorRecord> = disk.iter().flat_map(DiskPlace::copies).collect();
        if let Some(variable) = firmware.as_ref().and_then(FirmwarePlace::read) {
            // A variable outlives the disk that it was written for: that of another disk says nothing about this one.
            let of_this_disk = copies.is_empty() || copies.iter().any(|copy| copy.identity == variable.identity);
            copies.extend(Some(variable).filter(|_| of_this_disk));
        }
        let record = Mutex::new(FloorRecord::together(&copies).unwrap_or_default());
        Self { root, disk, firmware, record }
    }

    /// A floor that is kept nowhere, for a bench.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::open(FloorPlaces::default())
    }

    /// Returns what is known now.
    #[must_use]
    pub fn record(&self) -> FloorRecord {
        thread::lock(&self.record).clone()
    }

    /// Takes what another command has kept since this was read, without a write: the places may not be mounted now.
    pub fn learn(&self, kept: &FloorRecord) {
        let mut record = thread::lock(&self.record);
        if let Some(together) = FloorRecord::together(&[record.clone(), kept.clone()]) {
            *record = together;
        }
    }

    /// Raises the floor to the serial of a release that called itself good, and writes missing or damaged copies again.
    pub fn raise(&self, serial: u64) -> FloorChange {
        self.change(|record| record.raise(serial), FirmwareUse::WhenRaised)
    }

    /// Notes the release that called itself good, or that an undo goes back to, and raises the floor to its serial.
    pub fn note_good(&self, good: GoodRelease) -> FloorChange {
        self.change(|record| record.note_good(good) | record.raise(good.release.serial), FirmwareUse::WhenRaised)
    }

    /// Notes the roll-out and halt files that were seen: from now on no older ones are taken.
    pub fn note_seen(&self, seen: SeenRollout) -> FloorChange {
        self.change(|record| record.note_seen(seen), FirmwareUse::Never)
    }

    /// Refuses a release: it is not chosen again automatically.
    pub fn refuse(&self, release: ReleaseId) -> FloorChange {
        self.change(|record| record.refuse(release), FirmwareUse::Never)
    }

    /// Lifts the refusal of all releases with this serial, as a person asks for it.
    pub fn lift(&self, serial: u64) -> FloorChange {
        self.change(|record| record.lift(|known| known.serial == serial), FirmwareUse::Never)
    }

    /// Whether the release is refused.
    #[must_use]
    pub fn refuses(&self, release: &ReleaseId) -> bool {
        thread::lock(&self.record).refuses(release)
    }

    /// Notes that a person installs this release at the machine. Its refusal is lifted. Where it is below the floor,
    /// the floor stays as it is, and this release alone is allowed below it.
    pub fn allow(&self, release: ReleaseId) -> FloorChange {
        self.change(|record| record.allow(release), FirmwareUse::Never)
    }

    /// Writes again what is missing or damaged.
    pub fn mend(&self) -> FloorChange {
        self.change(|_| false, FirmwareUse::WhenWrong)
    }

    fn change(&self, change: impl FnOnce(&mut FloorRecord) -> bool, firmware_use: FirmwareUse) -> FloorChange {
        let mut record = thread::lock(&self.record);
        // What another command has kept since this was read stays.
        let _turn = self.root.as_deref().and_then(turn::in_directory);
        let copies: Vec<FloorRecord> = self.disk.iter().flat_map(DiskPlace::copies).collect();
        if let Some(newer) = FloorRecord::together(&copies).filter(|kept| kept.sequence > record.sequence) {
            *record = newer;
        }
        let changed = change(&mut record);
        if changed {
            record.sequence += 1;
        }
        let mut failed = Vec::new();
        // A robot that never had a good release and refuses none has nothing to keep.
        if record.sequence == 0 {
            return FloorChange { changed, failed };
        }
        if record.identity == [0; 16] {
            record.identity = random::bytes().unwrap_or(UNKNOWN_IDENTITY);
        }
        failed.extend(self.disk.iter().filter_map(|place| place.keep(&record).err()));
        let wanted = match firmware_use {
            FirmwareUse::Never => false,
            FirmwareUse::WhenRaised => changed,
            FirmwareUse::WhenWrong => true,
        };
        failed.extend(self.firmware.as_ref().filter(|_| wanted).and_then(|firmware| firmware.keep(&record).err()));
        FloorChange { changed, failed }
    }
}

/// Content of a new file for the floor, both of its copies, in which nothing is recorded yet.
#[must_use]
pub fn new_file() -> Vec<u8> {
    place::file_of(&FloorRecord::default())
}

/// Content of the file of a disk that a person provisions with this release: the floor is set anew, and what the
/// machine knew of one `before` is recorded.
#[must_use]
pub fn file_of_new_disk(release: ReleaseId, before: Option<&Floor>) -> Vec<u8> {
    let identity = random::bytes().unwrap_or(UNKNOWN_IDENTITY);
    let floor_before = before.map_or(0, |floor| floor.record().serial);
    place::file_of(&FloorRecord::of_new_disk(identity, release, floor_before))
}

/// Whether the installed release was good, by the boot environment: what images of before this floor leave there.
#[must_use]
pub fn was_good(env: &GrubEnv, installed: u64) -> bool {
    let is_one = |name| env.get(name) == Some("1");
    let named = env.get("reflash_good").and_then(|serial| serial.parse().ok());
    // Between the record of another release and the write that ends its recovery, the variables are still about the
    // release before.
    !is_one(names::RECOVERING) && (is_one(names::BOOT_OK) || is_one("reflash_was_good") || named == Some(installed))
}
