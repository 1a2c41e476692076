//! The command line: `reflash COMMAND`, on a robot, in recovery, or on a bench.
//!
//! [`commands`] and [`options`] define what can be typed, one row each. A module of the name of each command carries it
//! out.

mod after_undo;
pub mod answer;
pub mod args;
mod by_hand;
pub mod commands;
pub mod completion;
mod context;
mod drill;
mod env;
mod etc;
mod flash;
mod good;
mod health;
pub mod help;
pub mod manual;
mod mend;
mod mounted;
mod newer;
pub mod options;
mod other_system;
mod provision;
mod report;
mod request;
mod status;
mod update;
mod verbose;
mod verify;

use std::ffi::OsString;

use answer::{Exit, Failure, complain, print_text};
use args::Invocation;
use commands::{Command, RequestedAction};
use options::Options;

/// Reads the arguments after the program's name and carries the command out. `reflash --help` documents the exit codes.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let invocation = match args::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) => {
            complain(&error.to_string());
            return Exit::Usage;
        }
    };
    let done = match invocation {
        Invocation::Help(command) => print_text(&help::help(command)).map(|()| Exit::Done),
        Invocation::Version => print_text(concat!("reflash ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| Exit::Done),
        Invocation::Command(command, options) => carry_out(&command, &options),
    };
    done.unwrap_or_else(|failure| {
        complain(&failure.text);
        failure.exit
    })
}

fn carry_out(command: &Command, options: &Options) -> Result<Exit, Failure> {
    if options.verbose {
        verbose::log_libraries();
    }
    match command {
        Command::Flash => flash::run(options),
        Command::Provision => provision::run(options),
        Command::Verify => verify::run(options),
        Command::Status if options.etc => etc::run(options),
        Command::Status => status::run(options),
        Command::Report => report::run(options),
        Command::Health(wait) => health::run(options, *wait),
        Command::Good => good::run(options),
        Command::AfterUndo => after_undo::run(options),
        Command::Request(RequestedAction::Newer) => newer::run(options),
        Command::Mend => mend::run(options),
        Command::Request(action) => request::run(options, *action),
        Command::Drill(kind) => drill::run(options, *kind),
        Command::Update => update::run(options),
        Command::Env(action) => env::run(options, action),
    }
}
