//! A sample of the states, started in virtual machines.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::args::PowerCutArgs;
use super::disk::region;
use super::explore::{Random, explore};
use super::{Lab, RECORDINGS, Recording};
use crate::demo::{BOOT_TIMEOUT, FLASH_TIMEOUT};
use crate::size::to_usize;
use crate::vm::VirtualMachine;

impl Recording {
    /// Starts real machines from states drawn at random, until their systems are up.
    pub(super) fn boot_sample(&self, lab: &Lab, options: &PowerCutArgs) -> Result<()> {
        let mut total = 0;
        explore(&self.entries, &mut self.base.clone(), options.seed, self.subsets, |_, _, state| {
            total = state;
            Ok(())
        })?;
        let mut random = Random(options.seed);
        let drawn: Vec<u64> = (0..options.boots).map(|_| 1 + random.below(to_usize(total)) as u64).collect();
        let mut states: HashMap<u64, PathBuf> = HashMap::new();
        explore(&self.entries, &mut self.base.clone(), options.seed, self.subsets, |disk, _, state| {
            if drawn.contains(&state) {
                let path = lab.directory.join(format!("boot-{}-{state}.img", self.number));
                self.write_out(lab, disk, &path)?;
                states.insert(state, path);
            }
            Ok(())
        })?;
        for (state, path) in states {
            let name = format!("power-cut-{}-{state}", self.number);
            let mut robot = VirtualMachine::robot(&name, &path).start()?;
            let up = robot.wait_for("is up", FLASH_TIMEOUT + BOOT_TIMEOUT);
            robot.cut_power();
            up.with_context(|| format!("boot state {state} of the {}", RECORDINGS[self.number]))?;
            let system = region(&path, "system", lab.releases[0].image.len() as u64)?;
            let known = [self.old, Some(self.new)].into_iter().flatten();
            let same = known.into_iter().any(|number| lab.releases[number].image == system.content);
            ensure!(same, "state {state}: the system that is up is neither the old nor the new one");
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}
