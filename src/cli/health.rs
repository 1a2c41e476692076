//! `reflash health`: whether this system is healthy, once or until it is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::{Exit, Failure, complain, print};
use super::commands::HealthWait;
use super::context::{keys, safe_start};
use super::mounted::{MountedState, own_partuuid};
use super::options::Options;
use crate::boot::worth::Worth;
use crate::chain::chain;
use crate::jobs::health::programs::NoProgram;
use crate::jobs::health::settle::{KnownBefore, ServiceWatch};
use crate::jobs::health::{self, HealthRecord, HealthTerms, Problem, programs};
use crate::jobs::recovery::InstalledRelease;
use crate::record::blackbox::BlackBox;
use crate::sys::own_mounts::start_outside;

/// Pause between two looks at the services: shorter than the pauses that services commonly have between two starts.
const LOOK: Duration = Duration::from_secs(2);
/// Times that it is read whether the release was ever good, until something says so.
const ATTEMPTS: u32 = 5;
/// Pause before programs of `health.d` that failed are run again.
const AGAIN: Duration = Duration::from_secs(10);
/// Directory of what survives a reflash.
const VAR: &str = "/var";

pub(super) fn run(options: &Options, wait: HealthWait) -> Result<Exit, Failure> {
    let record = match wait {
        HealthWait::Once => once(options),
        HealthWait::UntilHealthy => until_healthy(options)?,
    };
    print(options, &json!({ "healthy": record.healthy, "problems": record.problems }), || shown(&record))?;
    Ok(if record.healthy { Exit::Done } else { Exit::No })
}

/// The record for people.
fn shown(record: &HealthRecord) -> String {
    let verdict = if record.healthy { "this system is healthy" } else { "this system is not healthy" };
    verdict.to_owned() + &lines(record)
}

/// What fails, a line for each, with the line break before it.
pub(super) fn lines(record: &HealthRecord) -> String {
    let aside = |problem: &Problem| if problem.counts { "" } else { ", which does not count" };
    record.problems.iter().map(|problem| format!("\n  {problem}{}", aside(problem))).collect()
}

fn once(options: &Options) -> HealthRecord {
    let mut settling = ServiceWatch::new(HealthTerms::read(), known_before(options, 1));
    let mut problems = look(&mut settling, Duration::ZERO);
    problems.extend(run_programs());
    HealthRecord::of(problems)
}

/// Repeats the checks until they pass.
fn until_healthy(options: &Options) -> Result<HealthRecord, Failure> {
    if safe_start().is_some() {
        return Ok(HealthRecord::default());
    }
    let began = Instant::now();
    let mut settling = ServiceWatch::new(HealthTerms::read(), known_before(options, ATTEMPTS));
    let mut notes = Notes::default();
    loop {
        let mut record = HealthRecord::of(look(&mut settling, began.elapsed()));
        let is_over = settling.is_over(began.elapsed());
        let mut pause = LOOK;
        if is_over && record.healthy {
            let failed = run_programs();
            pause = if failed.is_empty() { LOOK } else { AGAIN };
            // The services had time to crash while the programs ran.
            record = HealthRecord::of(look(&mut settling, began.elapsed()).into_iter().chain(failed).collect());
            if record.healthy {
                keep(&record)?;
                return Ok(record);
            }
        }
        record.healthy = false;
        notes.take(options, &record, is_over);
        std::thread::sleep(pause);
    }
}

/// Keeps the record of a healthy boot, and what fails in it all the same.
fn keep(record: &HealthRecord) -> Result<(), Failure> {
    record.write()?;
    let failed: BTreeSet<String> = record.problems.iter().map(|problem| problem.name.clone()).collect();
    if let Err(error) = health::keep_failed_when_good(Path::new(VAR), &failed) {
        complain(&format!("what fails in this good boot is not kept, and counts against the next release: {error}"));
    }
    Ok(())
}

