//! JSON as it leaves the program: lines of the event log, and posts to `report.url` (`docs/station.md`).
//!
//! Writer and reader share these types, and may be of different ages. A reader therefore ignores members it does not
//! know, takes a missing one as its default, and keeps a value it does not know as text ([`Open`]). A change that an
//! older reader would misunderstand needs another [`FORMAT`].

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::record::blackbox::{Attempt, AttemptOutcome};
use crate::record::event::{Entry, Event, Phase};
use crate::record::start::StartRecord;

/// Format of posts. Posts of agents from before there was this member have none, and are of format 1 too.
pub const FORMAT: u32 = 1;

/// One line of the event log.
#[derive(Debug, Serialize)]
struct LogLine {
    unix_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<Phase>,
    event: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Value::is_null")]
    data: Value,
}

/// Formats an event as one line of the event log, without the line feed; `None` for what the log leaves out.
///
/// A line has `unix_s`, `phase` and `event` (`begin`, `end`, `failed`, `note`, `warning`), and `text`, `duration_ms`
/// and `data` where they apply.
#[must_use]
pub fn log_line(entry: &Entry<'_>) -> Option<String> {
    let (event, duration, data) = match entry.event {
        Event::PhaseBegan { .. } => ("begin", None, Value::Null),
        Event::PhaseEnded { duration } => ("end", Some(duration), Value::Null),
        Event::PhaseFailed { duration } => ("failed", Some(duration), Value::Null),
        Event::Note(_) => ("note", None, Value::Null),
        Event::Warning(_) => ("warning", None, Value::Null),
        Event::Progress(_) => return None,
        Event::ReleaseRefused { .. } => ("note", None, Value::Null),
        Event::ReleaseFound { version, serial, .. }
        | Event::SystemIntact { version, serial }
        | Event::RepairBegan { version, serial } => ("note", None, json!({ "version": version, "serial": serial })),
        Event::UndoBegan { version, serial, undone, .. } => {
            let undone = undone.map(|(version, serial)| json!({ "version": version, "serial": serial }));
            ("note", None, json!({ "version": version, "serial": serial, "undone": undone }))
        }
        Event::Mended(what) => ("note", None, json!({ "mended": what })),
        Event::Planned(totals) => ("note", None, json!(totals)),
        Event::Damaged(ranges) => {
            let pairs: Vec<[u64; 2]> = ranges.iter().map(|range| [range.start, range.end]).collect();
            ("note", None, json!({ "damaged_byte_ranges": pairs }))
        }
    };
    let (Entry { unix_s, phase, .. }, text) = (*entry, entry.event.to_string());
    serde_json::to_string(&LogLine { unix_s, phase, event, text, duration_ms: duration.map(millis), data }).ok()
}

/// A duration in whole milliseconds; one of 585 million years or more counts as that.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A value of a set that a later version may extend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Open<T> {
    /// A value that this version knows.
    Known(T),
    /// Any other text.
    Unknown(String),
}

/// Identity of the machine that posts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportedMachine {
    /// Hash of the hardware's identity, 16 hex digits: equal in every post of this machine, and different for every
    /// other one. `None` for a machine that has neither serial number, UUID nor network card.
    pub id: Option<String>,
    /// Host name of the installed system, where a template gives it one.
    pub hostname: Option<String>,
    /// Product that the machine is configured for.
    pub product: String,
    /// Product name of the hardware.
    pub hardware: Option<String>,
    /// Serial number of the hardware.
    pub serial_number: Option<String>,
    /// UUID of the hardware.
    pub uuid: Option<String>,
    /// Hardware address of the first network card.
    pub mac: Option<String>,
}

/// Result of a recovery, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// A release was written, verified and made bootable.
    Installed,
    /// The system was intact and was started again.
    Started,
    /// The release that was to be installed was refused, and the installed one was repaired instead.
    Repaired,
    /// No release that is offered is for this machine. The agent may still be asking for another.
    Refused,
    /// The recovery failed. The machine may be waiting for another release.
    Failed,
    /// A blank machine was provisioned.
    Provisioned,
}

impl From<AttemptOutcome> for Ending {
    fn from(outcome: AttemptOutcome) -> Self {
        match outcome {
            AttemptOutcome::Installed => Self::Installed,
            AttemptOutcome::Started => Self::Started,
            AttemptOutcome::Parked | AttemptOutcome::Failed => Self::Failed,
        }
    }
}

