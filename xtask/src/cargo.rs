//! Cargo, for the commands that build or test the checkout itself.

use std::process::Command;

use crate::paths::Paths;

/// Cargo as a person would start it in the checkout.
#[must_use]
pub fn cargo(paths: &Paths) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&paths.root);
    // The `cargo run` that started this program describes its package in these variables. The build script of ring
    // reads them too: with other values, ring and all that depends on it would be compiled now, and again by the next
    // cargo.
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    command
}
