//! A disk becomes a robot's: which disk, what is destroyed, and then table, boot code and file systems, in an order that
//! a power cut cannot turn into something that boots by half.
//!
//! ```text
//! survey() -> choose() -> Preflight -> Armed -> begin() -> PartiallyWritten -> finish() -> Provisioned
//! ```
//! Each value is the proof the next step needs: nothing is written without an [`Armed`], which only a disk with nothing
//! on it or an explicit word makes, out of a [`Preflight`] that was shown and whose layout fits.
//!
//! Order of the writes, each line durable before the next:
//! 1. a mark, in the gap behind the table;
//! 2. zeros over the first sector: from here on the disk is nobody's, and provisioning may begin again without a word;
//! 3. zeros over the rest of the first and last MiB of the disk and of every partition: old tables and signatures;
//! 4. file systems and GRUB's core.img, where the table will say they are; kernel, initramfs and configuration into them;
//! 5. the system, downloaded, written and read back as in any recovery;
//! 6. the table, without its first sector;
//! 7. the first sector, which makes it a disk that boots;
//! 8. the mark says from which medium, or goes.

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
const EDGE_BYTES: u64 = 1024 * 1024;
