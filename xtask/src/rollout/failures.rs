//! What posts say of releases: on which robots one failed. Pure.
//!
//! Posts are not trusted: a robot that posts for others can only have a release halted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use reflash::record::wire::ReportedMachine;
use reflash::release::rollout::{Rollout, StagedRelease};
use serde::Deserialize;

/// A post, as far as it says how a release went. The format is that of `docs/failure-modes.md`.
#[derive(Debug, Deserialize)]
pub(super) struct RobotPost {
    machine: ReportedMachine,
    #[serde(default)]
    attempts: Vec<PostedAttempt>,
    #[serde(default)]
    boot: Option<PostedBoot>,
    /// Time at which a server took the post, if it notes that.
    #[serde(default)]
    pub(super) received_unix_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PostedAttempt {
    reason: String,
    outcome: Option<String>,
    serial: Option<u64>,
    undone: Option<OtherRelease>,
    refused: Option<OtherRelease>,
    phases: Vec<PostedPhase>,
}

#[derive(Debug, Deserialize)]
struct PostedPhase {
    phase: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OtherRelease {
    serial: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PostedBoot {
    not_good: Vec<String>,
    safe_start: Option<u32>,
    /// The release that was started. Older agents do not say it.
    serial: Option<u64>,
    /// BLAKE3 digest of its manifest, in hexadecimal.
    manifest: Option<String>,
}

/// One failure of a release on a robot.
#[derive(Debug, Clone, Default)]
struct Failure {
    /// Time at which a server took the post, if it notes that.
    received_unix_s: Option<u64>,
    /// Digest of the manifest, where the post says it.
    manifest: Option<String>,
    /// Whether the post does not say which release failed, and this is the one that the robot reported last: it may
    /// have got a newer one without a word.
    is_inferred: bool,
}

/// On which robots each release failed, and which reported it at all.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    failed: BTreeMap<u64, BTreeMap<String, Failure>>,
    reported: BTreeMap<u64, BTreeSet<String>>,
    /// The release that each robot reported to have last.
    installed: HashMap<String, u64>,
    /// Time through which the failures of each release were judged by a person.
    judged_unix_s: BTreeMap<u64, u64>,
    /// Number of failures that came afterwards, and say that they are of before.
    of_before: usize,
}

impl Failures {
    /// Robots on which a release of the roll-out failed.
    #[must_use]
    pub fn failed(&self, rollout: &Rollout, release: &StagedRelease) -> Vec<&str> {
        let newest = rollout.releases.iter().map(|release| release.serial).max();
        let digest = release.manifest.blake3.to_string();
        let counts = |failure: &Failure| {
            failure.manifest.as_ref().is_none_or(|manifest| *manifest == digest)
                && (!failure.is_inferred || newest == Some(release.serial))
        };
        let robots = self.failed.get(&release.serial).into_iter().flatten();
        robots.filter(|(_, failure)| counts(failure)).map(|(robot, _)| robot.as_str()).collect()
    }

    /// Number of robots that reported a release.
    #[must_use]
    pub fn reported(&self, serial: u64) -> usize {
        self.reported.get(&serial).map_or(0, BTreeSet::len)
    }

    /// Forgets the failures of a release that were reported before this time, or at no known one: a person has judged
    /// them. Those that are read again later count as little. Returns the number of those of no known time.
    pub fn forget_before(&mut self, serial: u64, unix_s: u64) -> usize {
        self.judged_unix_s.insert(serial, unix_s);
        let Some(failed) = self.failed.get_mut(&serial) else { return 0 };
        let undated = failed.values().filter(|failure| failure.received_unix_s.is_none()).count();
        failed.retain(|_, failure| failure.received_unix_s.is_some_and(|received| received >= unix_s));
        undated
    }

    /// Number of failures that were read after a person had let their release go on, and count as judged by their time:
    /// posts that are read again, or those of a server whose clock is behind.
    #[must_use]
    pub fn of_before(&self) -> usize {
        self.of_before
    }

