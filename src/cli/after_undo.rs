//! `reflash after-undo`: applications act after a release was taken back, by programs that the image or the machine has
//! for it. What an application changed under that release only the application can judge.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::answer::{Exit, Failure, complain, failure, print};
use super::context::{keys, safe_start};
use super::mounted::MountedState;
use super::options::Options;
use crate::jobs::health::programs::programs;
use crate::jobs::shipped::record;
use crate::jobs::systems;
use crate::record::blackbox::{Attempt, AttemptOutcome, BlackBox};
use crate::record::event::Phase;
use crate::record::journal::Journal;
use crate::sys::files;
use crate::sys::own_mounts::start_outside;

/// Directories of the programs. A name in the first one stands in place of the same name in the second.
const DIRECTORIES: [&str; 2] = ["/etc/reflash/undo.d", "/usr/lib/reflash/undo.d"];
/// File that says after which undo the programs were run last.
const MARK: &str = "after-undo";
/// Size of the largest mark that is read, bytes.
const MAX_MARK_BYTES: u64 = 256;

pub(super) fn run(options: &Options) -> Result<Exit, Failure> {
    if safe_start().is_some() {
        print(options, &json!({ "ran": [] }), || "a safe start does not use the data of this machine".to_owned())?;
        return Ok(Exit::No);
    }
    let mounted = MountedState::open(options)?;
    if mounted.other.is_some() {
        // GRUB takes a release back too, by itself.
        settle_systems(options, &mounted);
    }
    let undo = match BlackBox::open_read_only(&mounted.state.blackbox_path()) {
        Ok(black_box) => last_undo(black_box.attempts()).cloned(),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    // The programs may take long, and nothing should keep that partition busy.
    drop(mounted);
    let mark = Path::new("/var").join(record::OWN).join(MARK);
    let Some(undo) = undo.filter(|undo| !is_marked(&mark, undo)) else {
        print(options, &json!({ "ran": [] }), || "no release was taken back since the last time".to_owned())?;
        return Ok(Exit::Done);
    };
    let programs = programs(&DIRECTORIES.map(Path::new))?;
    let failed: Vec<String> = programs.iter().filter_map(|program| run_one(program, &undo)).collect();
    failed.iter().for_each(|sentence| complain(sentence));
    // A program that fails is not run again: it would fail at each start.
    write_mark(&mark, &undo)?;
    let ran: Vec<String> = programs.iter().map(|program| program.display().to_string()).collect();
    print(options, &json!({ "ran": ran, "failed": failed }), || format!("{} programs ran after the undo", ran.len()))?;
    if failed.is_empty() {
        Ok(Exit::Done)
    } else {
        failure(format!("{} of {} programs failed", failed.len(), ran.len()))
    }
}

/// Records that GRUB went back to this system, if it did. What keeps it from being recorded is for the log.
fn settle_systems(options: &Options, mounted: &MountedState) {
    let settled = keys(options, Some(mounted))
        .and_then(|keys| Ok(systems::settle(&mounted.state, &keys, &mounted.floor(), &Journal::on_stderr())?));
    match settled {
        Ok(sentence) => sentence.iter().for_each(|sentence| complain(sentence)),
        Err(failure) => complain(&failure.text),
    }
}

/// The attempt that took a release back, if the system that runs is what it led to.
fn last_undo(attempts: &[Attempt]) -> Option<&Attempt> {
    attempts.iter().rev().find(|attempt| put_its_release_there(attempt)).filter(|attempt| attempt.undone.is_some())
}

/// Whether the attempt put its release on the disk.
fn put_its_release_there(attempt: &Attempt) -> bool {
    match attempt.outcome {
        Some(AttemptOutcome::Installed) => true,
        // Cut during the commit or after it; before, nothing was installed.
        None => attempt.phases.iter().any(|phase| phase.phase == Phase::Commit),
        Some(_) => false,
    }
}

/// Environment of the programs.
fn environment(undo: &Attempt) -> BTreeMap<&'static str, String> {
    let undone = undo.undone.clone().unwrap_or_default();
    let number = |serial: Option<u64>| serial.map(|serial| serial.to_string()).unwrap_or_default();
    BTreeMap::from([
        ("REFLASH_SERIAL", number(undo.serial)),
        ("REFLASH_VERSION", undo.version.clone().unwrap_or_default()),
        ("REFLASH_UNDONE_SERIAL", number(undone.serial)),
        ("REFLASH_UNDONE_VERSION", undone.version.unwrap_or_default()),
        ("REFLASH_UNDONE_WHY", undone.why),
    ])
}

