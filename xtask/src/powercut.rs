//! The power-cut explorer: what would a power cut leave, at any instant of a recovery, and does the machine come back?
//!
//! A virtual robot with the real GRUB, kernel and agent recovers while QEMU logs every write and flush of its whole
//! disk. Then every state that a cut could have left is put together from that log and judged.

mod args;
mod boot_code;
mod boot_sample;
mod disk;
pub mod explore;
mod grub;
mod judge;
mod kept;
mod lab;
mod log;
mod lose;
mod scratch;
mod two_systems;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::grubenv::names;

use crate::demo::FLASH_TIMEOUT;
use crate::disk as robot_disk;
use crate::host_packages::{Need, ensure_installed, is_root};
use crate::paths::Paths;
use crate::step::{human, run as run_tool, step};
use crate::vm::VirtualMachine;

pub use args::{PowerCutArgs, USUAL_STATES};
use boot_code::SwitchRecording;
use disk::{DiskState, region};
use explore::{Counts, StateKind, explore};
use judge::Judge;
use lab::Lab;
use log::LogEntry;
pub use lose::{Lost, lose_unflushed};
use two_systems::UpdateRecording;

/// Number of states that all recordings together have to yield: the check must not pass because a recording failed to
/// record.
const ENOUGH_STATES: u64 = 10_000;
/// Value of `boot.recoveries` where nothing else is configured.
const BUDGET: u32 = 3;

/// Names of the recordings, in order: each begins where the one before ended.
const RECORDINGS: [&str; 4] = ["first flash", "update", "repair", "failing tries and undo"];
/// Number of the recording that needs no machine: the switch of boot code.
const BOOT_CODE: usize = RECORDINGS.len();
/// About how many of its states are judged.
const BOOT_CODE_STATES: usize = 3000;
/// Number of the recording with a disk of its own: the update of a robot with two systems.
const TWO_SYSTEMS: usize = BOOT_CODE + 1;

/// Records, explores, and boots a sample.
///
/// # Errors
/// Fails at the first state that does not end well.
pub fn run(paths: &Paths, options: &PowerCutArgs, assume_yes: bool) -> Result<()> {
    ensure!(is_root(), "states are mounted to look into them: run this as root");
    ensure_installed(&[Need::Agent, Need::Initramfs, Need::Disk, Need::Vm], assume_yes)?;
    let started = Instant::now();
    let mut lab = Lab::new(paths, assume_yes)?;
    let mut counts = Counts::default();
    for (number, name) in RECORDINGS.iter().enumerate() {
        let wanted = options.only.or(options.state.map(|(wanted, _)| wanted));
        // Each begins where the one before ended, but the switch of boot code, which comes last, with none of them.
        if wanted.is_some_and(|wanted| wanted >= BOOT_CODE) || wanted.is_some_and(|wanted| wanted < number) {
            break;
        }
        // A repair leads back to where the update has ended.
        if options.only == Some(3) && number == 2 {
            continue;
        }
        let recording = step(&format!("record the {name}"), || lab.record(number, options.states))?;
        if wanted.is_some_and(|wanted| wanted != number) {
            continue;
        }
        eprintln!("{name}: {} writes, {} flushes", recording.writes(), recording.flushes());
        let found = step(&format!("judge every state of the {name}"), || recording.explore(&lab, options))?;
        counts.prefixes += found.prefixes;
        counts.reordered += found.reordered;
        counts.torn += found.torn;
        step("the same log without its flushes must not pass", || recording.must_fail_without_flushes(&lab, options))?;
        if options.boots > 0 {
            step(&format!("boot {} states", options.boots), || recording.boot_sample(&lab, options))?;
        }
    }
    if options.state.is_none() && options.only.is_none_or(|only| only == BOOT_CODE) {
        let switch = step("record the switch of boot code", || SwitchRecording::record(&lab.disk(), &lab.grub))?;
        let found =
            step("judge every state of the switch of boot code", || switch.explore(options.seed, BOOT_CODE_STATES))?;
        counts.prefixes += found.prefixes;
        counts.reordered += found.reordered;
        counts.torn += found.torn;
        step("the same log without its flushes must not pass", || {
            switch.must_fail_without_flushes(options.seed, BOOT_CODE_STATES)
        })?;
    }
    if options.state.is_none() && options.only.is_none_or(|only| only == TWO_SYSTEMS) {
        let update = step("record the update of two systems", || UpdateRecording::record(&lab, assume_yes))?;
        let states = options.states / 2;
        let found =
            step("judge every state of the update of two systems", || update.explore(&lab, options.seed, states))?;
        counts.prefixes += found.prefixes;
        counts.reordered += found.reordered;
        counts.torn += found.torn;
        step("the same log without its flushes must not pass", || {
            update.must_fail_without_flushes(&lab, options.seed, states)
        })?;
    }
    let Counts { prefixes, reordered, torn } = counts;
    if options.state.is_none() && options.only.is_none() {
        let found = counts.total();
        ensure!(
            found >= ENOUGH_STATES,
            "only {found} states were found, and {ENOUGH_STATES} are needed for a meaningful result"
        );
    }
    eprintln!(
        "seed {}, {} states of the first flash; {prefixes} prefixes, {reordered} reorderings, {torn} torn; {}",
        options.seed,
        options.states,
        human(started.elapsed())
    );
    println!("{} states", counts.total());
    Ok(())
}

