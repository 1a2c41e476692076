//! `--verbose`: what the libraries log, on standard error.

use std::io::Write;

/// Writes every record of the libraries from here on. A standard error that cannot be written is no reason to stop.
pub(super) fn log_libraries() {
    // Fails only where a logger is set already, which then is this one.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(std::io::stderr(), "{} [{}] {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
