//! What robots post, read from files: on which robots a release failed.
//!
//! Posts are not trusted: a robot that posts for others can only have a release halted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::record::wire::ReportedMachine;
use serde::Deserialize;

/// Most bytes of one line, which is one post: as many as the station takes, and more.
const MAX_POST_BYTES: usize = 1 << 20;
/// Most bytes that are read of one file at a time.
const MAX_READ_BYTES: u64 = 16 << 20;

/// A post, as far as it says how a release went. The format is that of `docs/failure-modes.md`.
#[derive(Debug, Deserialize)]
struct Post {
    machine: ReportedMachine,
    #[serde(default)]
    attempts: Vec<PostedAttempt>,
    #[serde(default)]
    boot: Option<PostedBoot>,
    /// Time at which a server took the post, if it notes that.
    #[serde(default)]
    received_unix_s: Option<u64>,
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
}

/// On which robots each release failed, and which reported it at all.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    failed: BTreeMap<u64, BTreeMap<String, Option<u64>>>,
    reported: BTreeMap<u64, BTreeSet<String>>,
    /// The release that each robot reported to have last.
    installed: HashMap<String, u64>,
}

impl Failures {
    /// Robots on which a release failed.
    #[must_use]
    pub fn failed(&self, serial: u64) -> Vec<&str> {
        self.failed.get(&serial).into_iter().flatten().map(|(robot, _)| robot.as_str()).collect()
    }

    /// Number of robots that reported a release.
    #[must_use]
    pub fn reported(&self, serial: u64) -> usize {
        self.reported.get(&serial).map_or(0, BTreeSet::len)
    }

    /// Forgets the failures of a release that were reported before this time, or at no known one.
    pub fn forget_before(&mut self, serial: u64, unix_s: u64) {
        if let Some(failed) = self.failed.get_mut(&serial) {
            failed.retain(|_, received| received.is_some_and(|received| received >= unix_s));
        }
    }

    fn take(&mut self, post: &Post, product: Option<&str>) {
        if product.is_some_and(|product| product != post.machine.product) {
            return;
        }
        let machine = &post.machine;
        let names = [&machine.id, &machine.serial_number, &machine.uuid, &machine.mac, &machine.hostname];
        // A robot without any name is still one robot.
        let robot = names.into_iter().flatten().next().cloned().unwrap_or_else(|| "a robot without a name".to_owned());
        for attempt in &post.attempts {
            if let Some(serial) = attempt.failed_release() {
                self.failed.entry(serial).or_default().insert(robot.clone(), post.received_unix_s);
                self.reported.entry(serial).or_default().insert(robot.clone());
            }
            if let Some(serial) = attempt.serial {
                self.reported.entry(serial).or_default().insert(robot.clone());
                if attempt.outcome.as_deref() == Some("installed") {
                    self.installed.insert(robot.clone(), serial);
                }
            }
        }
        let is_bad = post.boot.as_ref().is_some_and(|boot| !boot.not_good.is_empty() || boot.safe_start.is_some());
        if let Some(serial) = self.installed.get(&robot).filter(|_| is_bad) {
            self.failed.entry(*serial).or_default().insert(robot, post.received_unix_s);
        }
    }
}

impl PostedAttempt {
    /// The release that failed in this attempt, if one did.
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
        let is_bad = self.reason == "tries" || matches!(self.outcome.as_deref(), Some("failed" | "parked"));
        self.serial.filter(|_| is_bad)
    }
}

/// Files of posts, read as they grow.
#[derive(Debug)]
pub struct Reports {
    paths: Vec<PathBuf>,
    /// Bytes of each file that were read.
    read: HashMap<PathBuf, u64>,
    failures: Failures,
    product: Option<String>,
}

