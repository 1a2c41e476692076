//! Whether a tree has a release of a channel: the first question of each command that works on one. A person who has
//! not released yet, stands in another directory or misspelt the channel gets one answer, from all of them.

use std::path::Path;

use anyhow::{Result, ensure};
use reflash::release::manifest::manifest_path;

use crate::invocation::program;

/// Checks that the tree offers a release in the channel.
///
/// # Errors
/// When it does not; the channels that it has are named.
pub fn require(tree: &Path, channel: &str) -> Result<()> {
    let others = channels(tree);
    let others =
        if others.is_empty() { String::new() } else { format!(" (there is a release in {})", others.join(", ")) };
    ensure!(
        tree.join(manifest_path(channel)).exists(),
        "channel {channel} in {} has no release yet{others}: `{} release` makes one",
        tree.display(),
        program()
    );
    Ok(())
}

/// Checks that the tree offers a release in any channel.
///
/// # Errors
/// When it does not.
pub fn require_any(tree: &Path) -> Result<()> {
    ensure!(!channels(tree).is_empty(), "{} has no release yet: `{} release` makes one", tree.display(), program());
    Ok(())
}

fn channels(tree: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(tree).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut found: Vec<String> = names.filter(|name| tree.join(manifest_path(name)).exists()).collect();
    found.sort();
    found
}
