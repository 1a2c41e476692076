//! What a recovery reports, as a type. The journal hands every event to the console, the event log and its subscribers;
//! [`super::wire`] turns events into JSON where they leave the program.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::progress::Gauge;
use crate::record::totals::Totals;

/// Phases of a recovery, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Mounts, kernel modules, and the disk.
    Init,
    /// Configuration and trusted keys.
    Config,
    /// Network and clock.
    Network,
    /// The signed manifest and the chunk index of the release.
    Manifest,
    /// Comparison of the partition with the release.
    Plan,
    /// Download and write.
    Write,
    /// Read-back of what was written.
    Verify,
    /// The record of the release, the recovery slot, and the boot environment.
    Commit,
}

impl Phase {
    /// Number of phases.
    pub const COUNT: u8 = Self::Commit.number();

    /// Number of the phase, from 1, as the console shows it.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Name of the phase on the console and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Config => "config",
            Self::Network => "network",
            Self::Manifest => "manifest",
            Self::Plan => "plan",
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Commit => "commit",
        }
    }
}

/// One thing that happened. `Display` is the sentence for people, which is empty where the phase says it all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A phase began.
    PhaseBegan {
        /// Sentence about what the phase is going to do.
        sentence: &'a str,
    },
    /// A phase succeeded.
    PhaseEnded {
        /// Duration of the phase.
        duration: Duration,
    },
    /// A phase failed. The error is reported where it is handled.
    PhaseFailed {
        /// Duration of the phase.
        duration: Duration,
    },
    /// A sentence without quantities.
    Note(&'a str),
    /// Something went wrong and is being dealt with.
    Warning(&'a str),
    /// Bytes are moving. The event log leaves this out; subscribers get it twice a second.
    Progress(Gauge),
    /// An authentic release that fits this machine was found.
    ReleaseFound {
        /// Version of the release.
        version: &'a str,
        /// Serial of the release.
        serial: u64,
        /// Name of the key that signed it.
        signed_by: &'a str,
    },
    /// The partition equals the installed release, which is started again.
    SystemIntact {
        /// Version of the installed release.
        version: &'a str,
        /// Serial of the installed release.
        serial: u64,
    },
    /// The release that was to be installed is given up, for now or for good. The attempt that goes on is about another
    /// one.
    ReleaseRefused {
        /// The reason for which it cannot be installed.
        why: &'a str,
    },
    /// The recorded release is installed again, in place of the one that was refused.
    RepairBegan {
        /// Version of the recorded release.
        version: &'a str,
        /// Serial of the recorded release.
        serial: u64,
    },
    /// The installed release is taken back, and the one that is kept is installed again.
    UndoBegan {
        /// Version of the release that is kept.
        version: &'a str,
        /// Serial of the release that is kept.
        serial: u64,
        /// Version and serial of the release that is taken back, if they are known.
        undone: Option<(&'a str, u64)>,
        /// The reason for which it is taken back.
        why: &'a str,
    },
    /// Damage of the boot chain was mended; the text says what of it.
    Mended(&'a str),
    /// The first plan is made.
    Planned(Totals),
    /// The partition differs from the installed release in these byte ranges.
    Damaged(&'a [Range<u64>]),
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PhaseBegan { sentence: text } | Self::Note(text) | Self::Warning(text) => f.write_str(text),
            Self::PhaseEnded { .. } | Self::PhaseFailed { .. } | Self::Progress(_) => Ok(()),
            Self::ReleaseFound { version, serial, signed_by } => {
                write!(f, "release {version} (serial {serial}), signed by {signed_by}")
            }
            Self::SystemIntact { version, serial } => write!(f, "{version} (serial {serial}) is intact"),
            // Why stands in the line before.
            Self::ReleaseRefused { .. } => f.write_str("the release is refused"),
            Self::RepairBegan { version, .. } => write!(f, "repairing the installed release {version} instead"),
            Self::UndoBegan { version, serial, undone: Some((undone, _)), why } => {
                write!(f, "undo: {undone} is taken back, since {why}; going back to {version} (serial {serial})")
            }
            Self::UndoBegan { version, serial, undone: None, why } => {
                write!(f, "undo: going back to {version} (serial {serial}), since {why}")
            }
            Self::Mended(what) => write!(f, "mended: {what}"),
            Self::Planned(totals) => totals.fmt(f),
            Self::Damaged(ranges) => {
                write!(f, "it differs from the installed release at {}", ranges_for_people(ranges))
            }
        }
    }
}

/// An event with its circumstances, as subscribers get it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Time by the machine's clock, which may be wrong, in seconds since 1970.
    pub unix_s: u64,
    /// The phase that is going on.
    pub phase: Option<Phase>,
    /// The event itself.
    pub event: Event<'a>,
}

/// A subscriber, called for every event while the thread that reported it waits: it must be quick.
pub type Subscriber = Box<dyn Fn(&Entry<'_>) + Send>;

/// Formats at most five byte ranges as sectors of 512 bytes, the unit of kernel messages and disk tools.
#[must_use]
pub fn ranges_for_people(ranges: &[Range<u64>]) -> String {
    let mut text: Vec<String> = ranges
        .iter()
        .take(5)
        .map(|range| format!("sectors {} to {}", range.start / 512, range.end / 512 - 1))
        .collect();
    if ranges.len() > 5 {
        text.push(format!("{} more ranges", ranges.len() - 5));
    }
    text.join(", ")
}

/// The start of `text`, at most `limit_bytes` long and cut between characters.
pub(crate) fn cut(text: &str, limit_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(limit_bytes)]
}

#[cfg(test)]
mod tests {
    use super::{Event, Phase};

    #[test]
    fn damage_is_shown_as_sectors_and_not_without_end() {
        let ranges: Vec<_> = (0..7).map(|at| at * 8192..at * 8192 + 4096).collect();
        let text = Event::Damaged(&ranges).to_string();
        assert!(
            text.starts_with("it differs from the installed release at sectors 0 to 7, sectors 16 to 23,"),
            "{text}"
        );
        assert!(text.ends_with(", 2 more ranges"), "{text}");
        assert_eq!((Phase::Init.number(), Phase::COUNT), (1, 8));
    }
}
