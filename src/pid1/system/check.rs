//! The check of the data partition, by the image's own e2fsck.

use std::path::Path;
use std::time::{Duration, Instant};

use super::error::SysrootError;
use super::messages::say;
use super::patience::Patience;
use super::take::answer_within;
use crate::disk::ext4_groups;
use crate::disk::filesystem::Superblock;
use crate::pid1::worker;
use crate::sys::process::{self, WatchedEnding};

/// Program in the image that checks the data partition.
pub(super) const FSCK: &str = "/usr/sbin/e2fsck";
/// Interval of lines on the console, and of reports to PID 1, about a check that takes long.
const EVERY: Duration = Duration::from_secs(60);

/// Time for a look at the beginning of the partition.
const LOOK: Duration = Duration::from_secs(60);

/// Result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checked {
    /// The file system is sound, as far as what is checked at each start shows.
    Sound,
    /// There was damage, and the file system was repaired. What lost its place or its content is not as it was.
    Repaired,
    /// The check has no opinion: the program is missing, or does not understand what it found.
    NoOpinion(String),
    /// There are errors that the check could not repair, or its repairs did not come to their end.
    Damaged(String),
    /// The check stopped moving.
    Stuck(String),
}

/// Exit codes of a check that was cancelled, as by the signals that it handles (e2fsck(8): 32).
const CANCELLED: std::ops::Range<i32> = 32..64;
/// Bytes that a check has read and written once it works on the file system: what only looks at the superblock moves a
/// few KiB.
const WORK_BYTES: u64 = 1 << 20;

/// One run of the program.
#[derive(Debug)]
struct FsckRun {
    says: Checked,
    /// Whether a signal, want of memory among them, ended it in the middle: the next run may come to its end.
    is_cut: bool,
    /// Whether it had begun to work on the file system.
    has_worked: bool,
    /// Whether it says that it corrected something.
    has_corrected: bool,
}

/// What an exit code of e2fsck says: 1 is corrected, 2 corrected with a restart wanted if the file system was mounted,
/// 4 errors left, 8 operational error, 16 usage, 32 cancelled, 128 a library (e2fsck(8)). They are added up: one that
/// meets a feature which it does not know ends with 12.
fn says(code: i32) -> Checked {
    match code {
        0..=3 => Checked::Sound,
        4..=7 => Checked::Damaged(format!("e2fsck ended with {code}: it could not repair all errors")),
        _ => Checked::NoOpinion(format!("e2fsck ended with {code}: it cannot work with this file system")),
    }
}

/// Checks and repairs a file system. Preening leaves some repairs to a person, whom a robot cannot ask: then every
/// repair is made, since a data partition that does not mount is lost altogether. Pieces end up in lost+found. What one
/// repair uncovers the next one finds, so the whole check is made twice.
pub(super) fn check(fsck: &Path, device: &Path) -> Checked {
    let at = device.to_owned();
    let copy = answer_within(LOOK, "read the group descriptors", move || {
        ext4_groups::copy_to_begin_with(&at).map_err(SysrootError::file("read the group descriptors"))
    });
    let found = match copy {
        // Preening would write the damage over the copies.
        Ok(Some(copy)) => by_copy(fsck, device, copy),
        _ => run(fsck, &["-p", &device.to_string_lossy()]).says,
    };
    match found {
        Checked::Damaged(_) | Checked::NoOpinion(_) => repair(fsck, device, found),
        found => found,
    }
}

/// Makes every repair, beginning with a copy of superblock and group descriptors.
fn by_copy(fsck: &Path, device: &Path, copy: Superblock) -> Checked {
    let why = "its group descriptors are damaged";
    say(&format!("data partition: {why}; repairing it by their copy in block {}", copy.block));
    let (block, block_bytes) = (copy.block.to_string(), copy.block_bytes.to_string());
    let arguments = ["-f", "-y", "-b", &block, "-B", &block_bytes, &device.to_string_lossy()];
    after_repair(run(fsck, &arguments), Checked::Damaged(why.to_owned()))
}

