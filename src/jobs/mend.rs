//! Mends the boot chain: what firmware and GRUB read before Linux runs, and what no comparison of the system finds.
//!
//! | part | whole copy | mended by |
//! |---|---|---|
//! | GPT, protective MBR | the other copy of the table | recovery before it mounts anything, `reflash mend`, `reflash good` |
//! | disk map of GRUB's first script | the table | the same, but not before anything is mounted |
//! | MBR | what the running kernel has of it | `reflash mend`, `reflash good` |
//! | boot code for BIOS | the release, or the robot's own copy | recovery at its end, `reflash mend`, `reflash good` |
//! | file system of the recovery partition | its other superblocks, e2fsck | `reflash mend`, `reflash good`, where it does not mount or has lost names |
//! | the same, beyond repair | the release | `reflash mend`, where there is a network and the state partition has the copy |
//! | directories and slots of the recovery partition | `lost+found`, the other slot | `reflash mend`, `reflash good` |
//! | templates on it | the release | `reflash mend`, where there is a network |
//! | configuration, keys, name and local settings on it | the copy on the state partition | `reflash mend`, `reflash good` |
//! | loader on it (`grub/grub.cfg`) | this program | `reflash mend`, `reflash good` |
//! | spare slot of the recovery | the other slot, or the release | recovery at its end |
//! | EFI system partition | the release, or the robot's own copy | recovery at its end, `reflash mend`, `reflash good` |
//!
//! Each write is flushed and read back before the next one, and goes where nothing lies that the machine still starts
//! from. What cannot be mended is a warning: nothing in here ends a recovery.

pub mod boot_code;
mod error;
pub mod esp;
mod loader;
mod lost_found;
mod made_anew;
pub mod map;
pub mod pieces;
pub mod recovery_partition;
mod slot_files;
pub mod table;

use crate::chain::chain;
use crate::disk::list::PartitionTable;
use crate::disk::raw::RawDisk;
use crate::record::event::Event;
use crate::record::journal::Journal;
pub use error::MendError;
use esp::EspMended;
use pieces::BootPieces;

/// Result of a look at the boot chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendOutcome {
    /// Parts that were not compared with anything: the robot has no copy of their boot code.
    pub unchecked: Vec<&'static str>,
    /// Whether no part stays damaged of those that were looked at.
    pub mended_all: bool,
}

impl MendOutcome {
    /// Whether every part was looked at and is whole now.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.mended_all && self.unchecked.is_empty()
    }
}

/// Mends what of the boot chain is damaged, and brings `pieces` onto the disk where other boot code is there. Each part
/// that was mended is an event, each that cannot be mended a warning.
pub fn mend(
    disk: &dyn RawDisk,
    table: Option<&PartitionTable>,
    pieces: Option<&BootPieces>,
    journal: &Journal,
) -> MendOutcome {
    let mut mended_all = true;
    let mut failed = |error: MendError| {
        mended_all = false;
        journal.warn(&chain(&error));
    };
    match table::mend(disk) {
        Ok(parts) => parts.iter().for_each(|part| journal.report(Event::Mended(part.name()))),
        Err(error) => failed(error),
    }
    if let Some(table) = table {
        match map::bring(disk, table) {
            Ok(true) => journal.report(Event::Mended("map of the disk by which GRUB finds the recovery")),
            Ok(false) => {}
            Err(error) => failed(error),
        }
    }
    if let Some((table, pieces)) = table.zip(pieces) {
        match boot_code::bring_bios(disk, table, pieces) {
            Ok(true) => journal.report(Event::Mended("boot code for BIOS: sector 0 leads to another core.img")),
            Ok(false) => {}
            Err(error) => failed(error),
        }
        match esp::bring(disk, table, pieces) {
            Ok(EspMended::File) => journal.report(Event::Mended("EFI/BOOT/BOOTX64.EFI of the EFI system partition")),
            Ok(EspMended::Whole) => journal.report(Event::Mended("EFI system partition, made anew from its template")),
            Ok(EspMended::Nothing) => {}
            Err(error) => failed(error),
        }
    }
    MendOutcome {
        unchecked: table.map(|table| boot_code::unchecked(disk, table, pieces)).unwrap_or_default(),
        mended_all,
    }
}
