//! The way down: what is recorded, a restart in order, and one that nothing can hold up.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::policy::Cause;
use super::terms::WrittenTerms;
use crate::boot::env::LoadedEnv;
use crate::boot::grubenv::names;
use crate::boot::this_boot;
use crate::jobs::health::HealthRecord;
use crate::jobs::pause;
use crate::jobs::state::StatePartition;
use crate::record::event::{Entry, Event};
use crate::record::wire;
use crate::sys::clock::now_unix_s;
use crate::sys::companion::{self, Handles};
use crate::sys::mount::{self, Mount};
use crate::sys::power;
use crate::sys::thread::background;

/// Time for the system to go down in order. A service that does not stop is ended by systemd after 90 s.
const ORDERLY: Duration = Duration::from_secs(150);
/// Time for the last sync: a disk that has died in the middle of a command answers after minutes, if at all.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// Time for the kernel's drivers to let the machine restart.
const DRIVERS: Duration = Duration::from_secs(30);
/// Time for the state partition to be mounted, read and written.
const RECORDING: Duration = Duration::from_secs(20);
/// Program of systemd that shows what it waits for.
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Time for its answer.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(10);
/// Lines of each of its answers that are shown.
const SHOWN: usize = 5;

/// Restarts the machine, whatever hangs. Never returns.
pub(super) fn at_once(handles: &Handles) -> ! {
    loop {
        power::sync_within(SYNC_LIMIT);
        // A driver may hold the call for ever.
        let _ = background("reboot", || drop(power::reboot()));
        std::thread::sleep(SYNC_LIMIT + DRIVERS);
        handles.restart_at_once();
    }
}

/// Asks systemd to restart the machine, and waits. Returns `false` when that did not come about: this process is ended
/// by the restart alone.
pub(super) fn in_order() -> bool {
    companion::ask_pid1_to_restart();
    std::thread::sleep(ORDERLY);
    false
}

/// What keeps the boot from being good, as far as systemd answers: the units that failed, and the jobs that it waits
/// for.
pub(super) fn what_is_missing() -> Vec<String> {
    let ask = |what: &str, arguments: &[&str]| {
        let arguments: Vec<&str> = [&["--no-pager", "--no-legend", "--plain"], arguments].concat();
        let answer = companion::run_within(Path::new(SYSTEMCTL), &arguments, SYSTEMCTL_LIMIT);
        lines_of(what, &answer.map(|(_, text)| text).unwrap_or_default())
    };
    [not_healthy(), ask("failed", &["--failed"]), ask("waiting", &["list-jobs"])].concat()
}

/// What the health checks of this boot found in the way of calling it good.
pub(super) fn not_healthy() -> Vec<String> {
    let record = HealthRecord::of_this_boot().unwrap_or_default();
    record.in_the_way().take(SHOWN).map(|problem| format!("not healthy: {problem}")).collect()
}

