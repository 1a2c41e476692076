//! Judge of whether a state that a cut left ends well: what GRUB then starts, what the agent finds, decides and plans,
//! and, for a sample, what the agent's recovery really makes of the disk.

mod floor;
mod subject;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::decide::{self, BootDecision, KeptRelease, Reason, Recoveries, SafeStarts, Situation, System};
use reflash::boot::grubenv::names;
use reflash::boot::request::RecoveryRequest;
use reflash::boot::slots::{FILES, Slot};
use reflash::boot::worth::Worth;
use reflash::chain::chain;
use reflash::fetch::Directory;
use reflash::flash::plan::{Comparison, Plan, Reuse};
use reflash::jobs::floor::{Floor, FloorPlaces};
use reflash::jobs::recovery::{self, InstalledRelease, Keep, Policy, RecoveryJob, Resources};
use reflash::jobs::state::{InstalledRecord, StatePartition};
use reflash::record::blackbox::BlackBox;
use reflash::record::journal::Journal;
use reflash::release::digest::{Digest, block_hash};
use reflash::release::index::{ChunkNo, Index};
use reflash::release::manifest::TrustedKeys;

use self::floor::KnownFloors;
pub use self::subject::{ReleaseUnderTest, SlotFiles};
use super::disk::{BLOCK_BYTES, DiskState, Region};
use super::explore::StateKind;
use super::grub::{Choice, choose, choose_recovery, choose_slot};
use super::kept::{self, SystemPartition};
use super::scratch::{Environments, Scratch};
use crate::size::{to_range, to_usize};

/// Interval at which the states that lead to a download are really recovered.
const RECOVER_EVERY: u64 = 48;
/// The same for the states that are taken back.
const UNDO_EVERY: u64 = 24;

/// Value of `boot.tries` where nothing else is configured.
const TRIES: u8 = 3;

/// Releases and limits that states are judged by.
pub struct Judge<'a> {
    /// The release that was installed before, if any.
    pub old: Option<&'a ReleaseUnderTest>,
    /// The release that is offered.
    pub new: &'a ReleaseUnderTest,
    /// Release tree on disk.
    pub tree: PathBuf,
    /// Keys that the releases are signed with.
    pub keys: &'a TrustedKeys,
    /// Number of automatic recoveries to one release, `boot.recoveries`.
    pub budget: u32,
    /// Every recovery that may be in a slot.
    pub recoveries: &'a [SlotFiles],
    scratch: Scratch,
    recovery_scratch: Scratch,
    environments: Environments,
    agents: HashMap<u64, Found>,
    floors: KnownFloors,
    kept: HashMap<u64, Option<u64>>,
    chunks: HashMap<(u64, ChunkNo, u64), bool>,
    slots: HashMap<(u64, Slot, usize), Option<Digest>>,
    /// Digests of file contents, by the hash of the blocks that hold them.
    contents: HashMap<u64, Digest>,
    fetches: u64,
    undos: u64,
    /// States that were really recovered.
    pub recovered: u64,
    /// Highest serial that was good before the recording: the floor, which must not fall.
    pub floor: u64,
    /// Whether the old release is kept before anything of the new one is written.
    pub undoes: bool,
    /// States from which the update was really taken back.
    pub undone: u64,
    /// Counts of how states went on, by what GRUB started and why.
    pub endings: HashMap<String, u64>,
}

/// Findings of the agent on the state partition.
#[derive(Debug, Clone, Default)]
struct Found {
    /// Whether the partition did not mount; the agent then makes it anew, empty.
    lost: bool,
    installed: Option<u64>,
    recoveries: Recoveries,
    worth: Worth,
    safe_starts_made: u16,
    floor: u64,
    request: Option<RecoveryRequest>,
}

impl<'a> Judge<'a> {
    /// Makes a judge that works in a directory of its own.
    ///
    /// # Errors
    /// Fails when there is no room for the directory.
    pub fn new(
        old: Option<&'a ReleaseUnderTest>,
        new: &'a ReleaseUnderTest,
        tree: PathBuf,
        keys: &'a TrustedKeys,
        budget: u32,
        recoveries: &'a [SlotFiles],
    ) -> Result<Self> {
        Ok(Self {
            old,
            new,
            tree,
            keys,
            budget,
            recoveries,
            scratch: Scratch::new()?,
            recovery_scratch: Scratch::new()?,
            environments: Environments::default(),
            agents: HashMap::new(),
            floors: KnownFloors::default(),
            kept: HashMap::new(),
            chunks: HashMap::new(),
            slots: HashMap::new(),
            contents: HashMap::new(),
            fetches: 0,
            undos: 0,
            recovered: 0,
            floor: 0,
            undoes: false,
            undone: 0,
            endings: HashMap::new(),
        })
    }

