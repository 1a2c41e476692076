//! Mends the boot chain: what firmware and GRUB read before Linux runs, and what no comparison of the system finds.
//!
//! | part | whole copy | mended by |
//! |---|---|---|
//! | GPT, protective MBR | the other copy of the table | recovery before it mounts anything, `reflash mend`, `reflash good` |
//! | MBR | what the running kernel has of it | `reflash mend`, `reflash good` |
//! | boot code for BIOS | the release, or the robot's own copy | recovery at its end, `reflash mend`, `reflash good` |
//! | file system of the recovery partition | its other superblocks, e2fsck | `reflash mend`, `reflash good`, where it does not mount or has lost names |
//! | directories and slots of the recovery partition | `lost+found`, the other slot | `reflash mend`, `reflash good` |
//! | configuration, keys, name and local settings on it | the copy on the state partition | the same |
//! | loader on it (`grub/grub.cfg`) | this program | the same |
//! | spare slot of the recovery | the other slot, or the release | recovery at its end |
//! | EFI system partition | the same | the same |
//!
//! Each write is flushed and read back before the next one, and goes where nothing lies that the machine still starts
//! from. What cannot be mended is a warning: nothing in here ends a recovery.

pub mod boot_code;
mod error;
pub mod esp;
mod loader;
mod lost_found;
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

/// Mends what of the boot chain is damaged, and brings `pieces` onto the disk where other boot code is there. Each part
/// that was mended is an event, each that cannot be mended a warning. Returns whether all of it is whole now.
pub fn mend(
    disk: &dyn RawDisk,
    table: Option<&PartitionTable>,
    pieces: Option<&BootPieces>,
    journal: &Journal,
) -> bool {
    let mut whole = true;
    let mut failed = |error: MendError| {
        whole = false;
        journal.warn(&chain(&error));
    };
    match table::mend(disk) {
        Ok(parts) => parts.iter().for_each(|part| journal.report(Event::Mended(part.name()))),
        Err(error) => failed(error),
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
    whole
}