/// Makes every repair of a file system of which something else was `found`, or which the kernel says is damaged: a file
/// system that was unmounted in order counts as clean for the check at each start, whatever has become of its blocks.
pub(super) fn repair(fsck: &Path, device: &Path, mut found: Checked) -> Checked {
    for _ in 0..2 {
        match &found {
            Checked::Damaged(why) | Checked::NoOpinion(why) if fsck.exists() => {
                say(&format!("data partition: {why}; repairing all it finds"));
            }
            _ => return found,
        }
        let repair = run(fsck, &["-f", "-y", &device.to_string_lossy()]);
        let is_last = !repair.is_cut && !matches!(repair.says, Checked::Damaged(_));
        found = after_repair(repair, found);
        if is_last {
            break;
        }
    }
    found
}

/// What is known after a run that makes every repair. Damage that was found before is repaired when the program says
/// so, and only then: a program that ends without an opinion takes nothing back. Repairs that it has left in the middle
/// may fit together as little as the damage did.
fn after_repair(repair: FsckRun, before: Checked) -> Checked {
    match (repair.says, before) {
        (Checked::Sound, _) if repair.has_corrected => Checked::Repaired,
        (Checked::NoOpinion(why), Checked::Damaged(before)) => Checked::Damaged(format!("{before}; then {why}")),
        (Checked::NoOpinion(why), _) if repair.has_worked => {
            Checked::Damaged(format!("{why}; that was in the middle of its repairs"))
        }
        (says, _) => says,
    }
}

fn run(fsck: &Path, arguments: &[&str]) -> FsckRun {
    let (began, mut patience) = (Instant::now(), Patience::default());
    let mut next = EVERY;
    let (mut moved, mut reported) = (0, 0);
    let ended = process::run_watched(fsck, arguments, |bytes| {
        let age = began.elapsed();
        moved = bytes;
        if age >= next {
            if bytes > reported {
                worker::progressed();
            }
            reported = bytes;
            say(&format!("the check of the data partition goes on: {} min, {} MiB", age.as_secs() / 60, bytes >> 20));
            next += EVERY;
        }
        patience.goes_on(age, bytes)
    });
    let code = if let Ok(WatchedEnding::Ended(status)) = &ended { status.code() } else { None };
    let (says, is_cut) = match ended {
        Ok(WatchedEnding::Ended(status)) => match code {
            Some(code) => (says(code), CANCELLED.contains(&code)),
            None => (Checked::NoOpinion(format!("e2fsck was ended by {status}")), true),
        },
        Ok(WatchedEnding::Stopped) => {
            let minutes = began.elapsed().as_secs() / 60;
            let why = format!("e2fsck did not move any more and was ended after {minutes} min");
            (Checked::Stuck(why), false)
        }
        Err(error) => (Checked::NoOpinion(format!("e2fsck cannot be started: {error}")), false),
    };
    FsckRun { says, is_cut, has_worked: moved >= WORK_BYTES, has_corrected: matches!(code, Some(1..=3)) }
}

#[cfg(test)]
mod tests {
    use super::{Checked, check, says};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[test]
    fn exit_codes_are_sound_damaged_or_no_opinion() {
        assert!((0..4).all(|code| says(code) == Checked::Sound));
        assert!((4..8).all(|code| matches!(says(code), Checked::Damaged(_))));
        for code in [8, 9, 12, 16, 32, 128, 255] {
            assert!(matches!(says(code), Checked::NoOpinion(_)), "{code}");
        }
    }

    /// A check that ends with these codes, one after the other.
    fn with_codes(codes: &[i32]) -> (Checked, String) {
        with_work(codes, "")
    }

