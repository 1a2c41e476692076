//! Whether the system that runs is healthy, which it has to be before its boot is called good: the services that its
//! image starts stay up, and the image's own checks pass.
//!
//! | check | counts |
//! |---|---|
//! | the programs of `health.d` ([`programs`]) | always |
//! | the services of `boot.health_units` | always |
//! | any other service of the image that crashes or is restarted over and over ([`settle`]) | until a boot of the release was good on this machine |
//!
//! The last row has its bound because a machine of a fleet loses a sensor now and then. The driver of that sensor
//! crashes from then on, in every release: a machine that is of some use must not be restarted for it, nor be kept from
//! updates. So a release proves itself once on each machine, and what failed already under the one before does not
//! count against it. What an application cannot do without belongs into one of the other rows.

pub mod programs;
pub mod settle;
pub mod units;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::boot::this_boot;
use crate::order;
use crate::sys::companion;
use crate::sys::files;
use units::UnitState;

/// Path of the record of this boot's health in the running system.
pub const PATH: &str = "/run/reflash/health.json";
/// Path of the terms, which the first step of the boot writes.
const TERMS: &str = "/run/reflash/health-terms.json";
/// Size of the largest of these files that is read, bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// Names of the services that failed when a boot was called good last, one a line, below `/var`.
const BEFORE: &str = "lib/reflash/failed-when-good";
/// Default of `boot.settle_s`, seconds.
const SETTLE_S: u64 = 30;
/// Program of systemd that knows the state of the units.
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Time for its answer. A systemd that reads its units anew answers after seconds on a slow disk.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(20);

/// Terms on which a system counts as healthy, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthTerms {
    /// `boot.settle_s`: seconds for which services have to stay up; 0 leaves out those that nothing names.
    pub settle_s: u64,
    /// `boot.health_units`: names of the services that always count, in which `*` stands for any text.
    pub units: Vec<String>,
    /// `boot.health_ignore`: names of services that never count.
    pub ignore: Vec<String>,
}

impl Default for HealthTerms {
    fn default() -> Self {
        Self { settle_s: SETTLE_S, units: Vec::new(), ignore: Vec::new() }
    }
}

impl HealthTerms {
    /// Leaves the terms for the running system.
    ///
    /// # Errors
    /// The file system's. The system then goes by the defaults.
    pub fn write(&self) -> io::Result<()> {
        fs::create_dir_all(this_boot::DIRECTORY)?;
        fs::write(TERMS, serde_json::to_vec(self)?)
    }

    /// Reads the terms; what is missing is its default.
    #[must_use]
    pub fn read() -> Self {
        let text = files::read(Path::new(TERMS), MAX_BYTES).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}

/// A check that fails, or a service that does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Name of the service, or path of the program.
    pub name: String,
    /// Fault of it, as the rest of a sentence that begins with its name. The same fault has the same text.
    pub what: String,
    /// Quantities, and what a program printed last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Whether it keeps the boot from being called good.
    pub counts: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.what)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// Record of the health of this boot, for people, commands and the boot watch. Its members persist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthRecord {
    /// Whether every check that counts has passed.
    pub healthy: bool,
    /// Problems, those that count first.
    pub problems: Vec<Problem>,
}

impl HealthRecord {
    /// The record of these problems, where every check has come to an end.
    #[must_use]
    pub fn of(mut problems: Vec<Problem>) -> Self {
        order::by_key(&mut problems, |problem| !problem.counts);
        Self { healthy: problems.iter().all(|problem| !problem.counts), problems }
    }

    /// Reads the record of this boot, if there is one.
    #[must_use]
    pub fn of_this_boot() -> Option<Self> {
        serde_json::from_slice(&files::read(Path::new(PATH), MAX_BYTES).ok()?).ok()
    }

    /// Writes the record of this boot.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::create_dir_all(this_boot::DIRECTORY)?;
        // Whole or not at all: the boot watch may read it at any time.
        let new = Path::new(PATH).with_added_extension("new");
        fs::write(&new, text + "\n")?;
        fs::rename(new, PATH)
    }

    /// Problems that keep the boot from being called good.
    pub fn in_the_way(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.counts)
    }
}

/// Asks systemd for the state of every service that is loaded. `None` where it does not answer.
#[must_use]
pub fn services() -> Option<Vec<UnitState>> {
    let answer = companion::run_within(Path::new(SYSTEMCTL), units::QUESTION, SYSTEMCTL_LIMIT);
    answer.filter(|(code, _)| *code == Some(0)).map(|(_, text)| units::parse(&text))
}

/// Reads which services failed when a boot was called good last. Without a data partition: none.
#[must_use]
pub fn failed_when_good(var: &Path) -> BTreeSet<String> {
    let text = files::read_below(var, Path::new(BEFORE), MAX_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// Keeps which services fail in this good boot, for the release after this one.
///
/// # Errors
/// The file system's. What fails then counts against the next release.
pub fn keep_failed_when_good(var: &Path, names: &BTreeSet<String>) -> io::Result<()> {
    if *names == failed_when_good(var) {
        return Ok(());
    }
    let path = var.join(BEFORE);
    if names.is_empty() {
        return files::removed_or_gone(fs::remove_file(path));
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let new = path.with_added_extension("new");
    fs::write(&new, names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    fs::rename(new, path)
}

/// Whether a unit's file belongs to the image, and not to this machine alone. `/etc` is an overlay: what the image
/// has of it is in `/usr/etc` too.
#[must_use]
pub fn is_of_image(unit: &UnitState) -> bool {
    let source = if unit.fragment.starts_with("/run/") { &unit.source } else { &unit.fragment };
    let exists = |path: String| match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    match source.strip_prefix("/etc/") {
        Some(below) => exists(format!("/usr/etc/{below}")),
        None => source.starts_with("/usr/") || source.starts_with("/lib/"),
    }
}

#[cfg(test)]
mod tests {
    use super::{HealthRecord, HealthTerms, Problem, failed_when_good, keep_failed_when_good};
    use std::collections::BTreeSet;

    #[test]
    fn what_failed_in_a_good_boot_is_kept_below_var() {
        let var = tempfile::tempdir().unwrap();
        assert!(failed_when_good(var.path()).is_empty());
        let names: BTreeSet<String> = ["a.service".to_owned(), "b@1.service".to_owned()].into();
        keep_failed_when_good(var.path(), &names).unwrap();
        assert_eq!(failed_when_good(var.path()), names);
        keep_failed_when_good(var.path(), &BTreeSet::new()).unwrap();
        assert!(failed_when_good(var.path()).is_empty() && !var.path().join(super::BEFORE).exists());
    }

    #[test]
    fn a_record_is_healthy_when_nothing_that_counts_fails() {
        let problem =
            |name: &str, counts| Problem { name: name.into(), what: "fails".into(), detail: String::new(), counts };
        let record = HealthRecord::of(vec![problem("sensor.service", false), problem("app.service", true)]);
        assert!(!record.healthy);
        assert_eq!(record.in_the_way().map(ToString::to_string).collect::<Vec<_>>(), ["app.service fails"]);
        assert_eq!(record.problems[0].name, "app.service");
        assert!(HealthRecord::of(vec![problem("sensor.service", false)]).healthy);
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains("\"healthy\":false") && text.contains("\"counts\":true"), "{text}");
    }

    #[test]
    fn terms_that_are_missing_are_the_defaults() {
        let terms: HealthTerms = serde_json::from_str("{\"later\": 1}").unwrap();
        assert_eq!((terms.settle_s, terms.units.len()), (30, 0));
    }
}
