//! An update of a robot with two systems, cut at every instant: the running system writes the other one, GRUB is
//! switched to it, and it calls itself good. In every state GRUB starts a system that is whole, without a recovery.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::decide::Reason;
use reflash::boot::grubenv::GrubEnv;
use reflash::boot::systems::{SystemNumber, Systems};
use reflash::jobs::floor::{Floor, FloorPlaces};
use reflash::jobs::state::StatePartition;
use reflash::jobs::systems;

use super::disk::{DiskState, Region, region};
use super::explore::{Counts, StateKind, explore, subsets_per_write};
use super::grub::{Choice, choose};
use super::judge::ReleaseUnderTest;
use super::lab::{Lab, TWO_SYSTEMS};
use super::log::{self, LogEntry};
use super::scratch::{Environments, Scratch};
use crate::demo::{self, FLASH_TIMEOUT};
use crate::vm::VirtualMachine;

/// Longest time for a command in the running system.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);
/// What the tiny system does not bring up by itself.
const COME_UP: &str = "mkdir -p /var/lib; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; \
     ip route add default via 10.0.2.2; echo networ'k-up'\n";

/// Recording of an update from the first system to the second.
pub struct UpdateRecording {
    base: DiskState,
    entries: Vec<LogEntry>,
    /// The releases on the first and on the second system.
    releases: [ReleaseUnderTest; 2],
}

impl UpdateRecording {
    /// Has a robot with two systems be installed, and log what its update writes, from the power-on before it.
    ///
    /// # Errors
    /// Fails when the robot does not do it.
    pub(super) fn record(lab: &Lab, assume_yes: bool) -> Result<Self> {
        let (tree, disk) = (lab.directory.join("release-two-systems"), lab.directory.join("two-systems.img"));
        std::fs::create_dir_all(&tree)?;
        let (_server, url) = demo::serve_to_guests(&tree)?;
        lab.make_disk(TWO_SYSTEMS, &url, &disk, assume_yes)?;
        let first = lab.publish(0, &tree)?;
        let mut installing = VirtualMachine::robot("power-cut-two-systems", &disk).start()?;
        installing.wait_for("tiny system 1 is up", FLASH_TIMEOUT)?;
        installing.cut_power();
        let second = lab.publish(1, &tree)?;
        // What lies beyond the images is written too: nothing is kept there of another release.
        let base = DiskState {
            state: region(&disk, "state", u64::MAX)?,
            system: region(&disk, "system", u64::MAX)?,
            recovery: region(&disk, "recovery", u64::MAX)?,
            kept: region(&disk, "system2", u64::MAX)?,
        };
        let written = lab.directory.join("log-two-systems");
        std::fs::File::create(&written)?;
        let mut machine = VirtualMachine::robot("power-cut-record-two-systems", &disk);
        machine.write_log = Some(written.clone());
        let mut robot = machine.start()?;
        robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT)?;
        robot.type_text(COME_UP)?;
        robot.wait_for("network-up", COMMAND_TIMEOUT)?;
        robot.type_text("reflash update --apply\n")?;
        robot.wait_for("the next start is of it", FLASH_TIMEOUT)?;
        robot.wait_for("tiny system 2 is up", FLASH_TIMEOUT)?;
        robot.cut_power();
        let this = Self { base, entries: log::read(&written)?, releases: [first, second] };
        let mut end = this.base.clone();
        for entry in &this.entries {
            if let LogEntry::Write { offset, data, .. } = entry {
                end.write(*offset, data)?;
            }
        }
        ensure!(this.is_whole(&end, SystemNumber::Second), "the second system does not hold the release in the end");
        Ok(this)
    }

    /// Judges about so many states.
    ///
    /// # Errors
    /// Fails at the first state in which GRUB starts anything but a whole system.
    pub(super) fn explore(&self, lab: &Lab, seed: u64, states: usize) -> Result<Counts> {
        let mut judge = Judge::new(self, lab)?;
        let subsets = subsets_per_write(&self.entries, states);
        let counts = explore(&self.entries, &mut self.base.clone(), seed, subsets, |disk, kind, state| {
            judge.judge(disk, kind).with_context(|| format!("state {state} ({kind:?}) of the update of two systems"))
        })?;
        let mut endings: Vec<_> = judge.endings.iter().collect();
        endings.sort();
        endings.iter().for_each(|(ending, count)| eprintln!("  {count:6} {ending}"));
        for wanted in ["system 1 starts", "system 2 starts, on trial", "system 2 starts"] {
            ensure!(judge.endings.contains_key(wanted), "no state in which {wanted}: the recording lacks something");
        }
        Ok(counts)
    }

    /// Checks that the judge refuses a disk that ignores flushes.
    ///
    /// # Errors
    /// Fails when it does not.
    pub(super) fn must_fail_without_flushes(&self, lab: &Lab, seed: u64, states: usize) -> Result<()> {
        let without: Vec<LogEntry> = self.entries.iter().filter(|entry| **entry != LogEntry::Flush).cloned().collect();
        let mut judge = Judge::new(self, lab)?;
        let subsets = subsets_per_write(&without, states);
        // As torn states, so that a state partition that does not mount is no fault.
        let judged =
            explore(&without, &mut self.base.clone(), seed, subsets, |disk, _, _| judge.judge(disk, StateKind::Torn));
        match judged {
            Err(error) => {
                eprintln!("  the judge refuses it, as it must: {error:#}");
                Ok(())
            }
            Ok(counts) => bail!("{} states of a disk that ignores flushes all end well", counts.total()),
        }
    }

    /// Whether a system holds every byte of its release.
    fn is_whole(&self, disk: &DiskState, number: SystemNumber) -> bool {
        let (region, release) = match number {
            SystemNumber::First => (&disk.system, &self.releases[0]),
            SystemNumber::Second => (&disk.kept, &self.releases[1]),
        };
        region.content.starts_with(&release.image)
    }
}

