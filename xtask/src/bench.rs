//! The benchmark: first flashes and updates, against the machine's own limits and against peers, in one run.
//!
//! docs/benchmark.md describes the method. Every tool takes its turn in every round, so that a machine that slows down
//! slows all of them, and every result is compared with the image byte for byte.

mod args;
mod case;
mod chart;
mod device;
mod images;
mod lab;
mod limits;
mod link;
mod median;
mod peers;
mod report;
mod round;
mod served;
mod staged;
mod two_systems;
mod undo;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::index::Index;
use reflash::release::manifest::{SYSTEM_IMAGE, object_path};

use crate::host_packages::{Need, ensure_installed, is_root};
use crate::paths::{Paths, create_parent};
use crate::step::{output, produced, step};
use crate::{agent, keygen};
pub use args::BenchArgs;
use case::{Case, Peers};
use chart::{Bar, BarKind};
use device::{Before, Memory};
use images::BenchImages;
use lab::Nginx;
use limits::Limits;
use peers::PEERS;
use report::{BEFORE, OURS, Results};
use round::{Bench, OVER_LINKS};
use served::Served;
use staged::{StagedCase, StagedRun};
use two_systems::TwoSystemsRun;
use undo::UndoCase;

const NO_READ_BACK: &str = "--no-read-back";

/// Measures, prints the table, and writes `bench.json`.
///
/// # Errors
/// When something cannot be prepared; a tool that fails is a row of the table.
pub fn run(paths: &Paths, options: &BenchArgs, assume_yes: bool) -> Result<()> {
    ensure!(is_root(), "loop devices need root: run this with sudo");
    ensure_installed(&[Need::Bench], assume_yes)?;
    if !options.quick {
        ensure_installed(&[Need::Peers], assume_yes)?;
    }
    let agent = agent::obtain(paths, assume_yes)?;
    let work = paths.work().join("bench");
    let path = peers::path_with_tools(&work);
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let images = BenchImages::find_or_build(paths, options, assume_yes, &work)?;
    let served = Served::open(work.join(if options.quick { "served-quick" } else { "served" }), &images)?;
    let (cases, undone) = (cases(&images, options), undone(&images, options));
    let beside = staged(&images, options, [("two_systems_stable", "stable"), ("two_systems_large", "large")]);
    let staged = staged(&images, options, [("staged_stable", "stable"), ("staged_large", "large")]);
    for wanted in &options.cases {
        let of_library = undone.iter().map(|case| case.name).chain(staged.iter().chain(&beside).map(|case| case.name));
        let known: Vec<&str> = cases.iter().map(|case| case.name).chain(of_library).collect();
        ensure!(
            known.contains(&wanted.as_str()),
            "there is no case {wanted:?} with these images; docs/benchmark.md lists them"
        );
    }

    let keys = work.join("keys");
    let secret = keys.join("reflash.key");
    if !secret.exists() {
        keygen::generate(&keys, None)?;
    }
    let channels = undone.iter().map(|case| case.channel).chain(staged.iter().chain(&beside).map(|case| case.channel));
    let updates = channels.filter_map(|channel| Some((channel, images.of(channel)?)));
    let published = cases.iter().map(|case| (case.channel, case.image.as_path())).chain(updates);
    served.publish(published, &images.old, &secret)?;
    let memory = Memory::mount(&work.join("memory"))?;
    let link = memory.path().join("target");
    let (mut found, mut missing) = (Vec::new(), BTreeMap::new());
    let mut tools = BTreeMap::from([(
        OURS.to_owned(),
        output(std::process::Command::new(&agent).arg("--version"))?.trim().to_owned(),
    )]);
    for peer in PEERS.iter().filter(|peer| !options.quick || peer.name == peers::YARDSTICK) {
        match peer.version(&path) {
            Some(version) => {
                tools.insert(peer.name.to_owned(), version);
                found.push(*peer);
            }
            None => {
                eprintln!("  {} is not installed: {}", peer.name, peer.install_hint);
                missing.insert(peer.name.to_owned(), peer.install_hint.to_owned());
            }
        }
    }
    for case in &cases {
        for peer in found.iter().filter(|peer| case.fits(peer)) {
            peer.prepare(&case.image, case.channel, &served.peers, &link, &path)?;
        }
    }
    let server = Nginx::start(&served.root, &work)?;
    let agents = std::iter::once((OURS, agent.as_path())).chain(options.before.as_deref().map(|path| (BEFORE, path)));
    let agents: Vec<(&'static str, &Path)> = agents.collect();
    let bench = Bench {
        options,
        work: &work,
        memory: &memory,
        server: &server,
        path: &path,
        served: &served,
        keys: &keys,
        agents: &agents,
        peers: &found,
    };
    PEERS[0].prepare(&images.old, "old", &served.peers, &link, &path)?;
    let index = index_of(&served, "old")?;
    let (mut limits, mut runs, mut undo) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fetched, mut two_systems): (Vec<StagedRun>, Vec<TwoSystemsRun>) = (Vec::new(), Vec::new());
    for round in 1..=if options.quick { 1 } else { options.runs } {
        // In every round too: what the machine can do drifts like everything else.
        lab::warm([served.releases.clone(), served.peers.join("old.zst")])?;
        limits.push(step(&format!("{round}: measure the machine"), || {
            limits::measure(&images.old, &index, &served.releases, &memory, &format!("{}/peers/old.zst", server.url()))
        })?);
        for case in &cases {
            runs.extend(bench.turns(case, round)?);
        }
        for case in &undone {
            undo.push(bench.undo(case, round)?);
        }
        for case in &staged {
            fetched.push(bench.staged(case, round, &agent)?);
        }
        for case in &beside {
            two_systems.push(bench.beside(case, round, &agent)?);
        }
    }
    for mbit_s in options.links() {
        for case in cases.iter().filter(|case| OVER_LINKS.contains(&case.name)) {
            runs.extend(bench.over_link(case, mbit_s)?);
        }
    }
    let limits = Limits::median(&limits);
    let results = Results {
        machine: machine()?,
        tools,
        missing,
        images: images.sizes()?,
        limits,
        runs,
        undo,
        staged: fetched,
        two_systems,
    };
    println!("{}", results.table());
    results.undo.iter().for_each(|run| println!("{}", run.line()));
    results.staged.iter().for_each(|run| println!("{}", run.line()));
    results.two_systems.iter().for_each(|run| println!("{}", run.line()));
    results.undo.iter().try_for_each(undo::check)?;
    results.staged.iter().try_for_each(staged::check)?;
    results.two_systems.iter().try_for_each(two_systems::check)?;
    let json = &options.json.clone().unwrap_or_else(|| paths.dist().join("bench.json"));
    create_parent(json)?;
    fs::write(json, serde_json::to_string_pretty(&results.json())? + "\n")
        .with_context(|| format!("write {}", json.display()))?;
    produced("every run", json);
    if let Some(directory) = &options.charts {
        draw(&results, directory)?;
    }
    Ok(())
}