    /// The floor of a disk, from all places on it.
    ///
    /// # Errors
    /// Fails when the disk cannot be looked at.
    pub fn floor_of(&mut self, disk: &DiskState) -> Result<u64> {
        let on_recovery = self.floors.of(&disk.recovery, &mut self.recovery_scratch)?;
        Ok(self.agent(&disk.state)?.floor.max(on_recovery))
    }

    /// Judges one state.
    ///
    /// # Errors
    /// Fails with the reason why the state does not end well.
    pub fn judge(&mut self, disk: &DiskState, kind: StateKind) -> Result<()> {
        let environment = self.environments.read(&disk.state, &self.scratch)?;
        let choice = choose(environment.as_deref());
        self.judge_slot(disk, environment.as_deref(), kind)?;
        let found = self.agent(&disk.state)?;
        // ext4's journal protects against whole sectors that come late or never, not against a superblock of two
        // halves.
        ensure!(!found.lost || kind == StateKind::Torn, "the state partition does not mount, and nothing was torn");
        let floor = self.floor_of(disk)?;
        ensure!(floor >= self.floor, "the floor fell from {} to {floor}", self.floor);
        let how = match choice {
            Choice::System(_) | Choice::Safe(_) if !disk.system.has_superblock() => {
                self.recovery(disk, &found, Reason::SystemUnreadable)?
            }
            Choice::System(_) | Choice::Safe(_) => {
                if let Choice::System(tries) = choice {
                    ensure!(tries <= TRIES, "GRUB starts the system {tries} times, although it has only {TRIES} tries");
                }
                let whole = |release: &ReleaseUnderTest| disk.system.content == release.image;
                let old = self.old.is_some_and(whole);
                ensure!(old || whole(self.new), "GRUB starts a system that is neither the old nor the new one");
                format!("the {} system starts", if old { "old" } else { "new" })
            }
            Choice::Back(..) => bail!("GRUB goes back to the other system of a robot that has one"),
            Choice::Recovery(reason) => self.recovery(disk, &found, reason)?,
        };
        *self.endings.entry(how).or_default() += 1;
        Ok(())
    }

    /// Judges the slots. In every case the next recovery must come up: the slot that the loader begins with must hold
    /// all of one recovery, as GRUB reads it, and so must a slot that is to be tried.
    fn judge_slot(&mut self, disk: &DiskState, environment: Option<&[u8]>, kind: StateKind) -> Result<()> {
        let recovery = &disk.recovery;
        // The script is the last of FILES.
        let has_script = |slot| Ok::<_, anyhow::Error>(self.file(recovery, slot, FILES.len() - 1)?.is_some());
        let slot = choose_slot(environment, has_script)?;
        // Garbage in a sector may hit the inodes of both slots; then the loader needs the other one.
        if !self.is_whole(recovery, slot)? {
            let other = self.is_whole(recovery, slot.other())?;
            ensure!(
                other && kind == StateKind::Torn,
                "the loader begins with slot {slot}, which is incomplete ({})",
                if other { "the other one is complete" } else { "so is the other one" }
            );
        }
        let tried = choose_recovery(environment, slot);
        let whole = tried == slot || kind == StateKind::Torn || self.is_whole(recovery, tried)?;
        ensure!(whole, "slot {tried} is to be tried, and is incomplete");
        let other = if tried == slot { "" } else { ", and tries the other one" };
        *self.endings.entry(format!("the loader begins with slot {slot}{other}")).or_default() += 1;
        Ok(())
    }

    /// Whether the slot holds all of one recovery.
    fn is_whole(&mut self, recovery: &Region, slot: Slot) -> Result<bool> {
        let found = (0..FILES.len()).map(|at| self.file(recovery, slot, at)).collect::<Result<Vec<_>>>()?;
        Ok(self.recoveries.iter().any(|known| found.iter().eq(known.map(Some).iter())))
    }

