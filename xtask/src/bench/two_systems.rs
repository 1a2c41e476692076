//! An update of a robot with two systems: what writing the other one costs a program with a timer of 1 kHz beside it,
//! and how long the switch takes, which is all that is left to do before the only restart.
//!
//! This is done by the library in this program, at the priorities of the image's service: no command of the agent
//! writes the systems of a machine that is none. The release comes from a directory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::decide::System;
use reflash::boot::systems::{SystemNumber, Systems};
use reflash::fetch::Directory;
use reflash::flash::target::DeviceTarget;
use reflash::jobs::floor::{Floor, FloorPlaces};
use reflash::jobs::recovery::other::OtherSystem;
use reflash::jobs::recovery::{self, Keep, Policy, RecoveryJob, Resources};
use reflash::jobs::state::StatePartition;
use reflash::jobs::update::stage::OtherParts;
use reflash::jobs::update::{UpdateStore, beside};
use reflash::record::journal::Journal;
use reflash::record::totals::Totals;
use serde::Serialize;

use super::device::{Before, LoopDevice};
use super::staged::{IDLE, StagedCase, StagedLab, Timer};
use super::undo::{BenchRobot, trusted};
use crate::step::run;

/// Boot script of a slot that knows two systems.
const SCRIPT: &str = "set script=3\n";

/// Figures of one update that was written beside the active system and switched to.
#[derive(Debug, Clone, Serialize)]
pub struct TwoSystemsRun {
    pub case: String,
    /// Seconds that writing took, at its pace.
    pub write_s: f64,
    /// Seconds of the switch: everything is compared once more.
    pub switch_s: f64,
    pub download_mb: f64,
    /// Latency of the timer that 999 in 1000 keep to, alone and beside the writing, microseconds.
    pub idle_us: u64,
    pub beside_us: u64,
    /// Whether the other device holds the new image, and the active one still the old, byte for byte.
    pub right: bool,
}

impl TwoSystemsRun {
    /// A line for people.
    pub fn line(&self) -> String {
        format!(
            "{}: the other system written in {:.1} s with {:.1} MB downloaded, switched in {:.2} s; a timer of 1 kHz: \
             99.9 % within {} us beside it, {} us alone, {}",
            self.case,
            self.write_s,
            self.download_mb,
            self.switch_s,
            self.beside_us,
            self.idle_us,
            if self.right { "byte for byte" } else { "and an image is WRONG" }
        )
    }
}

/// Writes an update to the other of two loop devices beside a timer, and switches to it.
pub fn measure(case: &StagedCase<'_>, lab: &StagedLab<'_>) -> Result<TwoSystemsRun> {
    // In a thread of its own, which takes its priority with it when it ends.
    let run = std::thread::scope(|scope| scope.spawn(|| measure_here(case, lab)).join());
    run.unwrap_or_else(|_| bail!("the update of a robot with two systems panicked"))
}

fn measure_here(case: &StagedCase<'_>, lab: &StagedLab<'_>) -> Result<TwoSystemsRun> {
    let keys = trusted(&lab.keys.join("reflash.pub"))?;
    let bytes = case.old.metadata()?.len().max(case.new.metadata()?.len());
    let active = LoopDevice::new(lab.memory, bytes, &Before::Image(case.old.to_owned()), lab.sector_bytes)?;
    let other = LoopDevice::beside(lab.memory, bytes, &Before::Zeros, lab.sector_bytes)?;
    let directory = tempfile::tempdir_in(lab.work).context("make a state partition")?;
    let recovery = directory.path().join("recovery");
    for slot in ["a", "b"] {
        let slot = recovery.join("slots").join(slot);
        fs::create_dir_all(&slot)?;
        fs::write(slot.join("grub.cfg"), SCRIPT)?;
    }
    let state = StatePartition::new(directory.path());
    let target = DeviceTarget::open(Path::new(&active.node))?;
    let robot = BenchRobot { keys: &keys, target: &target, state: &state, tree: lab.served.releases.clone() };
    robot.install("old", Keep::Nothing)?;
    let other_target = DeviceTarget::open(Path::new(&other.node))?;

    let floor = Floor::open(FloorPlaces { state: Some(directory.path().to_owned()), ..FloorPlaces::default() });
    let (source, journal) = (Directory::new(lab.served.releases.clone()), Journal::silent());
    let beside = state.of_system(SystemNumber::Second);
    let look = |systems| OtherSystem::look(&other_target, &beside, systems, Some(&recovery), &keys, &floor);
    let job = robot.job(case.channel, Keep::Nothing, &source, &journal);
    let job = RecoveryJob {
        policy: Policy { active: System::Intact, two_systems: true, ..job.policy },
        resources: Resources { floor: Some(&floor), other: Some(look(Systems::default())), ..job.resources },
        ..job
    };
    let (store, record) = (directory.path().join("store"), job.read_record());
    let release = recovery::fetch_release(&job, record.as_ref()).context("look for the update")?;
    let idle_us = Timer::start(&directory.path().join("idle"))?.latency_after(|| std::thread::sleep(IDLE))?;
    let began = Instant::now();
    let (mut download_bytes, mut written) = (0, Ok(false));
    // The timer starts with the usual priority.
    let timer = Timer::start(&directory.path().join("beside"))?;
    take_priorities_of_the_service()?;
    let beside_us = timer.latency_after(|| {
        let begun = |_: &UpdateStore, totals: Totals| download_bytes = totals.download_bytes;
        written = beside::write_beside(&job, record.as_ref(), &release, &OtherParts::default(), &store, begun);
    })?;
    let write_s = began.elapsed().as_secs_f64();
    ensure!(written.context("write the other system")?, "the other system was not written");
    let began = Instant::now();
    let switched = beside::switch(&job, record.as_ref(), &release, &store).context("switch to the other system")?;
    let switch_s = began.elapsed().as_secs_f64();
    ensure!(switched.is_some(), "GRUB was not switched to the other system");
    drop((target, other_target));
    Ok(TwoSystemsRun {
        case: case.name.to_owned(),
        write_s,
        switch_s,
        download_mb: download_bytes as f64 / 1e6,
        idle_us,
        beside_us,
        right: other.holds(case.new)? && active.holds(case.old)?,
    })
}

/// Gives this thread, and those that it starts from now on, the priorities of the service in an image.
fn take_priorities_of_the_service() -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    run("chrt", Command::new("chrt").args(["--idle", "--pid", "0", &thread]))?;
    run("ionice", Command::new("ionice").args(["-c", "3", "-p", &thread]))
}

/// Refuses a run that left another image, so that no figure of it counts.
pub fn check(run: &TwoSystemsRun) -> Result<()> {
    ensure!(run.right, "{}: a device does not hold its image", run.case);
    Ok(())
}
