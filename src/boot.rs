//! The contract with GRUB and the firmware.
//!
//! [`disk_map`] is what GRUB reads when the partition table is damaged.
//!
//! [`grubenv`] and [`env`](mod@env) hold the variables through which GRUB and this program communicate, [`slots`]
//! the two copies of the recovery, whose scripts [`boot_scripts`] reads, and [`decide`] the first step after GRUB
//! has started recovery, for which [`worth`] says whether the installed release was ever good, and [`request`] what
//! was asked for. [`bios`], [`efi`] and [`efivars`] make a disk bootable. [`disk_record`] is what distinguishes the
//! robot's disk from a copy.
//! [`systems`] are the two systems of a robot that has two. [`this_boot`] is what the running system knows of its own
//! boot. [`direct`] is what GRUB would start the system with.

pub mod bios;
pub mod boot_scripts;
pub mod decide;
pub mod direct;
pub mod disk_map;
pub mod disk_record;
pub mod efi;
pub mod efivars;
pub mod env;
pub mod grubenv;
pub mod request;
pub mod slots;
pub mod systems;
pub mod this_boot;
pub mod worth;
