//! Files of what robots post, read as they grow.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reflash::release::digest::Digest;
use rustix::fs::OFlags;

use super::failures::{Failures, RobotPost};

/// Most bytes of one post: as many as the station takes, and more.
const MAX_POST_BYTES: u64 = 1 << 20;
/// Bytes that are read at a time.
const READ_BYTES: u64 = 16 << 20;
/// Bytes before the place to go on at, by which a file is known again that only grew.
const KNOWN_BYTES: u64 = 4096;
/// Time between two warnings about the same.
const REMIND: Duration = Duration::from_secs(60);

/// Files of posts, read as they grow.
#[derive(Debug, Default)]
pub struct Reports {
    paths: Vec<PathBuf>,
    files: HashMap<PathBuf, ReadFile>,
    failures: Failures,
    product: Option<String>,
    /// Lines and files that are no posts.
    others: usize,
    warned: HashMap<String, Instant>,
}

/// A file, as far as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ReadFile {
    /// Device, inode, size and time of the last change.
    identity: (u64, u64, u64, i64, i64),
    /// Bytes that were taken.
    taken: u64,
    /// Beginning and digest of the last of them.
    known: (u64, Option<Digest>),
    /// Whether the rest behind them was counted as no post.
    is_rest_counted: bool,
}

impl Reports {
    /// The posts of these files and directories.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, ..Self::default() }
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

    /// Number of lines and files so far that are no posts.
    #[must_use]
    pub fn others(&self) -> usize {
        self.others
    }

    /// The paths that are not there: a misspelt one would be watched without a word, for ever.
    #[must_use]
    pub fn missing(&self) -> Vec<&Path> {
        self.paths.iter().map(PathBuf::as_path).filter(|path| !path.exists()).collect()
    }

    /// Reads what is new. What cannot be read is warned of, and tried again the next time.
    pub fn read_new(&mut self) {
        let (before, of_before) = (self.others, self.failures.of_before());
        for path in self.files() {
            if let Err(error) = self.read_file(&path) {
                self.warn(format!("{error:#}"));
            }
        }
        if self.others > before {
            let others = self.others;
            self.warn_as(
                "others",
                format!("{others} lines or files among the posts are no posts, and count as nothing"),
            );
        }
        let new = self.failures.of_before() - of_before;
        if new > 0 {
            self.warn_as(
                "of before",
                format!(
                    "{new} failures do not count, since they were received before their release was resumed; if these \
                     posts are new, set the clock of the computer that takes them, which is behind"
                ),
            );
        }
    }

    fn warn(&mut self, text: String) {
        self.warn_as(&text.clone(), text);
    }

    /// Warns of something, now and then.
    pub(super) fn warn_as(&mut self, about: &str, text: String) {
        if self.warned.get(about).is_none_or(|warned| warned.elapsed() >= REMIND) {
            self.warned.insert(about.to_owned(), Instant::now());
            eprintln!("  warning: {text}");
        }
    }

