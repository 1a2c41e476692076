//! What PID 1 and its worker say to each other. Pure.
//!
//! PID 1 hands a [`Handover`] to the worker as its argument. The worker reports with one JSON document a line on its
//! standard output ([`WorkerReport`]). PID 1 believes none of it: a line that makes no sense is left out, and what is
//! said can only have the machine restarted, parts of the next worker left out, and the watchdog fed.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name, as argument 0, of the process that does the work.
pub const WORKER: &str = "reflash-worker";

/// Directory, in the memory that PID 1 and its worker share, of what is to be started without GRUB.
pub const DIRECT_DIRECTORY: &str = "/start";
/// Name of the kernel there.
pub const DIRECT_KERNEL: &str = "vmlinuz";
/// Name of the initramfs there.
pub const DIRECT_INITRAMFS: &str = "initramfs.img";
/// Name of the command line there.
pub const DIRECT_ARGUMENTS: &str = "arguments";

/// Longest line of the worker that is read, bytes.
pub const MAX_LINE_BYTES: u64 = 4096;

/// A part of the work that can be left out, because something else can take its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkPart {
    /// A source of the release, by what it is called on the console. Another source may have the release too.
    Source(String),
    /// A network card, by its name. Another card may lead to a source.
    Card(String),
    /// The search for a release on USB drives.
    UsbDrives,
    /// The partition tables of disks that can be pulled out.
    RemovableDisks,
    /// The state partition as it is; an empty one takes its place.
    State,
    /// The comparison of the system with the record of the installed release.
    Comparison,
    /// The release that is kept on the machine, and the way back to it.
    Undo,
    /// The update that the running system has fetched, on the data partition. A network may have it too.
    Staged,
    /// The renewal of the recovery.
    Renewal,
    /// The mending of what firmware and GRUB read.
    Mending,
    /// Reports of progress and of earlier attempts.
    Reports,
    /// The data partition, in the first step of the system's boot; memory takes its place.
    Data,
}

impl fmt::Display for WorkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(name) => write!(f, "the source {name}"),
            Self::Card(name) => write!(f, "the network card {name}"),
            Self::UsbDrives => f.write_str("releases on USB drives"),
            Self::RemovableDisks => f.write_str("disks that can be pulled out"),
            Self::State => f.write_str("the content of the state partition"),
            Self::Comparison => f.write_str("the comparison with the installed release"),
            Self::Undo => f.write_str("the undo"),
            Self::Staged => f.write_str("the update that the system has fetched"),
            Self::Renewal => f.write_str("the renewal of the recovery"),
            Self::Mending => f.write_str("the mending of the boot chain"),
            Self::Reports => f.write_str("reports to a server"),
            Self::Data => f.write_str("the data partition"),
        }
    }
}

/// Message that PID 1 hands to a worker at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Time since the first worker of this boot was started, milliseconds: deadlines go on over a death.
    pub age_ms: u64,
    /// Ending of the worker before this one, if there was one.
    pub died: Option<String>,
    /// Parts that are left out, each because it ended two workers in the same way.
    pub left_out: Vec<WorkPart>,
}

impl Handover {
    /// Time since the first worker of this boot was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms)
    }

    /// Whether the part is left out.
    #[must_use]
    pub fn leaves_out(&self, part: &WorkPart) -> bool {
        self.left_out.contains(part)
    }
}

/// Report of the worker to PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerReport {
    /// Something was achieved since the last report of this kind.
    Progressed,
    /// The hardware watchdog is to be fed for as long as there is progress at least this often.
    Watchdog {
        /// Longest time without progress, seconds.
        limit_s: u64,
    },
    /// The machine is to be restarted after this time, counted from now, whatever the worker does then.
    RestartAfter {
        /// Time until the restart, seconds.
        limit_s: u64,
    },
    /// A part begins that may end the worker.
    Entered(WorkPart),
    /// The part that was entered is over.
    Left(WorkPart),
    /// A thread panicked, and the worker ends.
    Panicked {
        /// Place in the source, as `src/net.rs:12:3`.
        place: String,
        /// Message of the panic, with the name of its thread.
        text: String,
        /// The part that the thread was in.
        part: Option<WorkPart>,
    },
    /// The work of this boot is done and on the disk. Nothing is left but the last reports and the restart: to begin
    /// again would count a second recovery, or ask a person a second time.
    Done,
    /// At the restart, what lies in [`DIRECT_DIRECTORY`] is to be started in place of the firmware.
    StartDirectly,
    /// The file systems are released: the machine is to be restarted.
    Restart,
}

impl WorkerReport {
    /// The report as one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads a line; `None` for one that makes no sense.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Handover, WorkPart, WorkerReport};

    #[test]
    fn reports_are_lines() {
        for report in [
            WorkerReport::Progressed,
            WorkerReport::Watchdog { limit_s: 900 },
            WorkerReport::RestartAfter { limit_s: 660 },
            WorkerReport::Entered(WorkPart::Source("http://a/\n\"b".into())),
            WorkerReport::Left(WorkPart::State),
            WorkerReport::Panicked { place: "src/a.rs:1:2".into(), text: "a\nb".into(), part: Some(WorkPart::Reports) },
            WorkerReport::Done,
            WorkerReport::StartDirectly,
            WorkerReport::Restart,
        ] {
            let line = report.to_line();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(WorkerReport::parse(line.trim_end().as_bytes()), Some(report));
        }
        for nonsense in [&b""[..], b"\xff", b"{}", b"\"restart\" x", b"{\"watchdog\":{\"limit_s\":-1}}"] {
            assert_eq!(WorkerReport::parse(nonsense), None);
        }
    }

    #[test]
    fn a_handover_survives_its_way() {
        let handover = Handover {
            age_ms: 1500,
            died: Some("SIGSEGV".into()),
            left_out: vec![WorkPart::Card("eth0".into()), WorkPart::Renewal],
        };
        let text = serde_json::to_string(&handover).unwrap();
        assert_eq!(serde_json::from_str::<Handover>(&text).unwrap(), handover);
        assert!(handover.leaves_out(&WorkPart::Renewal) && !handover.leaves_out(&WorkPart::State));
    }
}
