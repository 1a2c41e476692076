//! Disks: which there are, what their partition tables say, and reading and writing them.

pub mod aligned;
pub mod device;
pub mod disks;
pub mod find;
mod ioctl;
pub mod medium;
pub mod table;
pub mod usage;

pub use aligned::AlignedBuf;
pub use device::{Access, BlockError, Caching, Device};
pub use disks::{Disk, MBR_ROLES, Partition, Transport, Which, disks};
pub use find::{FindError, Found, find_disk_by_partuuid, wait_for_disk_by_partuuid};
pub use medium::{media, wait_for_medium};
pub use table::{Scheme, Table, TableError};
pub use usage::in_use;