/// State of a recovery that is going on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportedProgress {
    /// The phase that is going on, or was the last one.
    pub phase: Option<Open<Phase>>,
    /// Number of that phase, from 1.
    pub phase_number: Option<u8>,
    /// Bytes done in this phase, of disk and network together.
    pub done_bytes: Option<u64>,
    /// Bytes to do in this phase.
    pub total_bytes: Option<u64>,
    /// Smoothed rate of disk or network, whichever takes longer.
    pub bytes_per_s: Option<u64>,
    /// The last sentence of the console.
    pub message: String,
    /// Version of the release, once known.
    pub version: Option<String>,
    /// Number of this post within the run, from 1. A post that got lost leaves a gap.
    pub sequence: u64,
    /// Seconds since the kernel started.
    pub uptime_s: u64,
    /// Result, once there is one. A later post may take it back.
    pub result: Option<Open<Ending>>,
}

/// Members of an attempt that a reader takes. The writer posts the whole [`Attempt`] of the black box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportedAttempt {
    /// Reason for which GRUB started the agent.
    pub reason: Option<String>,
    /// Ending of the attempt; `None` for one that was cut short.
    pub outcome: Option<Open<AttemptOutcome>>,
    /// Version of the release that the attempt was about.
    pub version: Option<String>,
}

/// A post, as a reader takes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Post {
    /// The machine that posts.
    pub machine: ReportedMachine,
    /// State of the recovery that is going on.
    #[serde(default)]
    pub progress: Option<ReportedProgress>,
    /// Attempts that ended and were not reported before, oldest first.
    #[serde(default)]
    pub attempts: Vec<ReportedAttempt>,
    /// Record of how the running system was put together, where that is not as it should be: a safe start, or lost
    /// data.
    #[serde(default)]
    pub boot: Option<StartRecord>,
}

#[derive(Serialize)]
struct ProgressPost<'a> {
    format: u32,
    machine: &'a ReportedMachine,
    progress: &'a ReportedProgress,
}

#[derive(Serialize)]
struct AttemptsPost<'a> {
    format: u32,
    machine: &'a ReportedMachine,
    attempts: &'a [Attempt],
}

#[derive(Serialize)]
struct StartPost<'a> {
    format: u32,
    machine: &'a ReportedMachine,
    attempts: [(); 0],
    boot: &'a StartRecord,
}

/// Formats a post about how the running system was put together. It has an empty list of attempts, so that a server
/// which knows attempts only takes it for a report without any.
///
/// # Errors
/// Never for these types; the caller goes on without the post.
pub fn start_post(machine: &ReportedMachine, boot: &StartRecord) -> serde_json::Result<String> {
    serde_json::to_string(&StartPost { format: FORMAT, machine, attempts: [], boot })
}

/// Formats a post about an update that is prepared while the system works.
///
/// # Errors
/// Never for these types; the caller goes on without the post.
pub fn update_post(machine: &ReportedMachine, update: &Value) -> serde_json::Result<String> {
    serde_json::to_string(&json!({ "format": FORMAT, "machine": machine, "attempts": [], "update": update }))
}

/// Formats a post about the recovery that is going on.
///
/// # Errors
/// Never for these types; the caller goes on without the post.
pub fn progress_post(machine: &ReportedMachine, progress: &ReportedProgress) -> serde_json::Result<String> {
    serde_json::to_string(&ProgressPost { format: FORMAT, machine, progress })
}

/// Formats a post about attempts that ended.
///
/// # Errors
/// Never for these types; the caller goes on without the post.
pub fn attempts_post(machine: &ReportedMachine, attempts: &[Attempt]) -> serde_json::Result<String> {
    serde_json::to_string(&AttemptsPost { format: FORMAT, machine, attempts })
}

#[cfg(test)]
mod tests {
    use super::{
        Ending, Open, Post, ReportedMachine, ReportedProgress, attempts_post, log_line, progress_post, start_post,
    };
    use crate::record::blackbox::{Attempt, AttemptOutcome, PhaseRecord};
    use crate::record::event::{Entry, Event, Phase};
    use crate::record::progress::Gauge;
    use crate::record::start::StartRecord;
    use crate::record::totals::Totals;
    use std::time::Duration;

    #[test]
    fn a_post_about_a_start_has_its_record_and_no_attempts() {
        let mut boot = StartRecord::default();
        boot.lose("the data partition cannot be read");
        let text = start_post(&ReportedMachine::default(), &boot).unwrap();
        assert!(text.contains("\"boot\":{\"data\":\"lost\"") && text.contains("cannot be read"), "{text}");
        assert!(serde_json::from_str::<Post>(&text).unwrap().attempts.is_empty());
    }

