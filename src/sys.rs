//! System calls: what reflash asks of the Linux kernel. The only home of `nix`, `rustix` and `unsafe`.
//!
//! | module | what it does |
//! |---|---|
//! | `backtrace` | none: the shipped agent has no tables for one |
//! | [`block`] | opens, reads and writes block devices |
//! | [`clock`] | the system clock |
//! | [`companion`] | a process beside PID 1 that lives on in the system |
//! | [`confine`] | fewer rights, less memory, mounts of its own |
//! | [`ext4`] | identity and growth of a mounted file system |
//! | [`extents`] | where the content of a file lies on its device |
//! | [`files`] | opens and reads files that may be anything |
//! | [`gentle`] | the lowest priorities, reserved room, local time |
//! | [`init`] | PID 1: first mounts, console, signals, panic |
//! | [`kexec`] | start of another kernel without the firmware |
//! | [`kmsg`] | lines into the kernel log |
//! | [`loopback`] | a part of a disk as a device of its own |
//! | [`module`] | inserts a kernel module |
//! | [`mount`] | mounts, `switch_root` |
//! | [`net`] | links, raw sockets, addresses and routes |
//! | [`own_mounts`] | a command's own mount namespace |
//! | [`power`] | reboot, power off, sync that cannot hang |
//! | [`process`] | programs that are started, and how they end |
//! | [`random`] | random bytes |
//! | [`special`] | attributes, named pipes and devices, and a flush of all files |
//! | [`thread`] | threads with a name, locks that survive a panic |
//! | [`turn`] | locks of processes that change the same thing |
//! | [`uevent`] | the kernel's events about devices |
//! | [`watchdog`] | the hardware watchdog |

#[cfg(all(target_env = "musl", panic = "abort"))]
mod backtrace;
pub mod block;
pub mod clock;
pub mod companion;
pub mod confine;
pub mod ext4;
pub mod extents;
pub mod files;
pub mod gentle;
pub mod init;
pub mod inode;
pub mod kexec;
pub mod kmsg;
pub mod loopback;
pub mod module;
pub mod mount;
pub mod net;
pub mod own_mounts;
pub mod power;
pub mod process;
pub mod random;
mod signals;
pub mod special;
pub mod thread;
pub mod turn;
pub mod uevent;
pub mod watchdog;
