//! The contract with GRUB and the firmware.
//!
//! | module | what it holds |
//! |---|---|
//! | [`grubenv`], [`env`](mod@env) | the variables through which GRUB and this program communicate |
//! | [`decide`] | the first step after GRUB has started recovery |
//! | [`worth`] | whether the installed release was ever good |
//! | [`request`] | what a recovery was asked for |
//! | [`slots`], [`boot_scripts`] | the two copies of the recovery, and their scripts |
//! | [`systems`] | the two systems of a robot that has two |
//! | [`this_boot`] | what the running system knows of its own boot |
//! | [`direct`] | what GRUB would start the system with |
//! | [`disk_map`] | what GRUB reads when the partition table is damaged |
//! | [`disk_record`] | what distinguishes the robot's disk from a copy |
//! | [`bios`], [`efi`], [`efivars`] | what makes a disk bootable |

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
