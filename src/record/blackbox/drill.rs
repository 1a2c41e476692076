//! What a drill found out: whether this machine could recover now.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::event::cut;

/// Bytes that are kept of what a check found: the chain of a fetch from several mirrors can be long, and the slot of an
/// attempt has 4 KiB.
const MAX_FOUND_BYTES: usize = 240;

/// Result of a drill: everything that a recovery needs was tried, and nothing was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// Whether a recovery would have worked. `false` from the beginning of a drill until it has shown that, so that one
    /// which was cut short did not pass.
    #[serde(default)]
    pub passed: bool,
    /// Checks that were made, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<DrillCheck>,
}

/// One check of a drill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrillCheck {
    /// Name of what was tried: `network`, `manifest`, `plan`, `content`, `undo`, `time` or `start`.
    pub name: String,
    /// Whether it worked.
    pub passed: bool,
    /// Finding of the check, for people.
    pub found: String,
}

/// The name of a check that does not decide whether a drill passes: a release before this one need not be kept.
pub const UNDO: &str = "undo";

impl DrillCheck {
    /// The check of `name`, with what it found.
    #[must_use]
    pub fn new(name: &str, passed: bool, found: &str) -> Self {
        Self { name: name.to_owned(), passed, found: cut(found, MAX_FOUND_BYTES).to_owned() }
    }
}

impl DrillRecord {
    /// The record of a drill that made these checks to its end.
    #[must_use]
    pub fn of(checks: Vec<DrillCheck>) -> Self {
        let passed = !checks.is_empty() && checks.iter().all(|check| check.passed || check.name == UNDO);
        Self { passed, checks }
    }

    /// The record of a drill that came no further than these checks.
    #[must_use]
    pub fn unfinished(checks: Vec<DrillCheck>) -> Self {
        Self { passed: false, checks }
    }
}

impl fmt::Display for DrillCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed { "ok" } else { "no" };
        write!(f, "{} {word}: {}", self.name, self.found)
    }
}

impl fmt::Display for DrillRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.passed { "the drill passed" } else { "the drill did not pass" })
    }
}

#[cfg(test)]
mod tests {
    use super::{DrillCheck, DrillRecord};
    use crate::record::blackbox::{Attempt, AttemptOutcome, BlackBox};

    fn check(name: &str, passed: bool) -> DrillCheck {
        DrillCheck::new(name, passed, "found")
    }

    #[test]
    fn every_check_but_undo_decides() {
        assert!(DrillRecord::of(vec![check("network", true), check("undo", false)]).passed);
        assert!(!DrillRecord::of(vec![check("network", true), check("plan", false), check("undo", true)]).passed);
        assert!(!DrillRecord::of(Vec::new()).passed && !DrillRecord::unfinished(vec![check("plan", true)]).passed);
    }

    #[test]
    fn the_longest_drill_fits_into_its_slot_and_an_attempt_without_one_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut open = BlackBox::open(&dir.path().join("blackbox")).unwrap();
        let long = DrillCheck::new("manifest", false, &"é\"".repeat(5000));
        assert!(long.found.len() <= 240);
        let drill = Some(DrillRecord::of(vec![long; 6]));
        let errors = vec!["x".repeat(500); 6];
        let outcome = Some(AttemptOutcome::Started);
        open.record(&Attempt { id: 1, drill: drill.clone(), errors, outcome, ..Attempt::default() }).unwrap();
        let read = BlackBox::open_read_only(&dir.path().join("blackbox")).unwrap();
        assert_eq!(read.attempts()[0].drill, drill);
        assert!(!serde_json::to_string(&Attempt::default()).unwrap().contains("drill"));
    }
}