/// The first lines of an answer, each with what it is.
fn lines_of(what: &str, answer: &str) -> Vec<String> {
    let lines = answer.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("No jobs"));
    lines
        .take(SHOWN)
        .map(|line| format!("{what}: {}", line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// Writes the restart into the event log of the state partition, and sees to it that a normal start comes after a safe
/// one. A disk that does not answer holds nothing up.
///
/// Returns whether the boot environment says that this boot is good: `reflash good` may have failed only to make its
/// mark. `false` for a start that was not counted, since what the environment has is about an earlier boot.
pub(super) fn record(written: &WrittenTerms, cause: Cause, text: &str) -> bool {
    let Some(device) = written.state.clone() else { return false };
    let (sender, answer) = channel();
    let (text, counted) = (text.to_owned(), written.counted);
    let started = background("state", move || {
        let _ = sender.send(record_on(&device, cause, &text, counted));
    });
    started.is_ok() && answer.recv_timeout(RECORDING).unwrap_or(false)
}

/// Notes on the state partition that the safe start of this number has come up: it was the pause that recovery would
/// make otherwise. Returns at once; without the note, recovery makes that pause.
pub(super) fn note_safe_start(state: Option<&Path>, number: u32) {
    let Some(device) = state.map(Path::to_owned) else { return };
    let _ = background("safe-start", move || {
        let length = this_boot::pause_before_normal_start(number);
        on_state(&device, |state| drop(pause::note(state, &pause::after_safe_start(number), length)));
    });
}

fn record_on(device: &Path, cause: Cause, text: &str, counted: bool) -> bool {
    on_state(device, |state| write_to(state, cause, text, counted)).unwrap_or(false)
}

/// Does something with the state partition while it is mounted; `None` if it does not mount.
fn on_state<T>(device: &Path, work: impl FnOnce(&StatePartition) -> T) -> Option<T> {
    let directory: PathBuf = Path::new(this_boot::DIRECTORY).join("watch");
    // With the options of the command line, which may have it mounted too.
    if fs::create_dir_all(&directory).is_err() || Mount::device(device, "ext4").data_only().on(&directory).is_err() {
        return None;
    }
    let result = work(&StatePartition::new(&directory));
    let _ = mount::unmount(&directory);
    Some(result)
}

fn write_to(state: &StatePartition, cause: Cause, text: &str, counted: bool) -> bool {
    let boot_env = state.boot_env();
    let Ok(LoadedEnv::Good(env)) = boot_env.load() else { return false };
    let is_good = counted && env.get(names::BOOT_OK) == Some("1");
    if is_good && matches!(cause, Cause::NotGood(_)) {
        return true;
    }
    if let (Cause::PauseOver(_), Some("0") | None) = (cause, env.get(names::TRIES)) {
        // Without a try GRUB would go to recovery, which knows no more than before. One is enough to see.
        let _ = boot_env.update(&[(names::TRIES, Some("1"))]);
    }
    let unix_s = now_unix_s();
    if let (Some(line), Ok(mut events)) =
        (wire::log_line(&Entry { unix_s, phase: None, event: Event::Warning(text) }), state.open_events())
    {
        let _ = events.write_all(format!("{line}\n").as_bytes());
    }
    is_good
}

#[cfg(test)]
mod tests {
    use super::{lines_of, write_to};
    use crate::boot::grubenv::names;
    use crate::jobs::state::StatePartition;
    use crate::pid1::boot_watch::policy::Cause;
    use std::time::Duration;

    #[test]
    fn what_systemd_waits_for_is_shown_in_few_lines() {
        let jobs = "  1 dev-disk-by\\x2duuid-x.device start running\n  9 multi-user.target   start waiting\n\n";
        let lines = lines_of("waiting", jobs);
        assert_eq!(lines[1], "waiting: 9 multi-user.target start waiting");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines_of("waiting", "No jobs running.\n"), Vec::<String>::new());
        assert_eq!(lines_of("failed", &"a.service\n".repeat(50)).len(), 5);
    }

    #[test]
    fn the_environment_has_the_last_word_on_a_good_boot_and_a_try_for_the_normal_start() {
        let directory = tempfile::tempdir().unwrap();
        let state = StatePartition::new(directory.path());
        let env = state.boot_env();
        let not_good = Cause::NotGood(Duration::from_secs(600));
        assert!(!write_to(&state, not_good, "x", true), "no environment");
        env.update(&[(names::TRIES, Some("2")), (names::BOOT_OK, Some("0"))]).unwrap();
        assert!(!write_to(&state, not_good, "not good: restarting", true));
        assert!(state.last_events(4096).unwrap().contains("not good: restarting"));
        env.update(&[(names::BOOT_OK, Some("1"))]).unwrap();
        assert!(write_to(&state, not_good, "never written", true));
        assert!(!state.last_events(4096).unwrap().contains("never written"));
        assert!(!write_to(&state, not_good, "good was an earlier boot", false));
        assert!(state.last_events(4096).unwrap().contains("an earlier boot"));
        let tries = || env.load_or_empty().unwrap().get(names::TRIES).map(str::to_owned);
        let pause_over = Cause::PauseOver(Duration::from_secs(3600));
        write_to(&state, pause_over, "x", false);
        assert_eq!(tries().as_deref(), Some("2"), "what is there stays");
        env.update(&[(names::TRIES, Some("0"))]).unwrap();
        write_to(&state, Cause::NewerRelease, "x", false);
        assert_eq!(tries().as_deref(), Some("0"), "recovery comes first");
        write_to(&state, pause_over, "x", false);
        assert_eq!(tries().as_deref(), Some("1"));
    }
}
