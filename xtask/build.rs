//! Copies the agent that `REFLASH_AGENT` names, and the notices beside it, to where the builder embeds them.
//!
//! The agent is not built here: that takes a cross compiler and minutes, and most builds of the builder need no agent
//! inside, since in a checkout `cargo xtask agent` builds the one of the same source.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=REFLASH_AGENT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let agent = std::env::var_os("REFLASH_AGENT").filter(|value| !value.is_empty()).map(PathBuf::from);
    // This program runs in the directory of its package, not where the person is.
    let relative = agent.as_ref().filter(|path| !path.is_absolute());
    assert!(relative.is_none(), "REFLASH_AGENT={relative:?}: give an absolute path");
    let notices = agent.as_ref().map(|path| path.with_added_extension("THIRD-PARTY"));
    for (from, name) in [(agent, "agent"), (notices, "notices")] {
        let content = from.as_deref().map_or_else(Vec::new, read);
        let to = out.join(name);
        std::fs::write(&to, content).unwrap_or_else(|error| panic!("write {}: {error}", to.display()));
    }
}

fn read(path: &Path) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", path.display());
    std::fs::read(path).unwrap_or_else(|error| {
        panic!("read {} for the builder: {error}; `cargo xtask agent` makes the agent and its notices", path.display())
    })
}