impl Reports {
    /// The posts of these files and directories.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, read: HashMap::new(), failures: Failures::default(), product: None }
    }

    /// Counts only robots of this product.
    #[must_use]
    pub fn of_product(mut self, product: &str) -> Self {
        self.product = Some(product.to_owned());
        self
    }

    /// Failures that were read so far.
    #[must_use]
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Failures that were read so far, to forget some of them.
    pub fn failures_mut(&mut self) -> &mut Failures {
        &mut self.failures
    }

    /// The paths that are not there: a misspelt one would be watched without a word, for ever.
    #[must_use]
    pub fn missing(&self) -> Vec<&Path> {
        self.paths.iter().map(PathBuf::as_path).filter(|path| !path.exists()).collect()
    }

    /// Reads what is new. What cannot be read is reported and tried again the next time.
    pub fn read_new(&mut self) {
        for path in self.files() {
            if let Err(error) = self.read_file(&path) {
                eprintln!("  warning: {error:#}");
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for path in &self.paths {
            if path.is_dir() {
                let entries = walkdir::WalkDir::new(path).sort_by_file_name().into_iter().flatten();
                found.extend(entries.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()));
            } else {
                found.push(path.clone());
            }
        }
        found
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let reading = || format!("read the posts in {}", path.display());
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            // It comes with the first post.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(reading),
        };
        let size = file.metadata().with_context(reading)?.len();
        // A file that was begun anew, as by logrotate, is read anew.
        let from = self.read.get(path).copied().filter(|from| *from <= size).unwrap_or(0);
        if from == size {
            return Ok(());
        }
        file.seek(SeekFrom::Start(from)).with_context(reading)?;
        let mut bytes = Vec::new();
        file.take(MAX_READ_BYTES).read_to_end(&mut bytes).with_context(reading)?;
        let is_one_post = path.extension().is_some_and(|extension| extension == "json");
        let taken = if is_one_post { self.take_whole(&bytes) } else { self.take_lines(&bytes) };
        self.read.insert(path.to_owned(), from + taken as u64);
        Ok(())
    }

    /// Takes a file that is one post; one that is still being written is read again.
    fn take_whole(&mut self, bytes: &[u8]) -> usize {
        if self.take(bytes) { bytes.len() } else { 0 }
    }

    /// Takes the lines that are whole. Returns the number of bytes that need not be read again.
    fn take_lines(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in bytes[..end].split(|byte| *byte == b'\n') {
            self.take(line);
        }
        // A line without an end is not waited for for ever.
        if end == 0 && bytes.len() > MAX_POST_BYTES { bytes.len() } else { end }
    }

    /// Takes one post. Whether it was one; other lines of a log are passed over.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let post = serde_json::from_slice::<Post>(bytes);
        post.map(|post| self.failures.take(&post, self.product.as_deref())).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Reports;
    use serde_json::{Value, json};
    use std::io::Write;

    fn post(robot: &str, attempt: &Value) -> String {
        json!({ "format": 1, "machine": { "id": robot, "product": "demo" }, "attempts": [attempt] }).to_string() + "\n"
    }

    #[test]
    fn only_what_is_the_release_s_fault_counts_and_each_robot_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("posts.jsonl");
        let mut reports = Reports::new(vec![dir.path().to_owned()]).of_product("demo");
        reports.read_new();
        assert!(reports.missing().is_empty());
        let misspelt = dir.path().join("pots");
        assert_eq!(Reports::new(vec![dir.path().to_owned(), misspelt.clone()]).missing(), [misspelt]);
        let mut file = std::fs::File::create(&path).unwrap();
        let mut say = |text: &str| file.write_all(text.as_bytes()).unwrap();
        let installed = json!({ "id": 1, "reason": "requested", "outcome": "installed", "serial": 8, "phases": [] });
        for number in 0..9 {
            say(&post(&format!("r{number}"), &installed));
        }
        let undone =
            json!({ "reason": "tries", "outcome": "installed", "serial": 7, "undone": { "serial": 8, "why": "" } });
        say(&post("r0", &undone));
        say(&post("r0", &undone));
        say(&post("r1", &json!({ "reason": "tries", "outcome": "installed", "serial": 8 })));
        say(&post("r2", &json!({ "reason": "recovering", "outcome": "failed", "serial": 8 })));
        let refused = |phases: Value| json!({ "reason": "requested", "outcome": "installed", "serial": 7, "refused": { "serial": 8, "why": "" }, "phases": phases });
        say(&post("r3", &refused(json!([{ "phase": "manifest" }]))));
        say(&post("r4", &refused(json!([{ "phase": "manifest" }, { "phase": "write" }]))));
        say(&json!({ "machine": { "id": "r5", "product": "demo" }, "boot": { "not_good": ["app.service failed"] } })
            .to_string());
        say("\n");
        say(&json!({ "machine": { "id": "r6", "product": "other" }, "attempts": [undone] }).to_string());
        say("\nno post at all\n");
        let cut = post("r7", &undone);
        say(&cut[..cut.len() / 2]);
        reports.read_new();
        assert_eq!(reports.failures().failed(8), ["r0", "r1", "r2", "r4", "r5"]);
        assert_eq!((reports.failures().reported(8), reports.failures().failed(7).len()), (9, 0));
        say(&cut[cut.len() / 2..]);
        std::fs::write(dir.path().join("one.json"), post("r8", &undone)).unwrap();
        reports.read_new();
        assert_eq!(reports.failures().failed(8).len(), 7);
        // Posts of before a roll-out went on do not stop it again.
        reports.failures_mut().forget_before(8, 100);
        assert!(reports.failures().failed(8).is_empty());
        std::fs::write(&path, post("r0", &undone)).unwrap();
        reports.read_new();
        assert_eq!(reports.failures().failed(8), ["r0"], "a file that was begun anew");
    }
}
