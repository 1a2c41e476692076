//! `reflash status`: what is installed, and how the last recoveries went.

mod standing;

use std::path::Path;

use serde_json::{Value, json};

use super::answer::{Exit, Failure, complain, print};
use super::context::{keys, safe_start};
use super::health;
use super::mounted::{MountedState, own_partuuid};
use super::options::Options;
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::slots::Trial;
use crate::boot::systems::Systems;
use crate::boot::this_boot;
use crate::chain::chain;
use crate::jobs::health::HealthRecord;
use crate::jobs::state::{InstalledRecord, StatePartition};
use crate::jobs::update::standing::StandingFile;
use crate::record::blackbox::{Attempt, AttemptOutcome, BlackBox, Marks, RefusedRelease};
use crate::record::progress::bytes;
use crate::release::manifest::{Manifest, SYSTEM_IMAGE};
use crate::utc::Utc;
use standing::StandingReport;
pub(super) use standing::{look_for_undo, other_to_go_back_to};

/// Attempts shown to a person; JSON has all that are kept.
const SHOWN: usize = 5;
/// Lines of the event log that JSON has, the last ones.
const EVENTS: usize = 20;
/// Bytes at the end of the event log in which these lines are looked for.
const EVENTS_BYTES: u64 = 256 * 1024;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    let mounted = MountedState::open(options)?;
    let keys = keys(options, Some(&mounted))?;
    let record = mounted.state.read_record(&keys).unwrap_or_else(|error| {
        complain(&chain(&error));
        None
    });
    let installed = record.as_ref().map(InstalledRecord::manifest);
    let env = mounted.state.boot_env().load_or_empty()?;
    let variables: serde_json::Map<String, Value> =
        env.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    let events = last_lines(&mounted.state, EVENTS);
    let recorded = BlackBox::open_read_only(&mounted.state.blackbox_path()).ok();
    let (attempts, marks) = recorded.as_ref().map_or_else(Default::default, |open| (open.attempts(), open.marks()));
    let standing = StandingReport::of(&mounted, &keys, record.as_ref(), &env, recorded.as_ref());
    let image = installed.as_ref().and_then(|manifest| manifest.image(SYSTEM_IMAGE).ok());
    // That of another machine's state partition is not in this memory.
    let update = (options.state.is_none()).then(|| StandingFile::of_this_machine().read()).flatten();
    let this_health = if options.state.is_none() { HealthRecord::of_this_boot() } else { None };
    let answer = json!({
        "installed": installed.as_ref().map(|manifest| json!({
            "version": manifest.version, "serial": manifest.serial, "product": manifest.product,
            "channel": manifest.channel, "created_unix_s": manifest.created_unix_s,
            "ostree_commit": image.and_then(|image| image.ostree_commit.clone()),
        })),
        "boot_environment": variables, "safe_start": safe_start(),
        "systems": mounted.other.is_some().then(|| systems_json(&mounted, &env)),
        "worth": standing.worth.word(), "undo": standing.undo_json(), "refused": standing.refused_json(),
        "undone": standing.undone_json(), "safe_starts": standing.safe_starts,
        "health": this_health.as_ref().map(|record| json!({ "healthy": record.healthy, "problems": record.problems })),
        "update": update,
        "last_drill": last_drill(attempts).map(|attempt| json!({
            "attempt": attempt.id, "started_unix_s": attempt.started_unix_s, "drill": attempt.drill,
        })),
        "attempts": attempts, "good_through": marks.good_through, "reported_through": marks.reported_through,
        "events": events.iter().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>(),
    });
    print(options, &answer, || {
        format!(
            "{}\n{}\n{}{}\n{}\nrecoveries, the last one first:\n{}",
            installed_line(installed),
            safe_line()
                + &systems_line(&mounted, &env)
                + &boot_line(&env, was_good(options, &env))
                + &this_health.as_ref().map(health::lines).unwrap_or_default(),
            standing.lines(),
            update_line(update.as_ref()),
            drill_line(attempts),
            attempt_lines(attempts, marks)
        )
    })?;
    Ok(if installed.is_some() { Exit::Done } else { Exit::No })
}

fn installed_line(installed: Option<&Manifest>) -> String {
    match installed {
        Some(Manifest { product, version, serial, channel, .. }) => {
            format!("{product} {version} (serial {serial}), channel {channel}")
        }
        None => "no release is recorded as installed".to_owned(),
    }
}

/// The two systems as JSON, for a robot that has them.
fn systems_json(mounted: &MountedState, env: &GrubEnv) -> Value {
    let Systems { active, on_trial, went_back } = Systems::of(env);
    let running = mounted.state.system();
    json!({ "running": running.name(), "active": active.name(), "on_trial": on_trial, "went_back": went_back })
}

fn systems_line(mounted: &MountedState, env: &GrubEnv) -> String {
    let (Systems { active, on_trial, went_back }, running) = (Systems::of(env), mounted.state.system());
    if mounted.other.is_none() {
        return String::new();
    }
    let next = match (active == running, on_trial, went_back) {
        (false, ..) => format!("the next start is of system {}", active.name()),
        (true, true, _) => {
            format!("on trial: GRUB goes back to system {} if it does not come up", active.other().name())
        }
        (true, false, true) => format!("GRUB went back to it, since system {} did not come up", active.other().name()),
        (true, false, false) => "which GRUB starts".to_owned(),
    };
    format!("system {} of two, {next}\n", running.name())
}

