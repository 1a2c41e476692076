//! `cargo xtask install`: the builder as a program of its own, with the agent of this checkout inside.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths::Paths;
use crate::{agent, notices};

/// Options of `install`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// Directory whose bin/ the program goes into. Default: cargo's own, usually ~/.cargo.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Builds the agent, and installs the builder with the agent inside.
///
/// # Errors
/// When the agent cannot be built, or cargo fails; cargo shows why.
pub fn run(args: &InstallArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let agent = agent::obtain(paths, assume_yes)?;
    if paths.given_agent().is_none() {
        notices::write_beside(&agent, paths)?;
    }
    let mut command = Command::new("cargo");
    command.args(["install", "--locked", "--path"]).arg(paths.root.join("xtask"));
    if let Some(root) = &args.root {
        command.arg("--root").arg(root);
    }
    // Output is shown: cargo says where the program is, and whether that place is on the search path.
    let status = command.env("REFLASH_AGENT", &agent).status().context("start cargo install")?;
    ensure!(status.success(), "cargo install ended with {status}");
    Ok(())
}
