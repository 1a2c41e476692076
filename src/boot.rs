//! The contract with GRUB and the firmware: the environment block, the recovery slots, the boot decision, and what makes
//! a disk bootable.

pub mod bios;
pub mod decide;
pub mod efi;
pub mod efivars;
pub mod env;
pub mod grubenv;
pub mod slots;