    pub(super) fn take(&mut self, post: &RobotPost, product: Option<&str>) {
        if product.is_some_and(|product| product != post.machine.product) {
            return;
        }
        let machine = &post.machine;
        let names = [&machine.id, &machine.serial_number, &machine.uuid, &machine.mac, &machine.hostname];
        // A robot without any name is still one robot.
        let robot = names.into_iter().flatten().next().cloned().unwrap_or_else(|| "a robot without a name".to_owned());
        let received_unix_s = post.received_unix_s;
        for attempt in &post.attempts {
            let failed = attempt.failed_release().map(|serial| (serial, false));
            let failed = failed.or_else(|| self.started_in_vain(&robot, attempt).map(|serial| (serial, true)));
            if let Some((serial, is_inferred)) = failed {
                self.fail(serial, &robot, Failure { received_unix_s, manifest: None, is_inferred });
            }
            if let Some(serial) = attempt.serial {
                self.reported.entry(serial).or_default().insert(robot.clone());
                if attempt.outcome.as_deref() == Some("installed") {
                    self.installed.insert(robot.clone(), serial);
                }
            }
        }
        let Some(boot) = &post.boot else { return };
        if let Some(serial) = boot.serial {
            self.reported.entry(serial).or_default().insert(robot.clone());
            self.installed.insert(robot.clone(), serial);
        }
        let known = self.installed.get(&robot).copied();
        if let Some(serial) = known.filter(|_| !boot.not_good.is_empty() || boot.safe_start.is_some()) {
            let (manifest, is_inferred) = (boot.manifest.clone(), boot.serial.is_none());
            self.fail(serial, &robot, Failure { received_unix_s, manifest, is_inferred });
        }
    }

    fn fail(&mut self, serial: u64, robot: &str, failure: Failure) {
        let judged = self.judged_unix_s.get(&serial);
        if failure.received_unix_s.zip(judged.copied()).is_some_and(|(received, judged)| received < judged) {
            self.of_before += 1;
            return;
        }
        self.reported.entry(serial).or_default().insert(robot.to_owned());
        let of_release = self.failed.entry(serial).or_default();
        // What is inferred does not take the place of what was said.
        let is_said = of_release.get(robot).is_some_and(|known| !known.is_inferred);
        if !(failure.is_inferred && is_said) {
            of_release.insert(robot.to_owned(), failure);
        }
    }

    /// The release whose starts were in vain before this attempt, if it is the one that was installed again by it. What
    /// came in its place is not at fault, and the attempt does not say what was there before.
    fn started_in_vain(&self, robot: &str, attempt: &PostedAttempt) -> Option<u64> {
        let is_again = attempt.serial.is_some() && attempt.serial == self.installed.get(robot).copied();
        attempt.serial.filter(|_| is_again && attempt.reason == "tries" && attempt.refused.is_none())
    }
}

impl PostedAttempt {
    /// The release that failed in this attempt by its own word, if one did.
    fn failed_release(&self) -> Option<u64> {
        let serial_of = |other: &Option<OtherRelease>| other.as_ref().and_then(|other| other.serial);
        if let Some(serial) = serial_of(&self.undone) {
            return Some(serial);
        }
        // Before a byte was written a refusal says nothing about the release: it may just have been halted.
        let is_written = self.phases.iter().any(|phase| phase.phase == "write");
        if let Some(serial) = serial_of(&self.refused).filter(|_| is_written) {
            return Some(serial);
        }
        // The intact system was started again after its starts were used up: that one is meant.
        let is_bad = match self.outcome.as_deref() {
            Some("failed" | "parked") => true,
            Some("started") => self.reason == "tries" && self.refused.is_none(),
            _ => false,
        };
        self.serial.filter(|_| is_bad)
    }
}

#[cfg(test)]
mod tests {
    use super::{Failures, RobotPost};
    use reflash::release::digest::Digest;
    use reflash::release::manifest::Object;
    use reflash::release::rollout::{FORMAT, Rollout, StagedRelease};
    use serde_json::{Value, json};

    fn rollout(serials: &[u64]) -> Rollout {
        let staged = |serial: &u64| {
            let manifest = Object { blake3: Digest::of(serial.to_string().as_bytes()), size_bytes: 1 };
            StagedRelease::new(*serial, serial.to_string(), manifest, Vec::new())
        };
        let (product, channel) = ("demo".into(), "stable".into());
        let releases = serials.iter().map(staged).collect();
        Rollout { format: FORMAT, product, channel, counter: 1, created_unix_s: 0, halt_key: None, releases }
    }

