//! `--verbose`: what the libraries log, on standard error.

use std::io::{Write, stderr};

use log::LevelFilter;
use simple_logger::SimpleLogger;

use super::answer::Exit;

/// How the standard library begins to panic when `eprintln!` cannot write.
const CANNOT_PRINT: &str = "failed printing to";

/// Writes every record of the libraries from here on.
///
/// The logger prints with `eprintln!`, which panics where nobody reads any more. So it is not used where a first line
/// cannot be written, since the command is worth more than its log; and where that happens later, as on a disk that
/// fills up, the program ends with the exit code of a failure instead of an abort.
pub(super) fn log_libraries() {
    if writeln!(stderr(), "reflash {}: logging requests and library messages", env!("CARGO_PKG_VERSION")).is_err() {
        return;
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with(CANNOT_PRINT)) {
            std::process::exit(Exit::Failed.code().into());
        }
        usual(panic);
    }));
    // Fails only where a logger is set already, which then is this one.
    let _ = SimpleLogger::new().with_level(LevelFilter::Debug).init();
}
