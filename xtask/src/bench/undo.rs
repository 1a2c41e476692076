//! Undo: what an update keeps, and how long it takes to go back, without any server.
//!
//! This is done by the library in this program, since no command of the agent writes a device that is not a robot's and
//! remembers what was good on it. The builder is compiled without most optimisation, so the agent is not slower.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reflash::fetch::Directory;
use reflash::flash::target::DeviceTarget;
use reflash::flash::undo;
use reflash::jobs::recovery::{self, Identity, Keep, Policy, RecoveryJob, Resources};
use reflash::jobs::state::StatePartition;
use reflash::record::event::{Event, Phase};
use reflash::record::journal::Journal;
use reflash::release::manifest::TrustedKeys;
use serde::Serialize;

use super::device::{Before, LoopDevice, Memory};
use super::served::{PRODUCT, Served};

/// Figures of one update that was taken back.
#[derive(Debug, Clone, Serialize)]
pub struct UndoRun {
    pub case: String,
    /// Seconds of each phase of the undo.
    pub phases_s: BTreeMap<&'static str, f64>,
    /// Sum of these.
    pub undo_s: f64,
    /// Seconds that the update took longer, because it kept what it destroyed.
    pub keep_s: f64,
    /// Bytes that the undo downloaded.
    pub download_bytes: u64,
    /// Bytes behind the image that are in use to make it possible.
    pub kept_bytes: u64,
    /// Share of the image that these bytes are.
    pub kept_share: f64,
    /// Bytes that were estimated before the update.
    pub estimated_bytes: u64,
    /// Whether the device holds the old image afterwards, byte for byte.
    pub right: bool,
}

/// A case: the update that is taken back.
pub struct UndoCase<'a> {
    pub name: &'static str,
    /// Channel of the update; the release before is in the channel `old`.
    pub channel: &'static str,
    /// The image before the update.
    pub old: &'a Path,
}

impl UndoRun {
    /// A line for people.
    pub fn line(&self) -> String {
        let phases: Vec<String> = self.phases_s.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
        format!(
            "{}: {:.2} s ({}), {} bytes downloaded, {:.2} MB kept ({:.2} % of the image, {:.2} MB estimated, in {:.2} s), {}",
            self.case,
            self.undo_s,
            phases.join(", "),
            self.download_bytes,
            self.kept_bytes as f64 / 1e6,
            self.kept_share * 100.0,
            self.estimated_bytes as f64 / 1e6,
            self.keep_s,
            if self.right { "byte for byte" } else { "and the image is WRONG" }
        )
    }
}

/// A robot on a loop device.
pub(super) struct BenchRobot<'a> {
    pub(super) keys: &'a TrustedKeys,
    pub(super) target: &'a DeviceTarget,
    pub(super) state: &'a StatePartition,
    pub(super) tree: PathBuf,
}

/// The key of the benchmark's releases, as a robot trusts it.
pub(super) fn trusted(public: &Path) -> Result<TrustedKeys> {
    let mut keys = TrustedKeys::default();
    keys.add("bench", &std::fs::read_to_string(public).with_context(|| format!("read {}", public.display()))?)?;
    Ok(keys)
}

/// Updates a robot on a loop device and takes the update back.
pub fn measure(
    case: &UndoCase<'_>,
    served: &Served,
    public: &Path,
    memory: &Memory,
    sector_bytes: u32,
) -> Result<UndoRun> {
    let keys = trusted(public)?;
    let old_bytes = case.old.metadata()?.len();
    // Room as a layout should have it.
    let bytes = reflash_release::room::partition_bytes(case.old)?.next_multiple_of(1 << 20);
    let device = LoopDevice::new(memory, bytes * 5 / 4, &Before::Image(case.old.to_owned()), sector_bytes)?;
    let target = DeviceTarget::open(Path::new(&device.node))?;
    let directory = tempfile::tempdir().context("make a state partition")?;
    let state = StatePartition::new(directory.path());
    let robot = BenchRobot { keys: &keys, target: &target, state: &state, tree: served.releases.clone() };
    robot.install("old", Keep::Kept)?;
    let (estimated_bytes, keep_s) = robot.install(case.channel, Keep::Installed)?;
    let possible = undo::possible(&target, &keys).context("look at what is kept")?;
    let (phases, journal) = timed();
    let nothing = Directory::new(directory.path().join("no server"));
    let report = recovery::undo(&robot.job("old", Keep::Kept, &nothing, &journal), None).context("undo the update")?;
    drop(target);
    let phases_s: BTreeMap<&'static str, f64> = phases
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .map(|(name, time)| (*name, time.as_secs_f64()))
        .collect();
    Ok(UndoRun {
        case: case.name.to_owned(),
        undo_s: phases_s.values().sum(),
        phases_s,
        keep_s,
        download_bytes: report.totals.download_bytes,
        kept_bytes: possible.kept_bytes,
        kept_share: possible.kept_bytes as f64 / old_bytes as f64,
        estimated_bytes,
        right: device.holds(case.old)?,
    })
}

impl BenchRobot<'_> {
    /// Installs what a channel offers. Returns what the estimate said, and the seconds that keeping it took.
    pub(super) fn install(&self, channel: &str, keep: Keep) -> Result<(u64, f64)> {
        let (sentences, journal) = (Arc::new(Mutex::new(Vec::new())), Journal::silent());
        let heard = Arc::clone(&sentences);
        journal.subscribe(Box::new(move |entry| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match entry.event {
                Event::PhaseBegan { sentence } => heard.push((sentence.to_owned(), Duration::ZERO)),
                Event::PhaseEnded { duration } => {
                    heard.iter_mut().next_back().into_iter().for_each(|it| it.1 = duration)
                }
                _ => {}
            }
        }));
        let source = Directory::new(self.tree.clone());
        let job = self.job(channel, keep, &source, &journal);
        let report = recovery::run(&job, job.read_record().as_ref()).with_context(|| format!("install {channel}"))?;
        let sentences = sentences.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = sentences.iter().filter(|(sentence, _)| sentence.starts_with("keep what"));
        Ok((report.totals.undo_needed_bytes, kept.map(|(_, duration)| duration.as_secs_f64()).sum()))
    }

    pub(super) fn job<'a>(
        &'a self,
        channel: &str,
        keep: Keep,
        source: &'a Directory,
        journal: &'a Journal,
    ) -> RecoveryJob<'a> {
        RecoveryJob {
            identity: Identity { product: PRODUCT.into(), hardware: PRODUCT.into(), channel: channel.into() },
            policy: Policy { keep, ..Policy::requested(3, true) },
            resources: Resources { state: Some(self.state), ..Resources::new(self.keys, source, self.target) },
            journal,
        }
    }
}

/// A journal that sums the time of each phase.
pub(super) fn timed() -> (Arc<Mutex<BTreeMap<&'static str, Duration>>>, Journal) {
    let (phases, journal) = (Arc::new(Mutex::new(BTreeMap::new())), Journal::silent());
    let times = Arc::clone(&phases);
    journal.subscribe(Box::new(move |entry| {
        if let (Some(phase), Event::PhaseEnded { duration }) = (entry.phase, entry.event) {
            let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
            *times.entry(Phase::name(phase)).or_insert(Duration::ZERO) += duration;
        }
    }));
    (phases, journal)
}

/// Refuses a run that left another image, so that no figure of it counts.
pub fn check(run: &UndoRun) -> Result<()> {
    ensure!(run.right, "{}: the device does not hold the old image", run.case);
    Ok(())
}