    /// Returns the digest of the `at`-th of [`FILES`] of a slot, by GRUB's own file system code; `None` if that code
    /// does not find the file.
    ///
    /// GRUB's code only finds out where the file lies, since reading all of it for each state takes ten times as long.
    fn file(&mut self, recovery: &Region, slot: Slot, at: usize) -> Result<Option<Digest>> {
        let key = (recovery.fingerprint, slot, at);
        if let Some(known) = self.slots.get(&key) {
            return Ok(*known);
        }
        self.recovery_scratch.follow(recovery)?;
        let path = format!("/{}/{}", slot.folder(), FILES[at]);
        let ranges = crate::grub::file_ranges(&self.recovery_scratch.file, &path)?;
        // A damaged inode may lead anywhere.
        let end = recovery.content.len() as u64;
        let found = ranges.filter(|ranges| ranges.iter().all(|range| range.end <= end)).map(|ranges| {
            let blocks = ranges.iter().flat_map(|range| {
                let (first, last) = (to_usize(range.start) / BLOCK_BYTES, to_usize(range.end).div_ceil(BLOCK_BYTES));
                let place = [range.start, range.end];
                place.into_iter().chain(recovery.blocks[first..last].iter().copied())
            });
            let key = block_hash(&blocks.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
            *self.contents.entry(key).or_insert_with(|| {
                let parts = ranges.iter().map(|range| &recovery.content[to_range(range)]);
                Digest::of(&parts.collect::<Vec<_>>().concat())
            })
        });
        self.slots.insert(key, found);
        Ok(found)
    }

    fn recovery(&mut self, disk: &DiskState, found: &Found, reason: Reason) -> Result<String> {
        let installed =
            [self.old, Some(self.new)].into_iter().flatten().find(|release| Some(release.serial) == found.installed);
        let system = match installed {
            Some(release) if self.comparison(&release.index, release.serial, &disk.system).all_right() => {
                System::Intact
            }
            Some(_) => System::Damaged,
            None => System::Unknown,
        };
        let leads_back = *self
            .kept
            .entry(disk.kept.fingerprint)
            .or_insert_with(|| SystemPartition::of(disk).leads_back_to(self.keys));
        let request = found.request.and_then(|request| request.that_counts(reason, found.installed));
        let situation = Situation {
            reason,
            undo_requested: matches!(request, Some(RecoveryRequest::Undo { .. })),
            system,
            worth: found.worth,
            kept: match leads_back {
                None => KeptRelease::Nothing,
                Some(serial) if Some(serial) == found.installed => KeptRelease::Installed,
                Some(_) => KeptRelease::Another,
            },
            safe_starts: SafeStarts { known: true, made: found.safe_starts_made },
            recoveries: found.recoveries,
            budget: self.budget,
        };
        let first = decide::decide(&situation);
        match first {
            BootDecision::Park => bail!("recovery ({reason:?}) parks: {situation:?}"),
            BootDecision::Start => {}
            BootDecision::Undo | BootDecision::UndoOnline => {
                let releases = [self.old, Some(self.new)].into_iter().flatten();
                let back = releases.into_iter().find(|release| Some(release.serial) == leads_back);
                let back =
                    back.with_context(|| format!("recovery ({reason:?}) goes back to nothing: {situation:?}"))?;
                self.undos += 1;
                if self.undos % UNDO_EVERY == 1 {
                    SystemPartition::of(disk).undo(self.keys, &back.image)?;
                    self.undone += 1;
                }
            }
            BootDecision::Fetch | BootDecision::FetchNewer => {
                let new = self.new;
                let comparison = self.comparison(&new.index, new.serial, &disk.system);
                check_plan(&new.index, &comparison)?;
                self.fetches += 1;
                if self.fetches % RECOVER_EVERY == 1 {
                    self.undo(disk)?;
                    self.recover(disk, found.recoveries)?;
                    self.recovered += 1;
                }
            }
        }
        let state = if found.lost { ", state made anew" } else { "" };
        Ok(format!(
            "recovery ({reason:?}{state}): {}",
            match first {
                BootDecision::Start => "started",
                BootDecision::Undo => "taken back",
                _ => "fetched",
            }
        ))
    }

    /// Returns what the agent finds once the kernel has mounted the partition, and replayed the journal.
    fn agent(&mut self, state: &Region) -> Result<Found> {
        if let Some(known) = self.agents.get(&state.fingerprint) {
            return Ok(known.clone());
        }
        self.scratch.write(&state.content)?;
        let found = match self.scratch.mount() {
            Err(_) => Found { lost: true, ..Found::default() },
            Ok(mounted) => {
                let state = StatePartition::new(&mounted.0);
                // This counts as the agent does: of the environment and the black box, the higher count is believed.
                let environment = state.boot_env().recoveries().context("the agent cannot read its environment")?;
                let recorded = BlackBox::open(&state.blackbox_path()).context("the black box cannot be opened")?;
                let env = state.boot_env().load_or_empty().context("the agent cannot read its environment")?;
                let installed = state.installed(self.keys).map(|installed| installed.manifest.serial);
                let floor =
                    Floor::open(FloorPlaces { state: Some(mounted.0.clone()), ..FloorPlaces::default() }).record();
                let judge = |record: InstalledRecord| {
                    let recorded = recorded.worth(record.manifest().serial);
                    InstalledRelease::judge(&record, &env, &floor, recorded).worth
                };
                Found {
                    lost: false,
                    installed,
                    worth: state.record(self.keys).filter(|_| installed.is_some()).map(judge).unwrap_or_default(),
                    floor: floor.serial,
                    request: RecoveryRequest::parse(env.get(names::REQUEST)),
                    safe_starts_made: env.get(names::SAFE).and_then(|made| made.parse().ok()).unwrap_or(0),
                    recoveries: [environment, recorded.recoveries()]
                        .into_iter()
                        .max_by_key(|known| known.count)
                        .unwrap_or_default(),
                }
            }
        };
        self.agents.insert(state.fingerprint, found.clone());
        Ok(found)
    }

    /// Compares the chunks of an image, which are looked up by their blocks: most were seen before.
    fn comparison(&mut self, index: &Index, serial: u64, system: &Region) -> Comparison {
        let per_chunk = index.chunk_bytes() as usize / BLOCK_BYTES;
        let right = (0..index.chunk_count()).map(|chunk| {
            let blocks = &system.blocks[chunk as usize * per_chunk..];
            let blocks = &blocks[..per_chunk.min(blocks.len())];
            let key = block_hash(&blocks.iter().flat_map(|hash| hash.to_le_bytes()).collect::<Vec<_>>());
            *self.chunks.entry((serial, chunk, key)).or_insert_with(|| {
                let range = index.chunk_range(chunk);
                index.matches(chunk, &system.content[to_range(&range)])
            })
        });
        let right = right.collect();
        Comparison::new(index, right)
    }

    /// Runs the agent's own recovery from this very state.
    fn recover(&mut self, disk: &DiskState, recoveries: Recoveries) -> Result<()> {
        self.scratch.write(&disk.state.content)?;
        // The agent makes a partition anew that does not mount; an empty directory stands for it.
        let fresh = tempfile::tempdir()?;
        let mounted = self.scratch.mount().ok();
        let state = StatePartition::new(mounted.as_ref().map_or(fresh.path(), |mounted| mounted.0.as_path()));
        let target = SystemPartition::of(disk);
        let (source, journal) = (Directory::new(self.tree.clone()), Journal::silent());
        let job = RecoveryJob {
            identity: kept::identity(),
            policy: Policy { tries: TRIES, recoveries, keep: Keep::Installed, ..Policy::default() },
            resources: Resources { state: Some(&state), ..Resources::new(self.keys, &source, &target) },
            journal: &journal,
        };
        let report = recovery::run(&job, job.read_record().as_ref());
        let report = report.map_err(|error| anyhow::anyhow!("the recovery fails: {}", chain(&error)))?;
        ensure!(target.holds(&self.new.image), "the recovery left another image");
        let env = state.boot_env().load_or_empty()?;
        let ended = env.get(names::TRIES).is_some_and(|tries| tries == TRIES.to_string())
            && env.get(names::RECOVERING).is_none();
        ensure!(ended, "the recovery to {} left the environment {:?}", report.version, env.iter().collect::<Vec<_>>());
        match self.old.filter(|_| self.undoes) {
            Some(old) => target.undo(self.keys, &old.image).context("after the recovery"),
            None => Ok(()),
        }
    }

    /// Takes the update back from this very state, without a network. Where the old system is whole, nothing of it was
    /// kept yet, perhaps.
    fn undo(&mut self, disk: &DiskState) -> Result<()> {
        let partition = SystemPartition::of(disk);
        let Some(old) = self.old.filter(|old| self.undoes && !partition.holds(&old.image)) else { return Ok(()) };
        partition.undo(self.keys, &old.image)?;
        self.undone += 1;
        Ok(())
    }
}

/// Checks that the plan touches every wrong chunk and no other.
fn check_plan(index: &Index, comparison: &Comparison) -> Result<()> {
    let plan = Plan::new(index, comparison, Reuse::default());
    let fetched =
        plan.requests.iter().flat_map(|request| &request.stored).flat_map(|stored| plan.destinations(*stored));
    let touched: BTreeSet<ChunkNo> = plan.zero.iter().copied().chain(fetched).collect();
    let wrong: BTreeSet<ChunkNo> = (0..index.chunk_count()).filter(|chunk| !comparison.is_right(*chunk)).collect();
    ensure!(touched == wrong, "the plan touches {} chunks and {} are wrong", touched.len(), wrong.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use reflash::boot::slots::{FILES, Slot};
    use reflash::release::digest::Digest;
    use reflash::release::index::{Builder, ChunkContent};
    use reflash::release::manifest::TrustedKeys;

    use super::{Judge, Region, ReleaseUnderTest, SlotFiles, StateKind};
    use crate::powercut::disk::DiskState;

    fn content(version: &str, name: &str) -> Vec<u8> {
        format!("{name} of {version} ").repeat(1000).into_bytes()
    }

    /// Makes a recovery partition whose slots hold so many files of a version.
    fn partition(slots: [(&str, usize); 2]) -> Region {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
        for (slot, (version, count)) in [Slot::A, Slot::B].into_iter().zip(slots) {
            let folder = tree.join(slot.folder());
            std::fs::create_dir_all(&folder).unwrap();
            for name in FILES.iter().rev().take(count) {
                std::fs::write(folder.join(name), content(version, name)).unwrap();
            }
        }
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-O", "^inline_data", "-d"]).arg(&tree).arg(&image).arg("4m");
        assert!(mke2fs.status().unwrap().success());
        Region::new(1 << 30, std::fs::read(image).unwrap())
    }

    #[test]
    #[ignore = "needs root: to install mke2fs and grub-fstest; cargo xtask test --tier root"]
    fn a_pointer_to_half_a_slot_is_found() {
        let mut builder = Builder::new(16384, 16384).unwrap();
        builder.push_chunk(ChunkContent::Zero);
        let new = ReleaseUnderTest { serial: 1, index: builder.finish().unwrap(), image: vec![0; 16384] };
        let known: [SlotFiles; 2] = ["1", "2"].map(|version| FILES.map(|name| Digest::of(&content(version, name))));
        let keys = TrustedKeys::default();
        let mut judge = Judge::new(None, &new, "/nonexistent".into(), &keys, 3, &known).unwrap();
        let mut ends_well = |slots, variables: &str, kind| {
            let empty = || Region::new(0, Vec::new());
            let disk = DiskState { state: empty(), system: empty(), recovery: partition(slots), kept: empty() };
            let block = format!("# GRUB Environment Block\n{variables}");
            judge.judge_slot(&disk, Some(block.as_bytes()), kind).is_ok()
        };
        let (to_a, to_b) = ("reflash_slot=a\n", "reflash_slot=b\n");
        for (slots, variables, expected) in [
            ([("1", 3), ("2", 3)], to_b, true),
            ([("1", 3), ("2", 3)], "", true),
            // The slot is being written, and the environment points to it too early.
            ([("1", 3), ("2", 2)], to_a, true),
            ([("1", 3), ("2", 2)], to_b, false),
            ([("1", 3), ("unknown", 3)], to_b, false),
            // The loader skips a slot without a script.
            ([("1", 3), ("2", 0)], to_b, true),
            ([("1", 0), ("2", 3)], "", true),
            ([("1", 0), ("2", 0)], to_a, false),
            ([("1", 3), ("2", 3)], "reflash_slot=a\nreflash_trial=b\n", true),
            ([("1", 3), ("2", 2)], "reflash_slot=a\nreflash_trial=b\n", false),
            ([("1", 3), ("2", 2)], "reflash_slot=a\nreflash_trial=b-tried\n", true),
        ] {
            assert_eq!(ends_well(slots, variables, StateKind::Prefix), expected, "{slots:?} {variables:?}");
        }
        assert!(ends_well([("1", 3), ("2", 2)], to_b, StateKind::Torn));
        assert!(!ends_well([("1", 2), ("2", 2)], to_b, StateKind::Torn));
    }
}
