//! Failures to mend, and the one way in which everything is written.

use std::io;
use std::path::PathBuf;

use crate::boot::bios::BootCodeError;
use crate::boot::grubenv::GrubEnvError;
use crate::disk::fat::FatError;
use crate::disk::raw::RawDisk;
use crate::sys::block::BlockError;

/// Failure to mend a part of the boot chain.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// The disk refuses a read, a write or a flush.
    #[error("cannot {doing} the {part}")]
    Disk {
        /// Action that failed, as a verb.
        doing: &'static str,
        /// Part of the boot chain.
        part: &'static str,
        /// The disk's answer.
        source: io::Error,
    },
    /// The disk does not keep what is written.
    #[error("the {part} reads back wrong at sector {}; the disk is failing, replace it", .offset / 512)]
    ReadBack {
        /// Part of the boot chain.
        part: &'static str,
        /// Offset on the disk, bytes.
        offset: u64,
    },
    /// The disk cannot be opened.
    #[error(transparent)]
    Open(#[from] BlockError),
    /// Boot code that cannot come onto this disk.
    #[error("the boot code of the disk stays as it is")]
    BootCode(#[from] BootCodeError),
    /// A map of the disk that cannot be made.
    #[error("the map of the disk for GRUB cannot be made")]
    Map(#[from] GrubEnvError),
    /// Something has the EFI system partition mounted.
    #[error("the EFI system partition stays as it is: it is mounted, and what is damaged of it is mended after that")]
    EspInUse,
    /// An EFI system partition onto which GRUB cannot be brought.
    #[error("the EFI system partition stays as it is")]
    Esp(#[from] FatError),
    /// A recovery partition whose file system stays damaged.
    #[error("the recovery partition {} cannot be repaired: {why}", .device.display())]
    RecoveryPartition {
        /// Device of the partition.
        device: PathBuf,
        /// Reason for which it stays so.
        why: String,
    },
    /// A GPT of which no copy is whole.
    #[error(
        "every copy of the partition table is damaged, and what the partitions were is not guessed; as long as the \
         system runs, copy what is needed and provision the disk anew"
    )]
    TableLost,
}

/// Writes in place, and returns when the medium holds just that.
pub(super) fn write_proven(
    disk: &dyn RawDisk,
    part: &'static str,
    offset: u64,
    content: &[u8],
) -> Result<(), MendError> {
    let failed = |doing| move |source| MendError::Disk { doing, part, source };
    disk.write_at(offset, content).map_err(failed("write"))?;
    disk.flush().map_err(failed("flush"))?;
    let mut found = vec![0; content.len()];
    disk.read_at(offset, &mut found).map_err(failed("read back"))?;
    if found == content { Ok(()) } else { Err(MendError::ReadBack { part, offset }) }
}