/// The index of what a channel offers.
fn index_of(served: &Served, channel: &str) -> Result<Index> {
    let manifest = fs::read(served.releases.join(channel).join("manifest.json"))?;
    let manifest: reflash::release::manifest::Manifest = serde_json::from_slice(&manifest)?;
    let object = fs::read(served.releases.join(object_path(&manifest.image(SYSTEM_IMAGE)?.index.blake3)))?;
    Ok(Index::from_object(&object)?)
}

fn cases(images: &BenchImages, options: &BenchArgs) -> Vec<Case> {
    let old = || images.old.clone();
    let case = |name, before, options, peers| Case { name, before, image: old(), channel: "old", options, peers };
    let over = |name, before| Some(case(name, before, "", Peers::None));
    let update = |name, image: &Option<PathBuf>, channel, peers| {
        let before = Before::Image(old());
        Some(Case { image: image.clone()?, channel, ..case(name, before, "", peers) })
    };
    let all = [
        Some(case("fresh", Before::Zeros, NO_READ_BACK, Peers::Fresh)),
        over("fresh_readback", Before::Zeros),
        update("update_stable", &images.stable, "stable", Peers::Updating),
        update("update_rebuilt", &images.new, "new", Peers::Updating),
        update("update_large", &images.large, "large", Peers::None),
        over("unchanged", Before::Image(old())),
        over("one_byte_changed", Before::OneByteChanged(old())),
        over("everything_changed", Before::EveryBlockChanged(old())),
        over("random_bytes_before", Before::RandomBytes),
    ];
    let wanted = |case: &Case| options.cases.is_empty() || options.cases.iter().any(|name| name == case.name);
    all.into_iter().flatten().filter(wanted).collect()
}

