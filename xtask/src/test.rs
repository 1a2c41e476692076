//! `cargo xtask test`: everything CI runs, in the order in which it fails fastest.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::host_packages::{Need, ensure_installed, is_root};
use crate::paths::Paths;
use crate::powercut;
use crate::step::human;

/// Runs all tests.
///
/// # Errors
/// The first part that fails.
pub fn run(paths: &Paths, full: bool, assume_yes: bool) -> Result<()> {
    ensure!(is_root(), "the tests make network namespaces, loop devices and virtual machines: run this as root");
    let started = Instant::now();
    let needs = [Need::Agent, Need::Initramfs, Need::Image, Need::Disk, Need::Media, Need::Vm, Need::Bench, Need::Test];
    ensure_installed(&needs, assume_yes)?;
    part(paths, "style", &["fmt", "--all", "--check"])?;
    part(paths, "lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    crate::oldest_rust::check(paths)?;
    crate::deny::check(paths)?;
    part(
        paths,
        "unit tests and stories",
        &["test", "--workspace", "--locked", "--", "--include-ignored", "--skip", "vm::"],
    )?;
    crate::demo::build_all(paths, assume_yes)?;
    powercut::run(paths, &powercut_options(full), assume_yes)?;
    // One machine at a time: two cores emulate one well, and a slow boot is not a failure to look into.
    let mut vm = vec!["test", "--package", "xtask", "--locked", "--test", "stories", "vm::", "--"];
    vm.extend(["--include-ignored", "--test-threads", "1"]);
    if !full {
        vm.extend(["--skip", "::full_"]);
    }
    part(paths, "virtual machines", &vm)?;
    eprintln!("everything passed in {}", human(started.elapsed()));
    Ok(())
}

/// Judging takes ten milliseconds a state, booting half a minute; the stories boot after real cuts.
fn powercut_options(full: bool) -> powercut::PowerCutArgs {
    let (states, boots) = if full { (powercut::USUAL_STATES, 8) } else { (11_000, 0) };
    powercut::PowerCutArgs { seed: 1, states, boots, state: None }
}

/// Runs one cargo command with its output shown: it is what a person wants to see of a test.
fn part(paths: &Paths, name: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("== {name}: cargo {}", arguments.join(" "));
    let started = Instant::now();
    let mut command = Command::new("cargo");
    command.current_dir(&paths.root).args(arguments);
    let status = command.status().with_context(|| format!("start cargo for {name}"))?;
    if !status.success() {
        bail!("{name} failed after {}", human(started.elapsed()));
    }
    eprintln!("== {name}: passed in {}", human(started.elapsed()));
    Ok(())
}
