//! The contract with GRUB and the firmware.
//!
//! [`disk_map`] is what GRUB reads when the partition table is damaged.
//!
//! [`grubenv`] and [`env`](mod@env) hold the variables through which GRUB and this program communicate, [`slots`] the
//! two copies of the recovery, and [`decide`] the first step after GRUB has started recovery. [`bios`], [`efi`] and
//! [`efivars`] make a disk bootable. [`disk_record`] is what distinguishes the robot's disk from a copy.

pub mod bios;
pub mod decide;
pub mod disk_map;
pub mod disk_record;
pub mod efi;
pub mod efivars;
pub mod env;
pub mod grubenv;
pub mod slots;
