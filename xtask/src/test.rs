//! `cargo xtask test`: the tests in tiers by what they need, in the order in which they fail fastest.
//!
//! A test that needs more than cargo is ignored, for a reason that begins with its tier: "needs root" (also for tools
//! that apt installs), "needs a virtual machine" or "takes long". The test harness selects by name and not by reason.
//! Tests of virtual machines are therefore in the module `vm`, and the names of tests that take long begin with
//! `full_`; a test below compares reasons and names.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};

use crate::cargo::cargo;
use crate::host_packages::{Need, ensure_installed, is_root};
use crate::paths::Paths;
use crate::powercut;
use crate::step::human;

/// A set of tests that need the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// Style, lints, and the tests that need nothing but cargo.
    Unit,
    /// Tests with loop devices, namespaces and tools that apt installs, and a short run of the fuzz targets.
    Root,
    /// Every state that a power cut can leave, and boots in virtual machines.
    Vm,
    /// All tiers, with the tests that take long.
    Full,
}

/// The content of each tier and about how many minutes it takes: two cores, nothing of the workspace compiled, and QEMU
/// without KVM.
const TIERS: [(Tier, &str, u32); 4] = [
    (Tier::Unit, "style, lints, and the tests that need nothing but cargo", 4),
    (Tier::Root, "checks of the dependencies, the tests that need root and installed tools, and fuzz targets", 12),
    (Tier::Vm, "everything that is shipped, states after power cuts, and boots in virtual machines", 25),
    (Tier::Full, "more states after power cuts, all boots in virtual machines, and what else takes long", 180),
];

/// What the reason of an ignored test begins with.
#[cfg(test)]
const REASONS: [&str; 3] = ["needs root: ", "needs a virtual machine: ", "takes long: "];

/// The choice of tests.
#[derive(Debug, Clone, Default, Args)]
pub struct TestArgs {
    /// Tier to run; repeat for several. Without it, all but the full tier.
    #[arg(long = "tier", value_name = "TIER")]
    tiers: Vec<Tier>,
    /// Run everything, also what takes long (as --tier full).
    #[arg(long)]
    full: bool,
    /// Run only tests that have this in their names, and nothing else of the tiers.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
}

/// Runs the chosen tests.
///
/// # Errors
/// The first part that fails.
pub fn run(paths: &Paths, args: TestArgs, assume_yes: bool) -> Result<()> {
    let started = Instant::now();
    let mut wanted = args.tiers;
    wanted.extend(args.full.then_some(Tier::Full));
    let tiers = parts_of(&wanted);
    match &args.only {
        Some(pattern) => run_only(paths, &tiers, pattern, assume_yes)?,
        None => {
            prepare(&tiers, assume_yes)?;
            for tier in &tiers {
                timed(*tier, || run_tier(paths, *tier, assume_yes))?;
            }
        }
    }
    eprintln!("everything passed in {}", human(started.elapsed()));
    Ok(())
}

/// The tiers to run one after the other: all is the tier of virtual machines at its longest, and those before it.
fn parts_of(wanted: &[Tier]) -> Vec<Tier> {
    let mut tiers: BTreeSet<Tier> = wanted.iter().copied().collect();
    if tiers.is_empty() {
        tiers.extend([Tier::Unit, Tier::Root, Tier::Vm]);
    }
    if tiers.contains(&Tier::Full) {
        tiers.extend([Tier::Unit, Tier::Root]);
        tiers.remove(&Tier::Vm);
    }
    tiers.into_iter().collect()
}

/// Makes sure, before anything runs, that the tiers have what they need.
fn prepare(tiers: &[Tier], assume_yes: bool) -> Result<()> {
    let mut needs = Vec::new();
    if tiers.iter().any(|tier| *tier != Tier::Unit) {
        let advice = "run this as root, or only `cargo xtask test --tier unit`";
        ensure!(is_root(), "the tests make network namespaces, loop devices and virtual machines: {advice}");
        needs.extend([Need::Agent, Need::Initramfs, Need::Image, Need::Disk, Need::Media, Need::Bench, Need::Test]);
    }
    if tiers.iter().any(|tier| matches!(tier, Tier::Vm | Tier::Full)) {
        needs.push(Need::Vm);
    }
    ensure_installed(&needs, assume_yes)
}

/// Runs a tier between what it will take and what it took.
fn timed(tier: Tier, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let name = name_of(tier);
    if let Some((_, holds, minutes)) = TIERS.iter().find(|(other, ..)| *other == tier) {
        eprintln!("=== tier {name}: {holds}; about {minutes} minutes");
    }
    let started = Instant::now();
    work()?;
    eprintln!("=== tier {name}: passed in {}", human(started.elapsed()));
    Ok(())
}