    /// As written before events had a type: programs read these lines.
    #[test]
    fn lines_of_the_event_log_stay_as_they_are() {
        let ranges = [0..4096, 8192..12288];
        let totals = Totals {
            image_bytes: 9,
            right_bytes: 1,
            zero_bytes: 2,
            move_bytes: 3,
            write_bytes: 4,
            download_bytes: 5,
            ..Totals::default()
        };
        let duration = Duration::from_micros(1_500_700);
        let found = Event::ReleaseFound { version: "2.0", serial: 9, signed_by: "a.pub" };
        for (event, expected) in [
            (Event::PhaseBegan { sentence: "http://a" }, r#""event":"begin","text":"http://a"}"#),
            (Event::PhaseEnded { duration }, r#""event":"end","duration_ms":1500}"#),
            (Event::PhaseFailed { duration }, r#""event":"failed","duration_ms":1500}"#),
            (Event::Note("half way"), r#""event":"note","text":"half way"}"#),
            (Event::Warning("a: b"), r#""event":"warning","text":"a: b"}"#),
            (
                found,
                r#""event":"note","text":"release 2.0 (serial 9), signed by a.pub","data":{"serial":9,"version":"2.0"}}"#,
            ),
            (
                Event::SystemIntact { version: "2.0", serial: 9 },
                r#""event":"note","text":"2.0 (serial 9) is intact","data":{"serial":9,"version":"2.0"}}"#,
            ),
            (
                Event::Planned(totals),
                concat!(
                    r#""event":"note","text":"1 B are right already; to download 5 B, to move 3 B, to write 4 B, to zero 2 B","#,
                    r#""data":{"download_bytes":5,"image_bytes":9,"move_bytes":3,"right_bytes":1,"write_bytes":4,"zero_bytes":2}}"#
                ),
            ),
            (
                Event::Damaged(&ranges),
                concat!(
                    r#""event":"note","text":"it differs from the installed release at sectors 0 to 7, sectors 16 to 23","#,
                    r#""data":{"damaged_byte_ranges":[[0,4096],[8192,12288]]}}"#
                ),
            ),
        ] {
            let line = log_line(&Entry { unix_s: 7, phase: Some(Phase::Plan), event }).unwrap();
            assert_eq!(line, format!(r#"{{"unix_s":7,"phase":"plan",{expected}"#));
        }
        let without_phase = log_line(&Entry { unix_s: 7, phase: None, event: Event::Note("x") });
        assert_eq!(without_phase.as_deref(), Some(r#"{"unix_s":7,"event":"note","text":"x"}"#));
        let gauge = Gauge { done_bytes: 1, total_bytes: 2, bytes_per_s: None };
        assert!(log_line(&Entry { unix_s: 7, phase: None, event: Event::Progress(gauge) }).is_none());
    }

    #[test]
    fn what_is_posted_is_read_again() {
        let machine = ReportedMachine { id: Some("a".into()), product: "demo".into(), ..ReportedMachine::default() };
        let progress = ReportedProgress {
            phase: Some(Open::Known(Phase::Write)),
            message: "write".into(),
            result: Some(Open::Known(Ending::Refused)),
            ..ReportedProgress::default()
        };
        let post: Post = serde_json::from_str(&progress_post(&machine, &progress).unwrap()).unwrap();
        let expected = Post { machine: machine.clone(), progress: Some(progress), attempts: Vec::new(), boot: None };
        assert_eq!(post, expected);
        let phases = vec![PhaseRecord { phase: Phase::Init, duration_ms: None, failed: false }];
        let outcome = Some(AttemptOutcome::Parked);
        let attempt = Attempt { id: 3, reason: "tries".into(), phases, outcome, ..Attempt::default() };
        let post: Post = serde_json::from_str(&attempts_post(&machine, &[attempt]).unwrap()).unwrap();
        assert_eq!((post.machine, post.progress), (machine, None));
        assert_eq!(post.attempts[0].outcome, Some(Open::Known(AttemptOutcome::Parked)));
        let boot = StartRecord { safe_start: Some(2), ..StartRecord::default() };
        let text = start_post(&ReportedMachine::default(), &boot).unwrap();
        assert_eq!(serde_json::from_str::<Post>(&text).unwrap().boot, Some(boot));
        assert_eq!(text.matches("safe_start").count(), 1, "one place for it: {text}");
    }

    #[test]
    fn a_reader_tolerates_what_a_later_version_adds() {
        let text = r#"{ "format": 9, "news": [1], "machine": { "id": "a", "shoe_size": 43 },
            "progress": { "phase": "celebrate", "phase_number": 9, "result": "transcended" },
            "attempts": [{ "outcome": "dreamt", "phases": [{ "phase": "celebrate" }] }] }"#;
        let post: Post = serde_json::from_str(text).unwrap();
        let progress = post.progress.unwrap();
        assert_eq!(progress.phase, Some(Open::Unknown("celebrate".into())));
        assert_eq!(progress.result, Some(Open::Unknown("transcended".into())));
        assert_eq!(post.attempts[0].outcome, Some(Open::Unknown("dreamt".into())));
        assert_eq!(serde_json::to_value(&progress).unwrap()["phase"], "celebrate");
        assert!(serde_json::from_str::<Post>(r#"{ "progress": {} }"#).is_err(), "a post without a machine is none");
    }
}