    fn files(&mut self) -> Vec<PathBuf> {
        let (mut found, mut problems) = (Vec::new(), Vec::new());
        for path in &self.paths {
            if !path.is_dir() {
                found.push(path.clone());
                continue;
            }
            for entry in walkdir::WalkDir::new(path).follow_links(true).sort_by_file_name() {
                match entry {
                    Ok(entry) if entry.file_type().is_dir() => (),
                    Ok(entry) => found.push(entry.into_path()),
                    Err(error) => problems.push(format!("look for posts: {error}")),
                }
            }
        }
        problems.into_iter().for_each(|problem| self.warn(problem));
        found
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let reading = || format!("read the posts in {}", path.display());
        // A pipe without a writer is not waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut file = match File::options().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            // It comes with the first post.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(reading),
        };
        let about = file.metadata().with_context(reading)?;
        ensure!(about.is_file(), "{} is no file, so that no post is read there", path.display());
        let identity = (about.dev(), about.ino(), about.len(), about.mtime(), about.mtime_nsec());
        let before = self.files.get(path).cloned().unwrap_or_default();
        let stays = identity == before.identity;
        if stays && (before.taken == about.len() || before.is_rest_counted) {
            return Ok(());
        }
        // A file that was begun anew, as by logrotate or by the next post of its robot, is read anew.
        let has_grown = has_grown(&mut file, about.len(), &before).with_context(reading)?;
        let mut now = ReadFile { identity, ..if has_grown { before } else { ReadFile::default() } };
        self.read_on(&mut file, &mut now, stays).with_context(reading)?;
        let from = now.taken.saturating_sub(KNOWN_BYTES.max(if now.taken <= MAX_POST_BYTES { now.taken } else { 0 }));
        now.known = (from, Some(Digest::of(&part(&mut file, from, now.taken - from).with_context(reading)?)));
        self.files.insert(path.to_owned(), now);
        Ok(())
    }

    /// Takes what a file has beyond what was taken, a post a line or all of it as one post. The rest, behind the last
    /// line feed, counts once it is a post, and as none once it `stays`.
    fn read_on(&mut self, file: &mut File, now: &mut ReadFile, stays: bool) -> std::io::Result<()> {
        let size = now.identity.2;
        // A file that is one post came with it.
        let came_unix_s = u64::try_from(now.identity.3).ok();
        if now.taken == 0 && size <= MAX_POST_BYTES && self.take(&part(file, 0, size)?, came_unix_s) {
            now.taken = size;
            return Ok(());
        }
        let mut rest: Vec<u8> = Vec::new();
        let mut at = now.taken;
        loop {
            let bytes = part(file, at, READ_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            rest.extend_from_slice(&bytes);
            let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for line in rest[..end].split(|byte| *byte == b'\n') {
                self.take_line(line);
            }
            now.taken += end as u64;
            rest.drain(..end);
            // A line without an end is not kept for ever.
            if rest.len() as u64 > MAX_POST_BYTES.max(READ_BYTES) {
                self.others += 1;
                now.taken += rest.len() as u64;
                rest.clear();
            }
        }
        if !rest.is_empty() && self.take(&rest, None) {
            now.taken = at;
        } else if !rest.trim_ascii().is_empty() && stays {
            (self.others, now.is_rest_counted) = (self.others + 1, true);
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8]) {
        if !line.trim_ascii().is_empty() && !self.take(line, None) {
            self.others += 1;
        }
    }

    /// Takes one post, which came at that time unless it says another. Returns whether it was one.
    fn take(&mut self, bytes: &[u8], came_unix_s: Option<u64>) -> bool {
        let Ok(mut post) = serde_json::from_slice::<RobotPost>(bytes) else { return false };
        post.received_unix_s = post.received_unix_s.or(came_unix_s);
        self.failures.take(&post, self.product.as_deref());
        true
    }
}

/// Whether a file still has what was taken of it, so that what follows is new.
fn has_grown(file: &mut File, size: u64, before: &ReadFile) -> std::io::Result<bool> {
    let (from, known) = before.known;
    if size < before.taken {
        return Ok(false);
    }
    Ok(known.is_none_or(|known| part(file, from, before.taken - from).is_ok_and(|found| Digest::of(&found) == known)))
}

