//! How the builder was called, so that usage texts and advice name a command that can be typed.

/// Returns what a person types before the name of a command: `cargo xtask` in a checkout, otherwise the installed
/// program. Cargo names the package in the environment of what it runs.
#[must_use]
pub fn program() -> &'static str {
    let package = std::env::var("CARGO_PKG_NAME");
    if package.as_deref() == Ok(env!("CARGO_PKG_NAME")) { "cargo xtask" } else { "reflash-build" }
}
