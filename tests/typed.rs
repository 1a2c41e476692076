//! The builder as a person types it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The builder, as the shell of a person would start it in `directory`.
fn builder(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("setsid");
    command.arg("--wait").arg(env!("CARGO_BIN_EXE_reflash-build"));
    // Cargo names this checkout, in which the test runs, to everything that a test starts.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "REFLASH_AGENT", "REFLASH_DIST", "REFLASH_WORK"] {
        command.env_remove(name);
    }
    // A session of its own has no terminal to ask at, wherever the tests are started.
    for name in ["REFLASH_PROJECT", "REFLASH_KEY_PASSWORD", "CI"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).current_dir(directory).args(arguments).output().unwrap()
}

/// Runs a command that succeeds, and returns what it said.
pub fn succeeds(directory: &Path, arguments: &[&str]) -> String {
    let output = builder(directory, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// Runs a command that fails, and returns what it said.
pub fn fails(directory: &Path, arguments: &[&str]) -> String {
    let output = builder(directory, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?}: {text}");
    text
}

/// Runs a command that succeeds, and returns what it printed as its result.
pub fn says(directory: &Path, arguments: &[&str]) -> String {
    let output = builder(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
