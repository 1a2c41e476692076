//! `reflash-build`, which `cargo xtask` runs too: the command line, and the one place that ends the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    match xtask::cli::run(xtask::cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