/// Judge of the states of one recording.
struct Judge<'a> {
    recording: &'a UpdateRecording,
    lab: &'a Lab,
    scratch: Scratch,
    environments: Environments,
    /// What the agent finds on a state partition.
    agents: HashMap<u64, Option<Found>>,
    endings: HashMap<String, u64>,
}

/// What the agent finds on a state partition that mounts.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// The system that it takes for the active one.
    active: SystemNumber,
    /// Whether each system has a record, and of the release that the recording puts there.
    records: [bool; 2],
}

impl<'a> Judge<'a> {
    fn new(recording: &'a UpdateRecording, lab: &'a Lab) -> Result<Self> {
        let (environments, agents, endings) = Default::default();
        Ok(Self { recording, lab, scratch: Scratch::new()?, environments, agents, endings })
    }

    fn judge(&mut self, disk: &DiskState, kind: StateKind) -> Result<()> {
        let environment = self.environments.read(&disk.state, &self.scratch)?;
        let env = environment.as_deref().and_then(|block| GrubEnv::parse(block).ok()).unwrap_or_default();
        let Systems { active, on_trial, .. } = Systems::of(&env);
        let found = self.agent(&disk.state)?;
        ensure!(found.is_some() || kind == StateKind::Torn, "the state partition does not mount, and nothing was torn");
        let whole = |number| self.recording.is_whole(disk, number);
        let how = match choose(environment.as_deref()) {
            Choice::System(_) => {
                ensure!(whole(active), "GRUB starts system {}, which is not whole", active.name());
                ensure!(
                    !on_trial || whole(active.other()),
                    "GRUB goes back to system {}, which is not whole",
                    active.other().name()
                );
                format!("system {} starts{}", active.name(), if on_trial { ", on trial" } else { "" })
            }
            // A sector that was torn, or cannot be read: recovery looks for the system that was good last.
            Choice::Recovery(Reason::EnvLost) if kind == StateKind::Torn => {
                let active = found.map_or(SystemNumber::First, |found| found.active);
                ensure!(
                    whole(active),
                    "the environment is lost, and system {}, which is not whole, counts",
                    active.name()
                );
                format!("recovery without an environment finds system {}", active.name())
            }
            other => bail!("GRUB starts {other:?}"),
        };
        for (number, is_recorded) in [SystemNumber::First, SystemNumber::Second]
            .into_iter()
            .zip(found.map(|found| found.records).unwrap_or_default())
        {
            ensure!(!is_recorded || whole(number), "system {} is recorded, and not whole", number.name());
        }
        *self.endings.entry(how).or_default() += 1;
        Ok(())
    }

    /// What the agent finds once the kernel has mounted the partition; `None` where it does not mount.
    fn agent(&mut self, state: &Region) -> Result<Option<Found>> {
        if let Some(known) = self.agents.get(&state.fingerprint) {
            return Ok(*known);
        }
        self.scratch.write(&state.content)?;
        let found = match self.scratch.mount() {
            Err(_) => None,
            Ok(mounted) => {
                let state = StatePartition::new(&mounted.0);
                let places = FloorPlaces { state: Some(mounted.0.clone()), ..FloorPlaces::default() };
                let good = Floor::open(places).record().good.map(|good| good.release);
                let serials = [SystemNumber::First, SystemNumber::Second].map(|number| {
                    state.of_system(number).record(&self.lab.trusted).map(|record| record.manifest().serial)
                });
                let releases = &self.recording.releases;
                let records = [0, 1].map(|at| serials[at] == Some(releases[at].serial));
                ensure!(
                    records.iter().zip(serials).all(|(known, serial)| *known || serial.is_none()),
                    "a record names another release: {serials:?}"
                );
                Some(Found { active: systems::look(&state, good)?.active, records })
            }
        };
        self.agents.insert(state.fingerprint, found);
        Ok(found)
    }
}
