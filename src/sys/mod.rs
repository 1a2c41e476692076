//! The only home of nix and `unsafe`: what the agent asks of the Linux kernel.
//!
//! | module | what it does |
//! |---|---|
//! | [`init`] | PID 1: first mounts, console, signals, orphans, panic |
//! | [`power`] | reboot, power off, sync that cannot hang |
//! | [`kmsg`] | lines into the kernel log |
//! | [`efivars`] | variables of UEFI firmware |
//! | [`ext4`] | identity and growth of a mounted file system |
//! | [`loopback`] | a part of a disk as a device of its own |
//! | [`mount`] | mounts, `switch_root` |
//! | [`modules`] | kernel modules by name, alias and present hardware |
//! | [`block`] | disks, partition tables, devices |
//! | [`dmi`] | who this machine is |
//! | [`clock`] | the system clock |
//! | [`net`] | links, addresses, DHCP |
//! | [`random`] | random bytes |
//! | [`watchdog`] | the hardware watchdog |

pub mod block;
pub mod clock;
pub mod dmi;
pub mod efivars;
pub mod ext4;
pub mod init;
pub mod kmsg;
pub mod loopback;
pub mod modules;
pub mod mount;
pub mod net;
pub mod power;
pub mod random;
pub mod watchdog;
