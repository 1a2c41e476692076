//! Provisioning: a whole disk becomes a robot's disk, in an order that a power cut cannot turn into something that
//! boots half-finished.
//!
//! ```text
//! survey() -> choose() -> Preflight -> Armed -> begin() -> PartiallyWritten -> finish() -> Provisioned
//! ```
//! Each value is the proof that the next step needs: nothing is written without an [`Armed`], which is made only from a
//! [`Preflight`] that was shown and whose layout fits, for a blank disk or with an explicit confirmation.
//!
//! Order of the writes; each is durable before the next:
//! 1. The provisioning marker, in the gap behind the partition table.
//! 2. Zeros over the first sector: the disk is now marked unfinished, and provisioning may restart without arming.
//! 3. Zeros over the rest of the first and last MiB of the disk and of every partition: old tables and signatures.
//! 4. File systems and GRUB's core.img, where the table will say they are; kernel, initramfs and configuration into
//!    them.
//! 5. The system, downloaded, written and read back as in any recovery.
//! 6. The partition table without its first sector.
//! 7. The first sector, which makes the disk bootable.
//! 8. The marker: it names the boot medium that was used, or is removed.

pub mod bootstrap;
mod install;
mod make_table;
mod marker;
mod preflight;
mod select;
mod skeleton;
mod survey;
mod write;

pub use install::{InstallError, Site, install, prepare};
pub use make_table::MakeTableError;
pub use preflight::{Armed, ErasePermission, Firmware, NotArmed, Preflight, Refused};
pub use select::{ChooseError, DiskCandidate, DiskContent, choose};
pub use skeleton::{DiskGeometry, DiskSkeleton, SkeletonError};
pub use survey::survey;
pub use write::{BootstrapParts, PartiallyWritten, ProvisionError, Provisioned, TemplateImage, begin};

/// Bytes at the start and end of a disk and of each partition that are looked at, and zeroed: signatures of partition
/// tables, file systems, LVM and Linux RAID all lie there. (RAID 0.90 lies deepest: 64 to 128 KiB before the end.)
const EDGE_LEN: usize = 1024 * 1024;
/// [`EDGE_LEN`] as a size on the disk.
const EDGE_BYTES: u64 = EDGE_LEN as u64;