/// Runs one program; the sentence of a failure.
fn run_one(program: &Path, undo: &Attempt) -> Option<String> {
    match start_outside(Command::new(program).envs(environment(undo))).status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("{} ended with {status}", program.display())),
        Err(error) => Some(format!("{} cannot be started: {error}", program.display())),
    }
}

/// The content of the mark: numbers of attempts begin anew where the black box is lost.
fn mark_of(undo: &Attempt) -> String {
    format!("{} {}\n", undo.id, undo.started_unix_s)
}

fn is_marked(mark: &Path, undo: &Attempt) -> bool {
    files::read_text(mark, MAX_MARK_BYTES).is_ok_and(|text| text == mark_of(undo))
}

fn write_mark(mark: &Path, undo: &Attempt) -> io::Result<()> {
    if let Some(directory) = mark.parent() {
        record::make_private(directory)?;
    }
    let new = mark.with_added_extension("new");
    files::removed_or_gone(fs::remove_file(&new))?;
    let mut file = fs::File::create_new(&new)?;
    file.write_all(mark_of(undo).as_bytes())?;
    file.sync_all()?;
    fs::rename(new, mark)
}

#[cfg(test)]
mod tests {
    use super::{is_marked, last_undo, programs, run_one, write_mark};
    use crate::record::blackbox::{Attempt, AttemptOutcome, RefusedRelease};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn attempt(id: u64, outcome: Option<AttemptOutcome>, undone: bool) -> Attempt {
        let undone = undone.then(|| RefusedRelease { version: Some("2".into()), serial: Some(2), why: "tries".into() });
        Attempt { id, outcome, undone, serial: Some(1), version: Some("1".into()), ..Attempt::default() }
    }

    #[test]
    fn only_the_system_that_an_undo_led_to_has_one_behind_it() {
        use AttemptOutcome::{Failed, Installed, Started};
        for (attempts, expected) in [
            (vec![], None),
            (vec![attempt(1, Some(Installed), false)], None),
            (vec![attempt(1, Some(Installed), false), attempt(2, Some(Installed), true)], Some(2)),
            (vec![attempt(1, Some(Installed), true), attempt(2, Some(Failed), false)], Some(1)),
            (vec![attempt(1, Some(Installed), true), attempt(2, Some(Started), false)], Some(1)),
            (vec![attempt(1, Some(Installed), true), attempt(2, Some(Installed), false)], None),
            (vec![attempt(1, Some(Failed), true)], None),
        ] {
            assert_eq!(last_undo(&attempts).map(|undo| undo.id), expected, "{attempts:?}");
        }
    }

    #[test]
    fn programs_run_once_by_name_and_learn_both_serials() {
        let dir = tempfile::tempdir().unwrap();
        let (own, of_image) = (dir.path().join("etc"), dir.path().join("usr"));
        let out = dir.path().join("out");
        let script = |path: &std::path::Path, name: &str| {
            let text = format!("#!/bin/sh\necho {name} $REFLASH_UNDONE_SERIAL $REFLASH_SERIAL >>{}\n", out.display());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        };
        script(&of_image.join("20-b"), "image-b");
        script(&of_image.join("10-a"), "image-a");
        script(&of_image.join("30-off"), "off");
        script(&own.join("10-a"), "own-a");
        symlink("/dev/null", own.join("30-off")).unwrap();
        fs::write(of_image.join("README"), "not a program").unwrap();
        let undo = attempt(3, Some(AttemptOutcome::Installed), true);
        let found = programs(&[&own, &of_image, &dir.path().join("none")]).unwrap();
        assert!(found.iter().all(|program| run_one(program, &undo).is_none()));
        assert_eq!(fs::read_to_string(&out).unwrap(), "own-a 2 1\nimage-b 2 1\n");
        fs::write(own.join("40-bad"), "#!/bin/sh\nexit 3\n").unwrap();
        fs::set_permissions(own.join("40-bad"), Permissions::from_mode(0o755)).unwrap();
        assert!(run_one(&own.join("40-bad"), &undo).is_some_and(|failure| failure.contains("40-bad")));
        let mark = dir.path().join("own/after-undo");
        assert!(!is_marked(&mark, &undo));
        write_mark(&mark, &undo).unwrap();
        assert!(is_marked(&mark, &undo) && !is_marked(&mark, &attempt(4, None, true)));
    }
}
