//! What PID 1 does: the recovery agent ([`recovery`]), or the first step of the installed system's boot ([`system`]).

pub mod recovery;
pub mod system;
pub mod watchdog;

use std::fs;

/// File in the initramfs that names the job of PID 1.
const ROLE_FILE: &str = "/etc/reflash/role";

/// Role that the initramfs gives PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pid1Role {
    /// PID 1 is the recovery agent.
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
