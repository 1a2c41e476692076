//! An update that is fetched while the system works: what that costs a program with a timer of 1 kHz beside it, and how
//! long recovery then takes without a server.
//!
//! The agent fetches, as its service in an image does. Recovery's part is done by the library in this program, as for
//! an undo: no command of the agent applies a store to a device that is not a robot's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reflash::flash::target::DeviceTarget;
use reflash::jobs::recovery::{self, Keep, Resources};
use reflash::jobs::state::StatePartition;
use reflash::jobs::update::UpdateStore;
use serde::Serialize;

use super::device::{Before, LoopDevice, Memory};
use super::lab::{self, Nginx};
use super::served::{PRODUCT, Served};
use super::undo::{BenchRobot, timed, trusted};

/// Time for which the timer is measured without anything beside it.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// Longest latency that is counted by itself, microseconds.
const MOST_US: &str = "20000";
/// The priorities of the service in an image.
const LIKE_THE_SERVICE: &str = "nice -n 19 ionice -c 3 chrt --idle 0";

/// Figures of one update that was fetched and applied.
#[derive(Debug, Clone, Serialize)]
pub struct StagedRun {
    pub case: String,
    /// Seconds of recovery's own work: manifest, plan, write, read-back.
    pub apply_s: f64,
    /// Seconds that fetching took, at its pace.
    pub fetch_s: f64,
    /// Most memory that fetching took.
    pub peak_rss_mib: f64,
    pub download_mb: f64,
    /// Bytes of the store.
    pub stored_bytes: u64,
    /// Latency of the timer that 999 in 1000 keep to, alone and beside the fetching, microseconds.
    pub idle_us: u64,
    pub beside_us: u64,
    /// Whether the device holds the new image afterwards, byte for byte.
    pub right: bool,
}

/// A case: the update that is fetched.
pub struct StagedCase<'a> {
    pub name: &'static str,
    /// Channel of the update; the release before is in the channel `old`.
    pub channel: &'static str,
    /// The image before the update, and after it.
    pub old: &'a Path,
    pub new: &'a Path,
}

/// Surroundings in which a case is measured.
pub struct StagedLab<'a> {
    pub served: &'a Served,
    pub server: &'a Nginx,
    pub agent: &'a Path,
    pub keys: &'a Path,
    pub memory: &'a Memory,
    pub work: &'a Path,
    pub path: &'a str,
    pub sector_bytes: u32,
}

impl StagedRun {
    /// A line for people.
    pub fn line(&self) -> String {
        format!(
            "{}: applied in {:.2} s without a server; fetched {:.1} MB in {:.1} s with {:.0} MiB of memory, {:.2} MB \
             stored; a timer of 1 kHz: 99.9 % within {} us beside it, {} us alone, {}",
            self.case,
            self.apply_s,
            self.download_mb,
            self.fetch_s,
            self.peak_rss_mib,
            self.stored_bytes as f64 / 1e6,
            self.beside_us,
            self.idle_us,
            if self.right { "byte for byte" } else { "and the image is WRONG" }
        )
    }
}

