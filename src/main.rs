//! `reflash`: PID 1 of an initramfs, or the same work from a command line.
//!
//! In the recovery initramfs, PID 1 starts the recovery agent and watches over it ([`reflash::pid1::supervisor`]); the
//! agent is a process of its own ([`reflash::pid1::recovery`]; start reading there). In the initramfs of the installed
//! system, PID 1 mounts that system and hands over ([`reflash::pid1::system`]); a process beside it watches over the
//! boot ([`reflash::pid1::boot_watch`]). Everywhere else `reflash` is a command line ([`reflash::cli`]).

use std::process::ExitCode;

use reflash::{cli, pid1, sys};

fn main() -> ExitCode {
    if sys::process::is_pid1() {
        match pid1::role() {
            pid1::Pid1Role::Recovery => pid1::supervisor::run(),
            pid1::Pid1Role::System => pid1::system::run(),
        }
    }
    if pid1::boot_watch::is_this_process() {
        pid1::boot_watch::run();
    }
    if let Some(handover) = pid1::worker::handover() {
        match pid1::role() {
            pid1::Pid1Role::Recovery => pid1::recovery::run(&handover),
            pid1::Pid1Role::System => pid1::system::work(&handover),
        }
    }
    cli::run(std::env::args_os().skip(1)).into()
}
