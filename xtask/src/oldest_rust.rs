//! The check that the oldest Rust which `Cargo.toml` claims builds the workspace.

use std::process::Command;

use anyhow::Result;

use crate::paths::Paths;
use crate::step::{output, run, step};

/// `rust-version` of the workspace.
const CLAIMED: &str = env!("CARGO_PKG_RUST_VERSION");

/// Checks that Rust [`CLAIMED`] compiles the workspace. Where the tests themselves run with it, they are the proof;
/// with a newer one, rustup's copy of the older is used, if this machine has it.
///
/// # Errors
/// Rust [`CLAIMED`] does not compile the workspace.
pub fn check(paths: &Paths) -> Result<()> {
    if is_claimed(&output(Command::new("rustc").arg("--version").current_dir(&paths.root))?) {
        return Ok(());
    }
    let old = |program: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", CLAIMED, program]).current_dir(&paths.root).env_remove("RUSTUP_TOOLCHAIN");
        command
    };
    if !output(old("rustc").arg("--version")).is_ok_and(|version| is_claimed(&version)) {
        eprintln!("  Rust {CLAIMED}, the oldest claimed, is not tried: `rustup toolchain install {CLAIMED}` gets it");
        return Ok(());
    }
    step(&format!("check with Rust {CLAIMED}, the oldest claimed"), || {
        // A directory of its own, or every build after it would begin anew.
        let directory = paths.work().join("oldest-rust");
        let mut check = old("cargo");
        check.args(["check", "--workspace", "--all-targets", "--locked"]).env("CARGO_TARGET_DIR", directory);
        run("oldest-rust", &mut check)
    })
}

/// Whether `rustc --version` printed the claimed version, with whatever patch level.
fn is_claimed(version: &str) -> bool {
    version.strip_prefix("rustc ").and_then(|rest| rest.strip_prefix(CLAIMED)).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::{CLAIMED, is_claimed};
    use std::process::Command;

    #[test]
    fn only_the_claimed_version_counts() {
        assert!(is_claimed(&format!("rustc {CLAIMED}.0 (59807616e 2026-04-14)")));
        assert!(!is_claimed(&format!("rustc {CLAIMED}1.0")) && !is_claimed("rustc 0.1.0") && !is_claimed(""));
    }

    #[test]
    fn no_dependency_asks_for_a_newer_rust_than_is_claimed() {
        let arguments = ["metadata", "--format-version", "1", "--filter-platform", crate::agent::TARGET];
        let metadata = Command::new("cargo").args(arguments).output().unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let numbers = |text: &str| text.split('.').take(2).map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
        let mut asking = 0;
        for package in metadata["packages"].as_array().unwrap() {
            let Some(needed) = package["rust_version"].as_str() else { continue };
            asking += 1;
            assert!(numbers(needed) <= numbers(CLAIMED), "{} asks for Rust {needed}", package["id"]);
        }
        assert!(asking > 50, "{asking}");
    }
}
