//! What PID 1 does: it supervises the recovery ([`supervisor`]), whose work is done by a process of its own
//! ([`recovery`]), or it makes the first step of the installed system's boot ([`system`]), which a process that lives
//! on in the system watches over ([`boot_watch`]).

mod background;
pub mod boot_watch;
mod console;
pub mod link;
pub mod recovery;
pub mod supervisor;
pub mod system;
pub mod watchdog;
pub mod worker;

use std::fs;

/// File in the initramfs that names the job of PID 1.
const ROLE_FILE: &str = "/etc/reflash/role";

/// Role that the initramfs gives PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pid1Role {
    /// PID 1 supervises the recovery agent.
    Recovery,
    /// PID 1 makes the first step of the system's own boot.
    System,
}

/// Reads the job that the initramfs gives PID 1. A missing file means recovery, as in an initramfs from before there
/// was this file.
#[must_use]
pub fn role() -> Pid1Role {
    match fs::read_to_string(ROLE_FILE) {
        Ok(role) if role.trim() == "system" => Pid1Role::System,
        _ => Pid1Role::Recovery,
    }
}