/// The updates that are taken back.
fn undone<'a>(images: &'a BenchImages, options: &BenchArgs) -> Vec<UndoCase<'a>> {
    let all = [("undo_stable", "stable"), ("undo_large", "large")];
    let wanted = |name: &str| options.cases.is_empty() || options.cases.iter().any(|wanted| wanted == name);
    let there = all.into_iter().filter(|(name, channel)| wanted(name) && images.of(channel).is_some());
    there.map(|(name, channel)| UndoCase { name, channel, old: &images.old }).collect()
}

/// The updates that are fetched while a system works, and those that are written to the other of two systems.
fn staged<'a>(
    images: &'a BenchImages,
    options: &BenchArgs,
    kind: [(&'static str, &'static str); 2],
) -> Vec<StagedCase<'a>> {
    let wanted = |name: &str| options.cases.is_empty() || options.cases.iter().any(|wanted| wanted == name);
    let case = |(name, channel)| {
        let new = images.of(channel).filter(|_| wanted(name))?;
        Some(StagedCase { name, channel, old: &images.old, new })
    };
    kind.into_iter().filter_map(case).collect()
}

fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(format!("{cores} cores of {}", model.trim_start_matches([' ', '\t', ':'])))
}

fn draw(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for (file, case, title, unit) in [
        ("fresh.svg", "fresh", "First flash of an image", "seconds"),
        ("update.svg", "update_stable", "Small update", "seconds"),
        ("update-download.svg", "update_stable", "Small update, download", "MB"),
        ("rebuilt-download.svg", "update_rebuilt", "Small update of an image built anew, download", "MB"),
    ] {
        let rows = results.rows().into_iter().filter(|(other, _)| other == case);
        let value =
            |tool: &str| results.median(case, tool, |cost| if unit == "MB" { cost.download_mb } else { cost.wall_s });
        let kind = |tool: &str| if tool == OURS { BarKind::Ours } else { BarKind::Other };
        let mut bars: Vec<Bar> =
            rows.filter_map(|(_, tool)| Some(Bar { value: value(&tool)?, kind: kind(&tool), label: tool })).collect();
        if unit == "seconds" && !bars.is_empty() {
            let value = results.limits.least_s(case);
            bars.push(Bar { label: "this machine's limit".to_owned(), value, kind: BarKind::Limit });
        }
        bars.sort_by(|one, other| one.value.total_cmp(&other.value));
        if !bars.is_empty() {
            let path = directory.join(file);
            fs::write(&path, chart::bars(title, unit, &bars)).with_context(|| format!("write {}", path.display()))?;
            produced("chart", &path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PEERS, Peers, cases};
    use crate::bench::BenchArgs;
    use crate::bench::images::BenchImages;

    #[test]
    fn cases_that_need_an_image_are_left_out_without_it() {
        let mut options = BenchArgs {
            old: None,
            new: None,
            stable: None,
            large: None,
            runs: 1,
            cases: Vec::new(),
            quick: true,
            sector_bytes: 512,
            json: None,
            charts: None,
            before: None,
            links: Vec::new(),
        };
        let images = BenchImages { old: "old".into(), new: Some("new".into()), stable: None, large: None };
        let names = |options: &BenchArgs| cases(&images, options).iter().map(|case| case.name).collect::<Vec<_>>();
        assert!(names(&options).contains(&"update_rebuilt") && !names(&options).contains(&"update_stable"));
        options.cases = vec!["unchanged".into(), "fresh".into(), "no such case".into()];
        assert_eq!(names(&options), ["fresh", "unchanged"]);
        let fresh = &cases(&images, &options)[0];
        assert!(fresh.peers == Peers::Fresh && PEERS.iter().filter(|peer| fresh.fits(peer)).count() == 6);
    }
}
