//! The command line: `reflash COMMAND`, on a robot, in recovery, or on a bench.

pub mod args;
mod help;
mod mounted;
mod provision;
pub mod run;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;

/// Reads the arguments and carries the command out. What it prints and the exit codes are in `reflash --help`.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match args::parse(arguments) {
        Ok(command) => run::run(command),
        Err(error) => {
            eprintln!("reflash: {error}");
            ExitCode::from(run::USAGE)
        }
    }
}