    /// The same, with commands that each run carries out before its end.
    fn with_work(codes: &[i32], work: &str) -> (Checked, String) {
        let dir = tempfile::tempdir().unwrap();
        let (fsck, log) = (dir.path().join("fsck"), dir.path().join("log"));
        for (number, code) in codes.iter().enumerate() {
            // A negative code is a signal.
            let ending = if *code < 0 { format!("kill {code} $$") } else { format!("exit {code}") };
            std::fs::write(dir.path().join(format!("{number}")), format!("{work}\n{ending}\n")).unwrap();
        }
        let dir = dir.path().display();
        let script = format!(
            "#!/bin/sh\nn=$(cat {log} 2>/dev/null | wc -l)\necho \"$*\" >>{log}\n. {dir}/$n\n",
            log = log.display()
        );
        std::fs::write(&fsck, script).unwrap();
        std::fs::set_permissions(&fsck, std::fs::Permissions::from_mode(0o755)).unwrap();
        let checked = check(&fsck, Path::new("/dev/x"));
        (checked, std::fs::read_to_string(log).unwrap().replace(" /dev/x", ""))
    }

    #[test]
    fn every_repair_is_made_before_data_is_given_up() {
        assert_eq!(with_codes(&[0]), (Checked::Sound, "-p\n".into()));
        assert_eq!(with_codes(&[4, 1]), (Checked::Repaired, "-p\n-f -y\n".into()));
        assert_eq!(with_codes(&[8, 0]), (Checked::Sound, "-p\n-f -y\n".into()));
        let (checked, calls) = with_codes(&[12, 12]);
        assert!(matches!(checked, Checked::NoOpinion(_)) && calls == "-p\n-f -y\n", "{checked:?} {calls}");
        let (checked, calls) = with_codes(&[4, 4, 1]);
        assert!(checked == Checked::Repaired && calls == "-p\n-f -y\n-f -y\n", "{checked:?} {calls}");
        let (checked, calls) = with_codes(&[4, 4, 4]);
        assert!(matches!(checked, Checked::Damaged(_)) && calls == "-p\n-f -y\n-f -y\n", "{checked:?} {calls}");
    }

    #[test]
    fn what_was_found_damaged_is_repaired_only_when_a_later_run_says_so() {
        let damaged = |codes: &[i32]| {
            let (checked, calls) = with_codes(codes);
            assert!(matches!(checked, Checked::Damaged(_)), "{codes:?}: {checked:?}");
            assert_eq!(calls.lines().count(), codes.len(), "{codes:?}");
        };
        // Not enough memory, wrong usage, cancelled, no library, and signals: the kernel's (9), a crash (11).
        for code in [8, 12, 16, 128] {
            damaged(&[4, code]);
        }
        for code in [32, -9, -11] {
            damaged(&[4, code, 4]);
            damaged(&[4, code, code]);
            damaged(&[4, code, 8]);
            assert_eq!(with_codes(&[4, code, 1]).0, Checked::Repaired, "{code}");
            assert_eq!(with_codes(&[code, 1]).0, Checked::Repaired, "{code}");
            assert_eq!(with_codes(&[code, code, 0]).0, Checked::Sound, "{code}");
        }
        damaged(&[4, 4, -9]);
        damaged(&[4, 4, 8]);
    }

    #[test]
    fn repairs_that_come_to_no_end_are_damage_and_a_program_that_only_crashes_has_no_opinion() {
        // It crashes each time before it has done anything, as for want of a library: the kernel's opinion counts.
        assert!(matches!(with_codes(&[-11, -11, -11]).0, Checked::NoOpinion(_)));
        let work = "dd if=/dev/zero of=/dev/null bs=1M count=8 2>/dev/null; sleep 1";
        for codes in [[-9, -9, -9], [8, -9, -9]] {
            let (checked, _) = with_work(&codes, &format!("case \"$*\" in *-y*) {work};; esac"));
            assert!(matches!(&checked, Checked::Damaged(why) if why.contains("in the middle")), "{checked:?}");
        }
    }

    #[test]
    fn a_missing_check_has_no_opinion() {
        assert!(matches!(check(Path::new("/no/such/fsck"), Path::new("/dev/x")), Checked::NoOpinion(_)));
    }
}
