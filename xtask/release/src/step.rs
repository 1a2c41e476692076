//! Long steps: each has a name, shows that it is alive and ends with its duration.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};

/// Runs one named step and prints how long it took.
///
/// # Errors
/// Whatever `work` returns, with the step's name in front.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    if std::io::stderr().is_terminal() {
        eprint!("  {name} ...\r");
        let _ = std::io::stderr().flush();
    } else {
        eprintln!("  {name} ...");
    }
    let result = work();
    let seconds = started.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("  {name}: done in {seconds:.1} s"),
        Err(_) => eprintln!("  {name}: FAILED after {seconds:.1} s"),
    }
    result.with_context(|| name.to_owned())
}