fn look(settling: &mut ServiceWatch, now: Duration) -> Vec<Problem> {
    match health::services() {
        Some(units) => settling.look(now, &units, health::is_of_image),
        None => vec![Problem {
            name: "systemd".to_owned(),
            what: "does not say how its services are".to_owned(),
            detail: String::new(),
            counts: true,
        }],
    }
}

fn run_programs() -> Vec<Problem> {
    programs::run_all(&programs::DIRECTORIES.map(Path::new), programs::LIMIT, NoProgram::Mentioned)
}

/// What is known from before. Where nothing says whether the release was ever good, its services do not count: what
/// cannot be read of the state partition is no fault of theirs. What cannot be read in one moment is read in another,
/// since a release that is bad must not be called good for that.
fn known_before(options: &Options, attempts: u32) -> KnownBefore {
    let mut known = Worth::Unknown;
    for attempt in 1..=attempts {
        known = match MountedState::open(options) {
            Ok(mounted) => worth(options, &mounted),
            Err(failure) => {
                complain(&format!("whether this release was ever good cannot be read: {}", failure.text));
                Worth::Unknown
            }
        };
        if known != Worth::Unknown {
            break;
        }
        if attempt < attempts {
            std::thread::sleep(LOOK);
        }
    }
    if known == Worth::Unknown {
        complain("whether this release was ever good is not known: services that fail do not count");
    }
    KnownBefore { is_proved: known != Worth::Never, failed: health::failed_when_good(Path::new(VAR)) }
}

fn worth(options: &Options, mounted: &MountedState) -> Worth {
    let record = keys(options, Some(mounted)).ok().and_then(|keys| mounted.state.record(&keys));
    let (Some(record), Ok(env)) = (record, mounted.state.boot_env().load_or_empty()) else { return Worth::Unknown };
    let recorded = BlackBox::open_read_only(&mounted.state.blackbox_path()).ok();
    let witness = recorded.map(|open| open.worth(record.manifest().serial)).unwrap_or_default();
    InstalledRelease::judge(&record, &env, &mounted.floor().record(), witness).worth
}

/// What was said and kept of the problems so far.
#[derive(Default)]
struct Notes {
    said: BTreeSet<String>,
    kept: BTreeSet<String>,
}

impl Notes {
    /// Takes the problems of a look: the record in memory is always current, and each problem is said once. Once the
    /// services had their time, it is kept on the machine and reported.
    fn take(&mut self, options: &Options, record: &HealthRecord, is_over: bool) {
        if let Err(error) = record.write() {
            complain(&format!("{} cannot be written: {error}", health::PATH));
        }
        for problem in &record.problems {
            if self.said.insert(format!("{} {}", problem.name, problem.what)) {
                complain(&if problem.counts { format!("not good yet: {problem}") } else { format!("{problem}") });
            }
        }
        let sentence = |problem: &Problem| format!("not called good: {} {}", problem.name, problem.what);
        let new: Vec<String> = record.in_the_way().map(sentence).filter(|one| !self.kept.contains(one)).collect();
        if is_over && !new.is_empty() {
            keep_on_machine(options, &new);
            self.kept.extend(new);
        }
    }
}

/// Keeps sentences with the last recovery, in the black box, and has them reported: when this release is taken back,
/// the next report says why.
fn keep_on_machine(options: &Options, sentences: &[String]) {
    if own_partuuid().is_none() {
        return;
    }
    match MountedState::open(options) {
        Ok(mounted) => {
            let kept = BlackBox::open(&mounted.state.blackbox_path()).and_then(|mut open| open.add_losses(sentences));
            if let Err(error) = kept {
                complain(&format!("the black box does not have it: {}", chain(&error)));
            }
        }
        Err(failure) => complain(&failure.text),
    }
    // A report that is still under way, or waits for a server, says it by itself.
    let mut report = Command::new("/usr/bin/systemctl");
    report.args(["--no-block", "start", "reflash-report.service"]).stdin(Stdio::null());
    if let Err(error) = start_outside(&mut report).status() {
        complain(&format!("it is not reported before the next start: {error}"));
    }
}
