//! The check of the dependencies against `deny.toml`: licences, origins, unwanted crates, known advisories.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::step::{run, step};

const VERSION: &str = "0.20.2";

/// Checks the dependencies of the whole workspace. Advisories are checked where this machine has a copy of their
/// database, because a test must not fail for a host it cannot reach.
///
/// # Errors
/// What `deny.toml` refuses, as cargo-deny explains it; or cargo-deny cannot be built.
pub fn check(paths: &Paths) -> Result<()> {
    let program = program(paths)?;
    let mut checks = vec!["licenses", "sources", "bans"];
    if has_database(&cargo_home()?.join("advisory-dbs")) {
        checks.push("advisories");
    } else {
        eprintln!("  advisories are not checked: `{} fetch db` fetches their database", program.display());
    }
    // Cargo fetched everything for the build, so what is missing now is a fault; and no other machine is asked.
    let mut deny = Command::new(&program);
    deny.current_dir(&paths.root).args(["--offline", "--workspace", "check"]).args(&checks);
    let status = deny.status().with_context(|| format!("start {}", program.display()))?;
    if !status.success() {
        bail!("the dependencies are not what deny.toml allows; {} says above which and why", program.display());
    }
    Ok(())
}

/// Whether a database was fetched. An interrupted fetch leaves the directory with a lock, or an empty repository.
fn has_database(databases: &Path) -> bool {
    let entries = std::fs::read_dir(databases).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.join(".git/FETCH_HEAD").is_file())
}

/// cargo-deny, built below `target/work/tools` when it is not there.
fn program(paths: &Paths) -> Result<PathBuf> {
    let directory = paths.work().join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = directory.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    step("build cargo-deny", || {
        let build = directory.join("build");
        let mut install = Command::new("cargo");
        // Not optimised: that takes 1.6 minutes of processor time in place of 3.6, and the checks 2 s in place of 0.5.
        install.args(["install", "--locked", "--debug", "cargo-deny", "--version", VERSION, "--root"]).arg(&directory);
        run("cargo-deny", install.env("CARGO_TARGET_DIR", &build))?;
        remove(&build)
    })?;
    Ok(program)
}

/// The build of one program of 10 MB takes hundreds, and nothing uses it again.
fn remove(build: &Path) -> Result<()> {
    std::fs::remove_dir_all(build).with_context(|| format!("remove {}", build.display()))
}

/// Where cargo keeps what it fetched, and cargo-deny its databases.
fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

#[cfg(test)]
mod tests {
    use super::has_database;

    #[test]
    fn only_a_database_that_was_fetched_is_used() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_database(&directory.path().join("missing")) && !has_database(directory.path()));
        std::fs::write(directory.path().join("db.lock"), "").unwrap();
        let repository = directory.path().join("advisory-db-3157b0e258782691/.git");
        std::fs::create_dir_all(&repository).unwrap();
        assert!(!has_database(directory.path()));
        std::fs::write(repository.join("FETCH_HEAD"), "").unwrap();
        assert!(has_database(directory.path()));
    }
}