fn name_of(tier: Tier) -> String {
    tier.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn run_tier(paths: &Paths, tier: Tier, assume_yes: bool) -> Result<()> {
    match tier {
        Tier::Unit => {
            part(paths, "style", &["fmt", "--all", "--check"])?;
            part(paths, "lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
            part(paths, "tests", &["test", "--workspace", "--locked", "--", &threads()])
        }
        Tier::Root => {
            // The tests with root mostly wait: for leases, pauses, and servers that are silent. What computes runs
            // beside them and gives way. It may first install or build what it checks with.
            let (computed, tested) = thread::scope(|scope| {
                let computing = scope.spawn(|| {
                    give_way();
                    crate::oldest_rust::check(paths)?;
                    crate::deny::check(paths)?;
                    fuzz(paths)
                });
                let threads = threads();
                let only = ["--skip", "vm::", "--skip", "::full_", &threads];
                let tested = part(paths, "tests with root", &[&WITH_ROOT[..], &only].concat());
                (computing.join(), tested)
            });
            tested?;
            computed.map_err(|_| anyhow!("a check beside the tests with root panicked"))?
        }
        Tier::Vm | Tier::Full => {
            let full = tier == Tier::Full;
            crate::demo::build_all(paths, assume_yes)?;
            let mut more = vec!["vm::"];
            if !full {
                more.extend(["--skip", "::full_"]);
            }
            // One judges on one processor while the other mostly waits for boots.
            let (explored, booted) = thread::scope(|scope| {
                let explorer = scope.spawn(|| powercut::run(paths, &powercut_options(full), assume_yes));
                let booted = part(paths, "virtual machines", &[&BOOTS[..], &more].concat());
                (explorer.join(), booted)
            });
            explored.map_err(|_| anyhow!("the power-cut explorer panicked"))??;
            booted?;
            if full {
                part(paths, "tests that take long", &[&WITH_ROOT[..], &["--skip", "vm::", "::full_"]].concat())?;
            }
            Ok(())
        }
    }
}

/// Tests at a time, two for each processor: half of what a test takes is waiting, for servers that are silent and for
/// what is cut in the middle.
fn threads() -> String {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    format!("--test-threads={}", 2 * processors)
}

/// Lets every other thread go first, for this thread and what it starts. Where that fails, it only takes longer.
fn give_way() {
    let nice = rustix::process::nice(GIVE_WAY);
    nice.map_or_else(|error| eprintln!("  the checks do not give way to the tests: {error}"), drop);
}

/// The short run of the fuzz targets.
fn fuzz(paths: &Paths) -> Result<()> {
    eprintln!("== fuzz targets: kept inputs, and what chance makes of them");
    let started = Instant::now();
    crate::fuzz::short(paths)?;
    eprintln!("== fuzz targets: passed in {}", human(started.elapsed()));
    Ok(())
}

/// What is added to the nice value of checks beside tests: a tenth of the share of a test.
const GIVE_WAY: i32 = 10;

/// Two machines at a time, since most of a boot waits: with more, a slow boot is a failure to look into.
const BOOTS: [&str; 9] =
    ["test", "--package", "xtask", "--locked", "--test", "builder", "--", "--include-ignored", "--test-threads=2"];

/// Ignored tests that boot no machine.
const WITH_ROOT: [&str; 6] = ["test", "--workspace", "--tests", "--locked", "--", "--ignored"];

/// Judging takes ten milliseconds a state, booting half a minute; the tests in virtual machines boot after real cuts.
fn powercut_options(full: bool) -> powercut::PowerCutArgs {
    let (states, boots) = if full { (powercut::USUAL_STATES, 8) } else { (1_800, 0) };
    powercut::PowerCutArgs { seed: 1, states, boots, only: None, state: None }
}

/// Runs the tests of the tiers that have `pattern` in their names, and nothing else. A tier without such a test needs
/// nothing.
fn run_only(paths: &Paths, tiers: &[Tier], pattern: &str, assume_yes: bool) -> Result<()> {
    let ignored = names(paths, &["--ignored"])?;
    let plain = &names(paths, &[])? - &ignored;
    let chosen = |tier: &Tier| {
        let all = if *tier == Tier::Unit { &plain } else { &ignored };
        let found = all.iter().filter(|name| belongs(*tier, name) && name.contains(pattern));
        (*tier, found.map(String::as_str).collect::<Vec<_>>())
    };
    let chosen: Vec<(Tier, Vec<&str>)> = tiers.iter().map(chosen).filter(|(_, names)| !names.is_empty()).collect();
    ensure!(!chosen.is_empty(), "no test of {} has {pattern:?} in its name", names_of(tiers));
    prepare(&chosen.iter().map(|(tier, _)| *tier).collect::<Vec<_>>(), assume_yes)?;
    for (tier, names) in &chosen {
        let title = format!("{} of tier {}", if names.len() == 1 { "the test" } else { "the tests" }, name_of(*tier));
        let (boots, others): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.starts_with("vm::"));
        let without: &[&str] = if *tier == Tier::Unit { &WITH_ROOT[..WITH_ROOT.len() - 1] } else { &WITH_ROOT };
        if !others.is_empty() {
            part(paths, &title, &[without, &["--exact"], &others].concat())?;
        }
        if !boots.is_empty() {
            crate::demo::build_all(paths, assume_yes)?;
            part(paths, &title, &[&BOOTS[..], &["--exact"], &boots].concat())?;
        }
    }
    Ok(())
}

fn names_of(tiers: &[Tier]) -> String {
    let names: Vec<String> = tiers.iter().map(|tier| format!("tier {}", name_of(*tier))).collect();
    names.join(", ")
}

/// Whether an ignored test, or for the first tier one that is not, belongs to a tier.
fn belongs(tier: Tier, name: &str) -> bool {
    let (boots, takes_long) = (name.starts_with("vm::"), name.contains("::full_"));
    match tier {
        Tier::Unit => true,
        Tier::Root => !boots && !takes_long,
        Tier::Vm => boots && !takes_long,
        Tier::Full => boots || takes_long,
    }
}

/// The names of all tests of the workspace, or of the ignored ones.
fn names(paths: &Paths, which: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = cargo(paths);
    command.args(["test", "--workspace", "--tests", "--locked", "--quiet", "--", "--list"]).args(which);
    let listed = command.stderr(Stdio::inherit()).output().context("start cargo to list the tests")?;
    ensure!(listed.status.success(), "the tests cannot be listed: cargo ended with {}", listed.status);
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Runs one cargo command with its output shown: it is what a person wants to see of a test.
fn part(paths: &Paths, name: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("== {name}: cargo {}", arguments.join(" "));
    let started = Instant::now();
    let status = cargo(paths).args(arguments).status().with_context(|| format!("start cargo for {name}"))?;
    if !status.success() {
        bail!("{name} failed after {}", human(started.elapsed()));
    }
    eprintln!("== {name}: passed in {}", human(started.elapsed()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{REASONS, Tier, belongs, parts_of};
    use crate::paths::Paths;

    #[test]
    fn tiers_run_once_in_the_order_in_which_they_fail_fastest() {
        assert_eq!(parts_of(&[]), [Tier::Unit, Tier::Root, Tier::Vm]);
        assert_eq!(parts_of(&[Tier::Root, Tier::Unit, Tier::Root]), [Tier::Unit, Tier::Root]);
        for everything in [&[Tier::Full][..], &[Tier::Vm, Tier::Full]] {
            assert_eq!(parts_of(everything), [Tier::Unit, Tier::Root, Tier::Full]);
        }
    }

    #[test]
    fn every_ignored_test_belongs_to_one_tier_of_a_usual_run_or_takes_long() {
        for (name, usual) in [
            ("slots::grub_sees_it", Some(Tier::Root)),
            ("vm::slots::it_boots", Some(Tier::Vm)),
            ("vm::slots::full_it_boots_often", None),
            ("field::cards::full_it_flaps", None),
        ] {
            let found: Vec<Tier> = [Tier::Root, Tier::Vm].into_iter().filter(|tier| belongs(*tier, name)).collect();
            assert_eq!(found, usual.into_iter().collect::<Vec<_>>(), "{name}");
            assert_eq!(belongs(Tier::Full, name), usual != Some(Tier::Root));
        }
    }

    /// The reason and the name of each ignored test of a file.
    fn ignored(text: &str) -> Vec<(String, String)> {
        let after = text.split("#[ignore = \"").skip(1);
        let found = after.filter_map(|rest| {
            let name = rest.split_once("fn ")?.1.split_once('(')?.0;
            Some((rest.split_once('"')?.0.to_owned(), name.to_owned()))
        });
        found.collect()
    }

    #[test]
    fn the_reason_of_an_ignored_test_says_the_tier_that_runs_it() {
        let root = Paths::of_checkout().root;
        let mut seen = 0;
        for folder in ["src", "tests", "xtask"] {
            for entry in walkdir::WalkDir::new(root.join(folder)) {
                let path = entry.unwrap().into_path();
                let boots = path.starts_with(root.join("tests/vm")) || path == root.join("tests/vm.rs");
                if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("xtask/src/test.rs") {
                    continue;
                }
                for (reason, name) in ignored(&std::fs::read_to_string(&path).unwrap()) {
                    seen += 1;
                    let tier = REASONS.iter().position(|known| reason.starts_with(known));
                    let fits = if boots { tier.is_some() } else { matches!(tier, Some(0 | 2)) };
                    assert!(fits, "{}: {name} is ignored with the reason {reason:?}", path.display());
                    // A macro gets its names elsewhere: they begin with `full_` too, or every run would take long.
                    let named = name.starts_with("full_") || name.starts_with('$');
                    assert!(tier != Some(2) || named, "{}: {name}", path.display());
                }
            }
        }
        assert!(seen > 30, "{seen} ignored tests were found");
    }
}
