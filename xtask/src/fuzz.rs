//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, for as long as wanted, and their short run in `cargo xtask
//! test`.
//!
//! libFuzzer mutates by what the compiler's instrumentation says was reached. cargo-fuzz would bring the same and needs
//! a nightly compiler; a stable one has the same passes, to be had with `RUSTC_BOOTSTRAP`. The instrumented build takes
//! minutes, so the short run does without: it feeds kept inputs and what chance makes of them to the same targets, in
//! a program that shares its dependencies with the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::cargo;
use crate::paths::{Paths, create_dir};
use crate::step::{output, step};

/// Instrumentation that libFuzzer reads: counters of edges, their addresses, and the operands of comparisons. There is
/// no sanitizer of memory: what these targets reach of the agent is safe Rust, and the compiler would not instrument
/// the C code among its dependencies. `--cfg fuzzing`, which cargo-fuzz sets, is left out: some crates weaken
/// themselves by it, and the code should be that which is shipped.
const INSTRUMENTED: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Seconds that the short run gives to each of the targets, and four times as many to the two that run whole
/// recoveries: less than a minute in all.
const SHORT_S: u64 = 2;
/// Seconds after which libFuzzer takes one input for an endless one.
const MOST_INPUT_S: u64 = 20;
/// Memory after which libFuzzer takes one input for a bomb, MiB.
const MOST_MEMORY_MIB: u64 = 1024;

/// The choice of targets and time.
#[derive(Debug, clap::Args)]
pub struct FuzzArgs {
    /// Target to run; repeat for several. Without it, all of them, one after the other.
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Processes that run a target at the same time and share what they find.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// Run this one input, kept from a failure, and nothing else.
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<PathBuf>,
}

/// Runs the chosen targets, instrumented.
///
/// # Errors
/// When they cannot be built, and for an input that a target does not survive: libFuzzer's report says where it is.
pub fn run(paths: &Paths, args: &FuzzArgs) -> Result<()> {
    let known = targets(paths)?;
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown:?}; there are: {}", known.join(", "));
    }
    let program = build_instrumented(paths)?;
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    for target in chosen {
        run_target(paths, &program, target, args)?;
    }
    Ok(())
}

/// Feeds every target its kept inputs and what chance makes of them, for some seconds each.
///
/// # Errors
/// When a target cannot be built, and for an input that it does not survive.
pub fn short(paths: &Paths) -> Result<()> {
    let root = workspace(paths)?;
    let style = cargo(paths).current_dir(&root).args(["fmt", "--check"]).status().context("start cargo fmt")?;
    ensure!(style.success(), "tests/fuzz is not formatted: run cargo fmt there");
    let mut command = cargo(paths);
    // The tests have compiled most of what is needed, in this directory.
    command.current_dir(&root).args(["run", "--locked", "--quiet", "--", "--seconds", &SHORT_S.to_string()]);
    command.env("CARGO_TARGET_DIR", paths.root.join("target"));
    let status = command.status().context("start cargo for the fuzz targets")?;
    ensure!(status.success(), "a fuzz target was not built, or failed with the input above (docs/CONTRIBUTING.md)");
    Ok(())
}

fn workspace(paths: &Paths) -> Result<PathBuf> {
    Ok(paths.checkout("fuzz")?.join("tests/fuzz"))
}

/// The names of all targets: each is a file.
fn targets(paths: &Paths) -> Result<Vec<String>> {
    let list = workspace(paths)?.join("src/targets.rs");
    let text = std::fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let named = text.split("Target { name: \"").skip(1).filter_map(|rest| rest.split_once('"'));
    Ok(named.map(|(name, _)| name.to_owned()).collect())
}

/// Builds the program with libFuzzer. Build scripts and macros are not instrumented: a target triple that is given
/// keeps the flags from them.
fn build_instrumented(paths: &Paths) -> Result<PathBuf> {
    let (root, directory) = (workspace(paths)?, paths.root.join("target/fuzz"));
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?.trim().to_owned();
    step("build the fuzz targets, instrumented", || {
        let mut command = cargo(paths);
        command.current_dir(&root).args(["build", "--release", "--locked", "--quiet", "--features", "libfuzzer"]);
        command.args(["--target", &host]).env("CARGO_TARGET_DIR", &directory);
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", INSTRUMENTED.join(" "));
        let status = command.status().context("start cargo")?;
        ensure!(status.success(), "cargo ended with {status}");
        Ok(())
    })?;
    Ok(directory.join(host).join("release/reflash-fuzz"))
}