impl Lab {
    /// Lets the robot do the `number`-th thing of [`RECORDINGS`], and logs what that writes; the first one for about so
    /// many states.
    fn record(&mut self, number: usize, states: usize) -> Result<Recording> {
        let disk = self.disk();
        match number {
            0 => {
                let first = self.publish(0, &self.tree())?;
                self.releases.push(first);
            }
            1 => {
                let second = self.publish(1, &self.tree())?;
                self.releases.push(second);
                robot_disk::change_environment(&disk, &[(names::NEXT_ENTRY, "recovery")])?;
            }
            3 => {
                let third = self.publish(2, &self.tree())?;
                self.releases.push(third);
                robot_disk::change_environment(&disk, &[(names::NEXT_ENTRY, "recovery")])?;
            }
            _ => {
                // A system that GRUB cannot read leads to recovery: the superblock's chunk and some others are damaged.
                let start = robot_disk::partition_range(&disk, "system")?.start;
                let file = File::options().write(true).open(&disk)?;
                for mib in [0, 3, 9, 15] {
                    file.write_all_at(&[0xdb; 256 * 1024], start + mib * 1024 * 1024)?;
                }
            }
        }
        let image_bytes = self.releases[0].image.len() as u64;
        let base = DiskState {
            state: region(&disk, "state", u64::MAX)?,
            system: region(&disk, "system", image_bytes)?,
            recovery: region(&disk, "recovery", u64::MAX)?,
            kept: kept::end_of_system(&disk)?,
        };
        let log = self.directory.join(format!("log-{number}"));
        File::create(&log)?;
        let mut machine = VirtualMachine::robot(&format!("power-cut-record-{number}"), &disk);
        machine.write_log = Some(log.clone());
        let mut robot = machine.start()?;
        if number == 3 {
            // Each of its tries, which GRUB counts down.
            (0..3).try_for_each(|_| robot.wait_for("does not call itself good", FLASH_TIMEOUT).map(drop))?;
        }
        robot.wait_for("is up", FLASH_TIMEOUT)?;
        robot.cut_power();
        let entries = log::read(&log)?;
        let (old, new) = [(None, 0), (Some(0), 1), (Some(1), 1), (Some(1), 2)][number];
        // Where a recovery is renewed, GRUB's code reads each state, which takes ten times as long.
        let states = if number == 0 { states } else { 0 };
        let subsets = explore::subsets_per_write(&entries, states);
        Ok(Recording { number, base, entries, subsets, old, new })
    }
}

/// Recording of what a robot wrote from power-on until its system was up.
struct Recording {
    number: usize,
    base: DiskState,
    entries: Vec<LogEntry>,
    /// Number of random subsets tried for each write in flight.
    subsets: usize,
    old: Option<usize>,
    new: usize,
}

