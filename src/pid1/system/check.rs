//! The check of the data partition, by the image's own e2fsck.

use std::path::Path;
use std::time::{Duration, Instant};

use super::messages::say;
use super::patience::Patience;
use crate::pid1::worker;
use crate::sys::process::{self, WatchedEnding};

/// Program in the image that checks the data partition.
pub(super) const FSCK: &str = "/usr/sbin/e2fsck";
/// Interval of lines on the console, and of reports to PID 1, about a check that takes long.
const EVERY: Duration = Duration::from_secs(60);

/// Result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checked {
    /// The file system is sound, or was repaired.
    Sound,
    /// The check has no opinion: the program is missing, or does not understand what it found.
    NoOpinion(String),
    /// There are errors that the check could not repair.
    Damaged(String),
    /// The check stopped moving.
    Stuck(String),
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
    let device = device.to_string_lossy();
    let mut last = run(fsck, &["-p", &device]);
    for _ in 0..2 {
        match &last {
            Checked::Damaged(why) | Checked::NoOpinion(why) if fsck.exists() => {
                say(&format!("data partition: {why}; repairing all it finds"));
            }
            _ => return last,
        }
        let again = run(fsck, &["-f", "-y", &device]);
        let settled = !matches!(again, Checked::Damaged(_));
        last = again;
        if settled {
            break;
        }
    }
    last
}

fn run(fsck: &Path, arguments: &[&str]) -> Checked {
    let (began, mut patience) = (Instant::now(), Patience::default());
    let mut next = EVERY;
    let mut moved = 0;
    let ended = process::run_watched(fsck, arguments, |bytes| {
        let age = began.elapsed();
        if age >= next {
            if bytes > moved {
                worker::progressed();
            }
            moved = bytes;
            say(&format!("the check of the data partition goes on: {} min, {} MiB", age.as_secs() / 60, bytes >> 20));
            next += EVERY;
        }
        patience.goes_on(age, bytes)
    });
    match ended {
        Ok(WatchedEnding::Ended(status)) => match status.code() {
            Some(code) => says(code),
            None => Checked::NoOpinion(format!("e2fsck was ended by {status}")),
        },
        Ok(WatchedEnding::Stopped) => {
            let minutes = began.elapsed().as_secs() / 60;
            Checked::Stuck(format!("e2fsck did not move any more and was ended after {minutes} min"))
        }
        Err(error) => Checked::NoOpinion(format!("e2fsck cannot be started: {error}")),
    }
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
        let dir = tempfile::tempdir().unwrap();
        let (fsck, log) = (dir.path().join("fsck"), dir.path().join("log"));
        for (number, code) in codes.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{number}")), code.to_string()).unwrap();
        }
        let dir = dir.path().display();
        let script = format!(
            "#!/bin/sh\nn=$(cat {log} 2>/dev/null | wc -l)\necho \"$*\" >>{log}\nexit $(cat {dir}/$n)\n",
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
        assert_eq!(with_codes(&[4, 1]), (Checked::Sound, "-p\n-f -y\n".into()));
        assert_eq!(with_codes(&[8, 0]), (Checked::Sound, "-p\n-f -y\n".into()));
        let (checked, calls) = with_codes(&[12, 12]);
        assert!(matches!(checked, Checked::NoOpinion(_)) && calls == "-p\n-f -y\n", "{checked:?} {calls}");
        let (checked, calls) = with_codes(&[4, 4, 1]);
        assert!(checked == Checked::Sound && calls == "-p\n-f -y\n-f -y\n", "{checked:?} {calls}");
        let (checked, calls) = with_codes(&[4, 4, 4]);
        assert!(matches!(checked, Checked::Damaged(_)) && calls == "-p\n-f -y\n-f -y\n", "{checked:?} {calls}");
    }

    #[test]
    fn a_missing_check_has_no_opinion() {
        assert!(matches!(check(Path::new("/no/such/fsck"), Path::new("/dev/x")), Checked::NoOpinion(_)));
    }
}
