//! What PID 1 does: the recovery agent ([`recovery`]), or the first step of the installed system's boot ([`system`]).

pub mod recovery;
pub mod system;
pub mod watchdog;

use std::fs;

/// File in the initramfs that says which job PID 1 has.
const ROLE_FILE: &str = "/etc/reflash/role";

/// The job of PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Recovery agent.
    Recovery,
    /// First step of the system's own boot.
    System,
}

/// The job that the initramfs gives PID 1. A missing file means recovery: the initramfs is then an old one of ours.
#[must_use]
pub fn role() -> Job {
    match fs::read_to_string(ROLE_FILE) {
        Ok(role) if role.trim() == "system" => Job::System,
        _ => Job::Recovery,
    }
}
