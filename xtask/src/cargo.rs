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
    forget_package(&mut command);
    command
}

/// Takes away the variables that describe a package to its build script, its tests and its programs.
pub fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(describes_a_package)) {
        command.env_remove(name);
    }
}

fn describes_a_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR"
}

#[cfg(test)]
mod tests {
    use super::{describes_a_package, forget_package};
    use std::process::Command;

    /// The build script of ring asks for these, so that one of another package has all of TLS compiled again.
    #[test]
    fn a_build_does_not_see_of_which_package_the_builder_is() {
        for name in ["CARGO_PKG_NAME", "CARGO_PKG_VERSION_PRE", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_LINKS", "OUT_DIR"]
        {
            assert!(describes_a_package(name), "{name}");
        }
        assert!(!["CARGO_HOME", "CARGO_TARGET_DIR", "PATH"].into_iter().any(describes_a_package));
        let mut command = Command::new("env");
        forget_package(&mut command);
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.iter().any(|name| *name == "CARGO_PKG_NAME"), "cargo gives it to every test: {removed:?}");
    }
}
