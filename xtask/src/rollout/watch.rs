//! The watcher: it halts a release by itself when it fails on too many robots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::desk::Desk;
use super::reports::Reports;
use crate::release::SecretKey;
use crate::release::rollout::RolloutState;
use reflash::release::rollout::{Rollout, StagedRelease};

/// Time between two looks at the roll-out, where no robot failed: a look at a store costs a request.
const LOOK: Duration = Duration::from_secs(30);
/// Fewest robots that reported a release, before a share of them counts.
const MIN_REPORTED: usize = 10;

/// Time between two warnings that there are no posts at a path.
const REMIND: Duration = Duration::from_secs(60);

/// Options of `rollout watch`.
#[derive(Debug, Clone, clap::Args)]
pub struct WatchArgs {
    /// Posts of robots: a file with one JSON post a line, or a directory of such files; repeat for several.
    #[arg(long, value_name = "PATH", required = true)]
    pub reports: Vec<PathBuf>,
    /// Robots on which a release may not fail: so many halt it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub failures: u32,
    /// Percent of the robots that reported a release, on which it may not fail; from ten robots on.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub percent: Option<u8>,
    /// Seconds between two looks at the posts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub every_s: u64,
    /// Look once, for a timer.
    #[arg(long)]
    pub once: bool,
}

/// Number of failures that halts a release.
#[derive(Debug, Clone, Copy)]
pub struct FailureLimits {
    /// Number of robots.
    pub failures: usize,
    /// Percent of those that reported the release.
    pub percent: Option<u8>,
}

impl FailureLimits {
    /// The reason to halt a release that failed on so many of the robots that reported it; `None` if that is no reason.
    #[must_use]
    pub fn reached(&self, failed: usize, reported: usize) -> Option<String> {
        let by_percent = self.percent.is_some_and(|percent| {
            reported >= MIN_REPORTED && failed * 100 >= usize::from(percent) * reported && failed > 0
        });
        let is_reached = failed >= self.failures || by_percent;
        is_reached.then(|| format!("it failed on {failed} of {reported} robots that reported it"))
    }
}

/// A watcher with what it has seen.
pub struct Watch<'a> {
    desk: &'a Desk,
    key: &'a SecretKey,
    limits: FailureLimits,
    reports: Reports,
    state: Option<(RolloutState, Instant)>,
    /// Through which number halts of each release are lifted.
    lifted: BTreeMap<u64, u64>,
}

impl<'a> Watch<'a> {
    /// A watcher that halts with this key.
    #[must_use]
    pub fn new(desk: &'a Desk, key: &'a SecretKey, limits: FailureLimits, reports: Vec<PathBuf>) -> Self {
        Self { desk, key, limits, reports: Reports::new(reports), state: None, lifted: BTreeMap::new() }
    }

    /// Looks at posts and roll-out once. Returns the serials that were halted.
    ///
    /// # Errors
    /// When the roll-out cannot be read, or a halt cannot be published; then the next look tries again.
    pub fn look(&mut self) -> Result<Vec<u64>> {
        if self.state.as_ref().is_none_or(|(_, read)| read.elapsed() >= LOOK) {
            self.read_state()?;
        }
        self.reports.read_new();
        self.warn_of_base();
        if self.failing().is_empty() {
            return Ok(Vec::new());
        }
        // It may be halted by now, or have gone on.
        self.read_state()?;
        let failing = self.failing();
        for (serial, why) in &failing {
            self.desk.halt(*serial, why, self.key).with_context(|| format!("halt release {serial}: {why}"))?;
            eprintln!("  HALTED: release {serial}, {why}");
        }
        self.state = None;
        Ok(failing.into_iter().map(|(serial, _)| serial).collect())
    }

    fn read_state(&mut self) -> Result<()> {
        let state = self.desk.state()?;
        if self.state.is_none() && self.lifted.is_empty() {
            let reports = std::mem::replace(&mut self.reports, Reports::new(Vec::new()));
            self.reports = reports.of_product(&state.rollout.product);
            // What was posted before a roll-out went on is read again now, and has been judged by a person.
            self.reports.read_new();
        }
        for release in &state.rollout.releases {
            let known = self.lifted.insert(release.serial, release.halts_lifted_through).unwrap_or(0);
            if release.halts_lifted_through > known {
                // A builder of before there was this time has left only that of the file.
                let judged_unix_s = release.resumed_unix_s.unwrap_or(state.rollout.created_unix_s);
                let serial = release.serial;
                let undated = self.reports.failures_mut().forget_before(serial, judged_unix_s);
                if undated > 0 {
                    // With `--once` each look is a start, and nothing would ever halt it again.
                    self.reports.warn_as(
                        "undated",
                        format!(
                            "{undated} failures of release {serial} do not say when they came, and count as judged since \
                             it was resumed: have the server add `received_unix_s` to each post, or keep each in a file \
                             of its own, or new ones are passed over like these after each start of `rollout watch`"
                        ),
                    );
                }
            }
        }
        self.state = Some((state, Instant::now()));
        Ok(())
    }