/// What a safe start is, as a line of its own; nothing in a normal one.
fn safe_line() -> String {
    safe_start().map_or_else(String::new, |number| {
        let hours = this_boot::pause_before_normal_start(number).as_secs() / 3600;
        format!("SAFE START {number}, without the machine's own settings; a normal start is tried {hours} h after it\n")
    })
}

/// How an update stands that is prepared while the system works, as a line with the line break before it.
fn update_line(update: Option<&Value>) -> String {
    let sentence = update.and_then(|update| update["sentence"].as_str());
    sentence.map_or_else(String::new, |sentence| format!("\nupdate: {sentence}"))
}

/// Whether this boot has called itself good. On a robot the mark in memory says so: GRUB does not count every start,
/// and the environment may be about an earlier one, or may not be writable.
fn was_good(options: &Options, env: &GrubEnv) -> bool {
    match options.state.is_none() && own_partuuid().is_some() {
        true => Path::new(this_boot::GOOD_MARK).exists(),
        false => env.get(names::BOOT_OK) == Some("1"),
    }
}

/// How this boot stands with GRUB: its tries, and the slots of the recovery partition.
fn boot_line(env: &GrubEnv, was_good: bool) -> String {
    let tries = env.get(names::TRIES).unwrap_or("unknown");
    let good = if was_good { "called itself good" } else { "has not called itself good" };
    let slot = env.get(names::SLOT).unwrap_or("a, by default");
    let trial = match Trial::parse(env.get(names::TRIAL)) {
        Some(Trial::Due(slot)) => format!("; slot {slot} is on trial and replaces it once it has found a release"),
        Some(Trial::Tried(slot)) => format!("; the trial of slot {slot} failed or is still running"),
        None => String::new(),
    };
    format!("this boot {good}; tries left before recovery: {tries}; recovery slot: {slot}{trial}")
}

/// The last attempt that was a drill, of those that are kept.
fn last_drill(attempts: &[Attempt]) -> Option<&Attempt> {
    attempts.iter().rev().find(|attempt| attempt.drill.is_some())
}

/// When this machine last tried whether it could recover, and what came of it.
fn drill_line(attempts: &[Attempt]) -> String {
    match last_drill(attempts).and_then(|attempt| Some((attempt, attempt.drill.as_ref()?))) {
        None => "last drill: none is recorded".to_owned(),
        Some((Attempt { id, started_unix_s: 0, .. }, drill)) => format!("last drill: attempt {id}: {drill}"),
        Some((Attempt { id, started_unix_s, .. }, drill)) => {
            format!("last drill: attempt {id}, {}: {drill}", Utc(*started_unix_s))
        }
    }
}

fn attempt_lines(attempts: &[Attempt], marks: Marks) -> String {
    let shown: Vec<String> = attempts.iter().rev().take(SHOWN).map(|attempt| described(attempt, marks)).collect();
    if shown.is_empty() { "none is recorded".to_owned() } else { shown.join("\n") }
}

/// One attempt in a few lines.
fn described(attempt: &Attempt, marks: Marks) -> String {
    let outcome = match attempt.outcome {
        Some(AttemptOutcome::Installed) => "installed",
        Some(AttemptOutcome::Started) => "started the intact system",
        Some(AttemptOutcome::Parked) => "parked",
        Some(AttemptOutcome::Failed) => "gave up",
        None => "was cut short",
    };
    let release = match (&attempt.version, attempt.serial) {
        (Some(version), Some(serial)) => format!(" {version} (serial {serial})"),
        _ => String::new(),
    };
    let good = if attempt.id <= marks.good_through { "; a good boot followed" } else { "" };
    let seconds = attempt.phases.iter().filter_map(|phase| phase.duration_ms).fold(0, u64::saturating_add) / 1000;
    let mut text = format!("  {}: reason {}: {outcome}{release} after {seconds} s{good}", attempt.id, attempt.reason);
    if let Some(drill) = &attempt.drill {
        text += &format!("\n     {drill}");
        drill.checks.iter().for_each(|check| text += &format!("\n     {check}"));
    }
    if let Some(refused) = &attempt.refused {
        text += &format!("\n     instead of {}, which was refused: {}", named(refused), refused.why);
    }
    if let Some(undone) = &attempt.undone {
        text += &format!("\n     instead of {}, which was taken back: {}", named(undone), undone.why);
    }
    if let Some(totals) = &attempt.totals {
        text += &format!(
            "\n     {} downloaded, {} written",
            bytes(totals.download_bytes),
            bytes(totals.write_bytes.saturating_add(totals.zero_bytes))
        );
    }
    if let (None, Some(phase)) = (attempt.outcome, attempt.phases.last()) {
        text += &format!("\n     in phase {}", phase.phase.name());
    }
    for [start, end] in attempt.damaged_byte_ranges.iter().take(3) {
        text += &format!("\n     bytes {start} to {end} were damaged");
    }
    for loss in &attempt.lost {
        text += &format!("\n     a start after it: {loss}");
    }
    for error in &attempt.errors {
        text += &format!("\n     {error}");
    }
    text
}

fn named(release: &RefusedRelease) -> String {
    match (&release.version, release.serial) {
        (Some(version), Some(serial)) => format!("release {version} (serial {serial})"),
        _ => "the release".to_owned(),
    }
}

fn last_lines(state: &StatePartition, count: usize) -> Vec<String> {
    let text = state.last_events(EVENTS_BYTES).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}
