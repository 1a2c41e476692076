//! `reflash`: PID 1 of an initramfs, or the same verbs by hand.
//!
//! In the recovery initramfs PID 1 is the recovery agent ([`reflash::agent`]: the story begins there). In the
//! system's own initramfs it mounts the system and hands over ([`reflash::sysroot`]). Everywhere else it is a
//! command line ([`reflash::cli`] reads it, [`reflash::verbs`] carries it out).

use std::process::ExitCode;

use reflash::{agent, cli, sys, sysroot, verbs};

fn main() -> ExitCode {
    if sys::init::is_pid1() {
        match agent::role() {
            agent::Role::Recovery => agent::run(),
            agent::Role::System => sysroot::run(),
        }
    }
    match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => verbs::run(command),
        Err(error) => {
            eprintln!("reflash: {error}");
            ExitCode::from(verbs::USAGE)
        }
    }
}