impl Recording {
    fn writes(&self) -> usize {
        self.entries.len() - self.flushes()
    }

    fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| **entry == LogEntry::Flush).count()
    }

    fn judge<'a>(&self, lab: &'a Lab) -> Result<Judge<'a>> {
        let old = self.old.map(|number| &lab.releases[number]);
        let mut judge = Judge::new(old, &lab.releases[self.new], lab.tree(), &lab.trusted, BUDGET, &lab.recoveries)?;
        let kept = kept::in_the_end(&self.base, &self.entries, &lab.trusted)?;
        judge.undoes = old.is_some_and(|old| kept == Some(old.serial) && old.serial != judge.new.serial);
        judge.floor = judge.floor_of(&self.base)?;
        // What called itself good raised the floor, on both partitions, before the power was cut.
        let mut end = self.base.clone();
        for entry in &self.entries {
            if let LogEntry::Write { offset, data, .. } = entry {
                end.write(*offset, data)?;
            }
        }
        let good = if self.number == 3 { old } else { Some(judge.new) };
        let (floor, good) = (judge.floor_of(&end)?, good.map_or(0, |good| good.serial));
        ensure!(floor == good, "the floor is {floor} after a good boot of release {good}");
        Ok(judge)
    }

    fn explore(&self, lab: &Lab, options: &PowerCutArgs) -> Result<Counts> {
        let mut judge = self.judge(lab)?;
        let wanted = options.state.map(|(_, state)| state);
        let counts =
            explore(&self.entries, &mut self.base.clone(), options.seed, self.subsets, |disk, kind, state| {
                if wanted.is_some_and(|wanted| wanted != state) {
                    return Ok(());
                }
                if wanted.is_some() {
                    let path = lab.directory.join("state.img");
                    self.write_out(lab, disk, &path)?;
                    eprintln!("  state {state} ({kind:?}) is in {}", path.display());
                }
                judge.judge(disk, kind).with_context(|| {
                    format!(
                        "state {state} ({kind:?}) of the {}; look at it with --seed {} --state {}:{state}",
                        RECORDINGS[self.number], options.seed, self.number
                    )
                })
            })?;
        let mut endings: Vec<_> = judge.endings.iter().collect();
        endings.sort();
        for (ending, count) in endings {
            eprintln!("  {count:6} {ending}");
        }
        eprintln!("  {:6} of them really recovered by the agent's own code", judge.recovered);
        eprintln!("  {:6} of them really undone by it, without a network", judge.undone);
        Ok(counts)
    }

    /// Checks that the judge refuses a disk that ignores flushes: a judge that accepts it would accept everything.
    fn must_fail_without_flushes(&self, lab: &Lab, options: &PowerCutArgs) -> Result<()> {
        let without: Vec<LogEntry> = self.entries.iter().filter(|entry| **entry != LogEntry::Flush).cloned().collect();
        let mut judge = self.judge(lab)?;
        // The states are judged as torn, so that a state partition that does not mount is no fault either: the fault to
        // be found is a system that would start half-written.
        let judged = explore(&without, &mut self.base.clone(), options.seed, self.subsets, |disk, _, _| {
            judge.judge(disk, StateKind::Torn)
        });
        match judged {
            Err(error) => {
                eprintln!("  the judge refuses it, as it must: {error:#}");
                Ok(())
            }
            Ok(counts) => {
                bail!("{} states of a disk that ignores flushes all end well: the judge is blind", counts.total())
            }
        }
    }

    /// Writes a whole disk in this state to `path`.
    fn write_out(&self, lab: &Lab, disk: &DiskState, path: &Path) -> Result<()> {
        run_tool("copy-disk", Command::new("cp").arg("--sparse=always").arg(lab.disk()).arg(path))?;
        let file = File::options().write(true).open(path)?;
        for region in [&disk.state, &disk.system, &disk.recovery, &disk.kept] {
            file.write_all_at(&region.content, region.start)?;
        }
        Ok(())
    }
}