    fn failed(posts: &[Value], rollout: &Rollout, serial: u64) -> usize {
        let mut failures = Failures::default();
        for post in posts {
            let post: RobotPost = serde_json::from_value(post.clone()).unwrap();
            failures.take(&post, None);
        }
        failures.failed(rollout, rollout.release(serial).unwrap()).len()
    }

    fn attempt(robot: &str, attempt: &Value) -> Value {
        json!({ "machine": { "id": robot, "product": "demo" }, "attempts": [attempt] })
    }

    fn boot(robot: &str, members: &Value) -> Value {
        json!({ "machine": { "id": robot, "product": "demo" }, "attempts": [], "boot": members })
    }

    fn provisioned(robot: &str, serial: u64) -> Value {
        attempt(robot, &json!({ "reason": "provision", "outcome": "installed", "serial": serial }))
    }

    /// A robot with two systems gets a release without an attempt of recovery.
    #[test]
    fn a_boot_counts_against_the_release_that_it_names_or_the_only_one_it_can_be() {
        let rollout = rollout(&[1, 3]);
        let bad = json!({ "not_good": ["the arm is broken"] });
        let unnamed = [provisioned("a", 1), boot("a", &bad)];
        assert_eq!((failed(&unnamed, &rollout, 1), failed(&unnamed, &rollout, 3)), (0, 0));
        let newest = [provisioned("a", 3), boot("a", &bad)];
        assert_eq!(failed(&newest, &rollout, 3), 1);
        let digest = rollout.release(3).unwrap().manifest.blake3.to_string();
        let named = |serial: u64, digest: &str| {
            let mut bad = bad.clone();
            (bad["serial"], bad["manifest"]) = (serial.into(), digest.into());
            [provisioned("a", 1), boot("a", &bad)]
        };
        assert_eq!(failed(&named(3, &digest), &rollout, 3), 1);
        assert_eq!(failed(&named(3, &digest), &rollout, 1), 0);
        // A release of the same serial that another channel, or another tree, has made.
        assert_eq!(failed(&named(3, "00"), &rollout, 3), 0);
        // A boot that is good, and says what it runs.
        let good = boot("a", &json!({ "lost": ["a file"], "serial": 3 }));
        assert_eq!(failed(std::slice::from_ref(&good), &rollout, 3), 0);
        assert_eq!(failed(&[provisioned("a", 1), good, boot("a", &bad)], &rollout, 3), 1);
    }

    /// The starts that were used up are those of what was there before the attempt.
    #[test]
    fn a_release_that_came_in_the_place_of_one_that_failed_is_not_at_fault() {
        let rollout = rollout(&[1, 2]);
        let tries = |outcome: &str, serial: u64| {
            attempt("a", &json!({ "reason": "tries", "outcome": outcome, "serial": serial }))
        };
        for before in [vec![], vec![provisioned("a", 1)]] {
            let posts = [before, vec![tries("installed", 2)]].concat();
            assert_eq!((failed(&posts, &rollout, 1), failed(&posts, &rollout, 2)), (0, 0));
        }
        assert_eq!(failed(&[provisioned("a", 2), tries("installed", 2)], &rollout, 2), 1);
        assert_eq!(failed(&[tries("started", 2)], &rollout, 2), 1);
        // The first one of the two may have been a release in between that nobody reported.
        assert_eq!(failed(&[provisioned("a", 1), tries("installed", 1)], &rollout, 1), 0);
    }

    #[test]
    fn what_a_person_has_judged_does_not_count_when_it_is_read_again() {
        let rollout = rollout(&[1, 2]);
        let undone = |received: u64| {
            let mut post = attempt("a", &json!({ "reason": "tries", "serial": 1, "undone": { "serial": 2 } }));
            post["received_unix_s"] = received.into();
            serde_json::from_value::<RobotPost>(post).unwrap()
        };
        let mut failures = Failures::default();
        let count = |failures: &Failures| failures.failed(&rollout, rollout.release(2).unwrap()).len();
        failures.take(&undone(99), None);
        assert_eq!(count(&failures), 1);
        failures.forget_before(2, 100);
        failures.take(&undone(99), None);
        assert_eq!((count(&failures), failures.of_before()), (0, 1));
        failures.take(&undone(100), None);
        assert_eq!(count(&failures), 1);
    }
}
