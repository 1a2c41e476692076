//! Lost blocks of the boot chain: what firmware, GRUB and the kernel read before any comparison of the system.

mod boot_code;
mod esp;
mod map;
mod recording;
mod recovery_partition;
mod table;