fn run_target(paths: &Paths, program: &Path, target: &str, args: &FuzzArgs) -> Result<()> {
    let (root, work) = (workspace(paths)?, paths.root.join("target/fuzz"));
    let (corpus, artifacts) = (work.join("corpus").join(target), work.join("artifacts").join(target));
    create_dir(&corpus)?;
    create_dir(&artifacts)?;
    let mut command = Command::new(program);
    command.current_dir(&work).env("REFLASH_FUZZ_TARGET", target);
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args([format!("-timeout={MOST_INPUT_S}"), format!("-rss_limit_mb={MOST_MEMORY_MIB}")]);
    if let Some(input) = &args.input {
        command.arg(std::path::absolute(input)?);
    } else {
        command.args([format!("-max_total_time={}", args.seconds), "-print_final_stats=1".to_owned()]);
        if args.jobs > 1 {
            command.args([format!("-jobs={}", args.jobs), format!("-workers={}", args.jobs)]);
        }
        command.arg(&corpus);
        // What is found goes into the first directory; these are only read.
        command.args(
            ["regressions", "seeds"].map(|kind| root.join(kind).join(target)).iter().filter(|path| path.is_dir()),
        );
    }
    eprintln!("== fuzz target {target}");
    let status = command.status().with_context(|| format!("start {}", program.display()))?;
    if !status.success() {
        bail!(
            "the target {target} failed; the input is in {}: put it into tests/fuzz/regressions/{target} once it is mended",
            artifacts.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use super::targets;
    use crate::paths::Paths;

    /// The versions and the dependencies of each package of a lock file, by its name.
    fn locked(file: &Path) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
        let lock: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let mut packages: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
        for package in lock["package"].as_array().unwrap() {
            let (versions, dependencies) = packages.entry(package["name"].as_str().unwrap().to_owned()).or_default();
            versions.insert(package["version"].as_str().unwrap().to_owned());
            let named = package.get("dependencies").and_then(|list| list.as_array()).into_iter().flatten();
            // A name has its version behind it only where there are several.
            dependencies.extend(named.filter_map(|name| Some(name.as_str()?.split(' ').next()?.to_owned())));
        }
        packages
    }

    #[test]
    fn the_targets_are_built_with_the_dependencies_of_the_agent() {
        let root = Paths::of_checkout().root;
        let (ours, theirs) = (locked(&root.join("Cargo.lock")), locked(&root.join("tests/fuzz/Cargo.lock")));
        let advice = "run `cargo update --workspace` in tests/fuzz, and `cargo update -p NAME --precise VERSION`";
        for (name, (versions, _)) in &theirs {
            let known = ours.get(name).map(|(versions, _)| versions);
            assert!(
                known.is_none_or(|known| versions.is_subset(known)),
                "{name} {versions:?}, not {known:?}: {advice}"
            );
        }
        // The tests of the agent need more than the agent.
        let missing: Vec<_> = theirs["reflash"].1.difference(&ours["reflash"].1).collect();
        assert!(missing.is_empty(), "{missing:?} are dependencies no more: {advice}");
        let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
        for name in manifest["dependencies"].as_table().unwrap().keys() {
            assert!(theirs["reflash"].1.contains(name), "{name} is a new dependency: {advice}");
        }
    }

    #[test]
    fn every_target_has_a_file_and_inputs_to_begin_with() {
        let paths = Paths::of_checkout();
        let root = paths.root.join("tests/fuzz");
        let names = targets(&paths).unwrap();
        assert!(names.len() >= 16, "{names:?}");
        for name in names {
            assert!(root.join(format!("src/targets/{name}.rs")).is_file(), "{name}");
            let seeds: Vec<_> = std::fs::read_dir(root.join("seeds").join(&name)).unwrap().collect();
            assert!(!seeds.is_empty(), "{name}");
        }
    }
}
