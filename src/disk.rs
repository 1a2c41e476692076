//! The disks of this machine: which there are, what their partition tables say, and which partition has which role.

pub mod ext4_groups;
pub mod fat;
pub mod filesystem;
pub mod find;
pub mod find_medium;
pub mod gpt_copies;
pub mod gpt_growth;
pub mod identity;
pub mod list;
pub mod look;
pub mod lost_mbr;
pub mod mbr_growth;
pub mod raw;
pub mod reserve;
pub mod roles;
pub mod second_system;
mod smaller;
pub mod table;

pub use find::{FindError, FoundDisk, Waiting, find_disk_by_partuuid, wait_for_disk_by_partuuid};
pub use find_medium::{media, wait_for_medium};
pub use identity::DiskIdentity;
pub use list::{Disk, Partition, Transport, Which, disks};
pub use look::{DiskSearch, Looked, Looks, ReadRecord, RobotRecord};
pub use table::{ParsedTable, Scheme, TableError};