/// Fetches an update for a robot on a loop device beside a timer, and applies it without the server.
pub fn measure(case: &StagedCase<'_>, lab: &StagedLab<'_>) -> Result<StagedRun> {
    let keys = trusted(&lab.keys.join("reflash.pub"))?;
    let bytes = reflash_release::room::partition_bytes(case.old)?.next_multiple_of(1 << 20);
    let device = LoopDevice::new(lab.memory, bytes * 5 / 4, &Before::Image(case.old.to_owned()), lab.sector_bytes)?;
    let directory = tempfile::tempdir_in(lab.work).context("make a data partition")?;
    let place = |name: &str| directory.path().join(name);
    fs::create_dir(place("state"))?;
    let state = StatePartition::new(&place("state"));
    {
        let target = DeviceTarget::open(Path::new(&device.node))?;
        let robot = BenchRobot { keys: &keys, target: &target, state: &state, tree: lab.served.releases.clone() };
        robot.install("old", Keep::Kept)?;
    }
    let config = place("reflash.toml");
    let url = format!("{}/reflash", lab.server.url());
    let (product, channel) = (PRODUCT, case.channel);
    fs::write(
        &config,
        format!(
            "[release]\nurls = ['{url}']\nchannel = '{channel}'\n[machine]\nproduct = '{product}'\n\
             hardware = '{product}'\n[update]\nautomatic = 'fetch'\n"
        ),
    )?;
    let idle_us = Timer::start(&place("idle"))?.latency_after(|| std::thread::sleep(IDLE))?;
    let command = format!(
        "{LIKE_THE_SERVICE} {} update --background --state {} --target {} --config {} --keys {} --store {}",
        lab.agent.display(),
        place("state").display(),
        device.node,
        config.display(),
        lab.keys.display(),
        place("data/update").display()
    );
    let log = lab.work.join(format!("{}-reflash.log", case.name));
    let mut cost = None;
    let mut fetched = Ok(());
    let beside_us = Timer::start(&place("beside"))?.latency_after(|| {
        fetched = lab::timed(&command, lab.path, lab.server, lab.work, &log).map(|found| cost = found);
    })?;
    fetched?;
    let cost = cost.with_context(|| format!("the update could not be fetched, see {}", log.display()))?;
    let store = UpdateStore::open(directory.path(), Path::new("data/update")).context("open the store")?;
    ensure!(store.is_complete(), "the store is not complete, see {}", log.display());
    let (phases, journal) = timed();
    {
        let target = DeviceTarget::open(Path::new(&device.node))?;
        let robot = BenchRobot { keys: &keys, target: &target, state: &state, tree: PathBuf::new() };
        let nothing = reflash::fetch::Directory::new(place("no server"));
        let mut job = robot.job(case.channel, Keep::Installed, &nothing, &journal);
        job.resources = Resources { source: &store, brief_source: &store, ..job.resources };
        let record = job.read_record();
        recovery::install(&job, record.as_ref(), store.release(&keys)?).context("apply the update")?;
    }
    let phases = phases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(StagedRun {
        case: case.name.to_owned(),
        apply_s: phases.values().map(Duration::as_secs_f64).sum(),
        fetch_s: cost.wall_s,
        peak_rss_mib: cost.peak_rss_mib,
        download_mb: cost.download_mb,
        stored_bytes: store.bytes().1,
        idle_us,
        beside_us,
        right: device.holds(case.new)?,
    })
}

/// Refuses a run that left another image, so that no figure of it counts.
pub fn check(run: &StagedRun) -> Result<()> {
    ensure!(run.right, "{}: the device does not hold the new image", run.case);
    Ok(())
}

/// A program with a timer of 1 kHz, of the usual priority.
pub(super) struct Timer {
    process: Child,
    histogram: PathBuf,
}

impl Timer {
    pub(super) fn start(histogram: &Path) -> Result<Self> {
        let output = fs::File::create(histogram)?;
        let mut command = Command::new("cyclictest");
        command.args(["--quiet", "--interval=1000", "--threads=1"]).arg(format!("--histogram={MOST_US}"));
        let process = command.stdin(Stdio::null()).stdout(output).spawn().context("start cyclictest")?;
        Ok(Self { process, histogram: histogram.to_owned() })
    }

    /// Does `work` beside it, and returns the latency that 999 of 1000 timers keep to.
    pub(super) fn latency_after(mut self, work: impl FnOnce()) -> Result<u64> {
        work();
        // It prints what it has counted.
        Command::new("kill").args(["-INT", &self.process.id().to_string()]).status().context("end cyclictest")?;
        self.process.wait()?;
        let text = fs::read_to_string(&self.histogram)?;
        within_999_of_1000(&text).with_context(|| format!("cyclictest counted nothing: {text:?}"))
    }
}

/// The latency that 999 of 1000 keep to, of a histogram that cyclictest printed: a latency and a count each line.
fn within_999_of_1000(text: &str) -> Option<u64> {
    let lines = text.lines().filter(|line| !line.starts_with(['#', '/']));
    let counts: Vec<(u64, u64)> = lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect();
    let overflows = text.lines().find_map(|line| line.strip_prefix("# Histogram Overflows:"));
    let beyond: u64 = overflows.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    let all = counts.iter().map(|(_, count)| count).sum::<u64>() + beyond;
    let mut seen = 0;
    let found = counts.iter().find(|(_, count)| {
        seen += count;
        seen * 1000 >= all * 999
    });
    (all > 0).then(|| found.map_or(u64::MAX, |(latency, _)| *latency))
}

#[cfg(test)]
mod tests {
    use super::within_999_of_1000;

    #[test]
    fn a_histogram_of_cyclictest_is_read() {
        let text = "# /dev/cpu_dma_latency set to 0us\n# Histogram\n000000 000000\n000001 000990\n000050 000009\n\
             000700 000001\n# Total: 000001000\n# Histogram Overflows: 00000\n";
        assert_eq!(within_999_of_1000(text), Some(50));
        assert_eq!(within_999_of_1000(&text.replace("000009", "000008")), Some(700));
        assert_eq!(within_999_of_1000("# Total: 0\n"), None);
    }
}