    /// Releases to halt, with the reason.
    fn failing(&self) -> Vec<(u64, String)> {
        let Some((state, _)) = &self.state else { return Vec::new() };
        let base = state.base().map_or(0, |base| base.serial);
        // Where the newest release is the one for every robot, it has just been widened.
        let newest = state.rollout.releases.iter().map(|release| release.serial).max();
        let watched = state.rollout.releases.iter();
        let watched = watched.filter(|release| release.serial > base || newest == Some(release.serial));
        let watched = watched.filter(|release| state.halts.of(release).is_none());
        watched.filter_map(|release| Some((release.serial, self.reached(&state.rollout, release)?))).collect()
    }

    /// The reason to halt a release, if there is one.
    fn reached(&self, rollout: &Rollout, release: &StagedRelease) -> Option<String> {
        let failures = self.reports.failures();
        self.limits.reached(failures.failed(rollout, release).len(), failures.reported(release.serial))
    }

    /// Warns of failures of the release that every robot may take, beside a newer one. It is what the robots outside
    /// the newer one have: without it they would have none, and over months some robots fail for reasons of their own.
    fn warn_of_base(&mut self) {
        let Some((state, _)) = &self.state else { return };
        let is_newer = |base: &StagedRelease| state.rollout.releases.iter().any(|it| it.serial > base.serial);
        let Some(base) = state.base().filter(|base| is_newer(base)) else { return };
        let Some(why) = self.reached(&state.rollout, base) else { return };
        let serial = base.serial;
        self.reports.warn_as(
            "base",
            format!(
                "release {serial}, which every robot may take, is not halted by this: {why}; `rollout halt {serial}` \
                 does, and leaves robots outside of the newer releases without one"
            ),
        );
    }
}

/// Warns of paths that are not there, at once and then now and again: what watches nothing halts nothing.
#[derive(Default)]
struct MissingPosts {
    warned: Option<Instant>,
}

impl MissingPosts {
    fn warn(&mut self, reports: &Reports) {
        if self.warned.is_some_and(|warned| warned.elapsed() < REMIND) {
            return;
        }
        for path in reports.missing() {
            let path = path.display();
            eprintln!(
                "  warning: there is no {path}, so that no post of a robot is read there and nothing halts by it"
            );
            self.warned = Some(Instant::now());
        }
    }
}

/// Watches as the command line says, until interrupted.
pub(super) fn run(desk: &Desk, args: WatchArgs, key: &SecretKey) -> Result<()> {
    let limits =
        FailureLimits { failures: usize::try_from(args.failures).unwrap_or(usize::MAX), percent: args.percent };
    let mut watch = Watch::new(desk, key, limits, args.reports);
    let mut missing = MissingPosts::default();
    missing.warn(&watch.reports);
    if args.once {
        watch.look()?;
        // The end of a file that nobody writes to any more is a line, too.
        return watch.look().map(drop);
    }
    // A mistake in keys or places shows at once, and not when a release fails.
    watch.look()?;
    eprintln!("  watching channel {} in {}", desk.channel, desk.place().name());
    loop {
        std::thread::sleep(Duration::from_secs(args.every_s));
        missing.warn(&watch.reports);
        if let Err(error) = watch.look() {
            eprintln!("  warning: {error:#}; trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FailureLimits;

    #[test]
    fn a_number_or_a_share_of_robots_halts() {
        let by_number = FailureLimits { failures: 3, percent: None };
        assert!(by_number.reached(2, 2).is_none() && by_number.reached(3, 1000).is_some());
        let by_share = FailureLimits { failures: 50, percent: Some(10) };
        for (failed, reported, halts) in [(1, 9, false), (0, 10, false), (1, 10, true), (1, 11, false), (2, 11, true)] {
            assert_eq!(by_share.reached(failed, reported).is_some(), halts, "{failed} of {reported}");
        }
    }
}
