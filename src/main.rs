//! `reflash`: PID 1 of an initramfs, or the same work from a command line.
//!
//! In the recovery initramfs, PID 1 is the recovery agent ([`reflash::pid1::recovery`]; start reading there). In the
//! initramfs of the installed system, it mounts that system and hands over ([`reflash::pid1::system`]). Everywhere else
//! it is a command line ([`reflash::cli`]).

use std::process::ExitCode;

use reflash::{cli, pid1, sys};

fn main() -> ExitCode {
    if sys::process::is_pid1() {
        match pid1::role() {
            pid1::Pid1Role::Recovery => pid1::recovery::run(),
            pid1::Pid1Role::System => pid1::system::run(),
        }
    }
    cli::run(std::env::args_os().skip(1)).into()
}