fn part(file: &mut File, from: u64, size: u64) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::Reports;
    use reflash::release::digest::Digest;
    use reflash::release::manifest::Object;
    use reflash::release::rollout::{FORMAT, Rollout, StagedRelease};
    use serde_json::{Value, json};
    use std::io::Write;
    use std::path::Path;

    fn post(robot: &str, attempt: &Value) -> String {
        json!({ "format": 1, "machine": { "id": robot, "product": "demo" }, "attempts": [attempt] }).to_string() + "\n"
    }

    fn undone() -> Value {
        json!({ "reason": "tries", "outcome": "installed", "serial": 7, "undone": { "serial": 8, "why": "" } })
    }

    fn failed(reports: &Reports, serial: u64) -> Vec<String> {
        let manifest = |serial: u64| Object { blake3: Digest::of(&serial.to_le_bytes()), size_bytes: 1 };
        let staged = |serial| StagedRelease::new(serial, String::new(), manifest(serial), Vec::new());
        let rollout = Rollout {
            format: FORMAT,
            product: "demo".into(),
            channel: "stable".into(),
            counter: 1,
            created_unix_s: 0,
            halt_key: None,
            releases: vec![staged(7), staged(8)],
        };
        let found = reports.failures().failed(&rollout, rollout.release(serial).unwrap());
        found.into_iter().map(str::to_owned).collect()
    }

    fn read(path: &Path) -> Reports {
        let mut reports = Reports::new(vec![path.to_owned()]);
        (0..2).for_each(|_| reports.read_new());
        reports
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
        let undone = undone();
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
        assert_eq!(failed(&reports, 8), ["r0", "r1", "r2", "r4", "r5"]);
        assert_eq!((reports.failures().reported(8), failed(&reports, 7).len(), reports.others()), (9, 0, 1));
        say(&cut[cut.len() / 2..]);
        std::fs::write(dir.path().join("one.json"), post("r8", &undone)).unwrap();
        reports.read_new();
        assert_eq!(failed(&reports, 8).len(), 7);
        // Posts of before a roll-out went on do not stop it again.
        assert_eq!(reports.failures_mut().forget_before(8, 100), 6);
        assert_eq!(failed(&reports, 8), ["r8"], "its file says when it came");
        std::fs::write(&path, post("r0", &undone)).unwrap();
        reports.read_new();
        assert_eq!(failed(&reports, 8), ["r0", "r8"], "a file that was begun anew");
    }

    /// Servers keep posts in many ways; none may leave a failing release unnoticed.
    #[test]
    fn posts_are_found_however_a_server_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, content: &str| std::fs::write(path(name), content).unwrap();
        let lines: String = (0..5).map(|robot| post(&format!("r{robot}"), &undone())).collect();
        write("lines.json", &lines);
        write("without-end.jsonl", lines.trim_end());
        let value: Value = serde_json::from_str(&post("r0", &undone())).unwrap();
        write("pretty.txt", &serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(failed(&read(&path("lines.json")), 8).len(), 5);
        assert_eq!(failed(&read(&path("without-end.jsonl")), 8).len(), 5);
        let pretty = read(&path("pretty.txt"));
        assert_eq!((failed(&pretty, 8).len(), pretty.others()), (1, 0));
        std::fs::create_dir(path("linked")).unwrap();
        std::os::unix::fs::symlink(path("lines.json"), path("linked/posts")).unwrap();
        assert_eq!(failed(&read(&path("linked")), 8).len(), 5);
        // More than is read at a time, and a line that is cut by it.
        let installed = post("r9", &json!({ "outcome": "installed", "serial": 8, "phases": ["x".repeat(500)] }));
        let filler = installed.replace(&format!("[\"{}\"]", "x".repeat(500)), "[{\"phase\":\"write\"}]");
        let many = filler.repeat((40 << 20) / filler.len());
        write("large.jsonl", &format!("{many}{lines}"));
        assert_eq!(failed(&read(&path("large.jsonl")), 8).len(), 5);
        // What is no file is not waited for.
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(failed(&read(&path("pipe")), 8).is_empty());
        write("rubbish", "hello\nthere\n\nyou");
        assert_eq!(read(&path("rubbish")).others(), 3);
    }

    /// A watcher that is started anew reads what was judged again, and has to tell it from what came later.
    #[test]
    fn the_time_of_a_file_with_one_post_is_when_that_came() {
        let dir = tempfile::tempdir().unwrap();
        let judged_unix_s = 1_800_000_000;
        for (robot, unix_s) in [("r0", judged_unix_s - 5), ("r1", judged_unix_s + 5)] {
            let path = dir.path().join(robot);
            std::fs::write(&path, post(robot, &undone())).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_s);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
        let mut reports = read(dir.path());
        assert_eq!(failed(&reports, 8), ["r0", "r1"]);
        assert_eq!(reports.failures_mut().forget_before(8, judged_unix_s), 0);
        assert_eq!(failed(&reports, 8), ["r1"]);
        std::fs::write(dir.path().join("lines"), post("r2", &undone()) + &post("r3", &undone())).unwrap();
        reports.read_new();
        assert_eq!(reports.failures_mut().forget_before(8, judged_unix_s), 2, "nothing says when these came");
    }

    /// One file a robot, each post in the place of the one before.
    #[test]
    fn a_post_that_takes_the_place_of_another_is_read_and_one_that_follows_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("robot.json");
        let mut reports = Reports::new(vec![dir.path().to_owned()]);
        let good = post("r0", &json!({ "outcome": "installed", "serial": 7 }));
        std::fs::write(&path, &good).unwrap();
        reports.read_new();
        let bad = post("r0", &undone());
        assert!(bad.len() > good.len());
        std::fs::write(&path, &bad).unwrap();
        reports.read_new();
        assert_eq!(failed(&reports, 8), ["r0"]);
        // The same size.
        std::fs::write(&path, bad.replace("r0", "r1")).unwrap();
        reports.read_new();
        assert_eq!(failed(&reports, 8), ["r0", "r1"]);
        // A line more: only that one is new.
        assert_eq!(reports.failures_mut().forget_before(8, u64::MAX), 0);
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        file.write_all(bad.replace("r0", "r2").as_bytes()).unwrap();
        reports.read_new();
        assert_eq!((failed(&reports, 8), reports.others()), (vec!["r2".to_owned()], 0));
    }
}
