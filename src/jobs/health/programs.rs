//! The image's own health checks: the programs of `health.d`, each of which ends with 0 when what it looks at works.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Problem;
use crate::sys::companion::{self, Ended};

/// Directories of the checks. A name in the first one stands in place of the same name in the second.
pub const DIRECTORIES: [&str; 2] = ["/etc/reflash/health.d", "/usr/lib/reflash/health.d"];
/// Time for one check, after which it counts as failed. A check that waits for its application has to end by itself.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Longest text of a check that is reported, in characters.
const MAX_SHOWN: usize = 200;

/// Every executable file of the directories, by name.
///
/// # Errors
/// A directory cannot be read.
pub fn programs(directories: &[&Path]) -> io::Result<Vec<PathBuf>> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            found.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    let is_program = |path: &Path| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    // A link to /dev/null in the first directory switches a program of the second one off.
    Ok(found.into_values().filter(|path| is_program(path)).collect())
}

/// Runs every check of the directories, one after the other, and says which failed.
#[must_use]
pub fn run_all(directories: &[&Path], limit: Duration) -> Vec<Problem> {
    let problem = |name: &Path, (what, detail): (String, String)| Problem {
        name: name.display().to_string(),
        what,
        detail,
        counts: true,
    };
    match programs(directories) {
        Ok(programs) => programs.iter().filter_map(|it| run(it, limit).map(|why| problem(it, why))).collect(),
        // What cannot be read may be a check, and nothing is called good that was not seen to be so.
        Err(error) => vec![problem(Path::new("health.d"), ("cannot be read".to_owned(), error.to_string()))],
    }
}

/// Runs one check; what is wrong, as the rest of a sentence, and what it printed last.
fn run(program: &Path, limit: Duration) -> Option<(String, String)> {
    let (ended, output) = match companion::run_group_within(program, &[], limit) {
        Ok(ended) => ended,
        Err(error) => return Some(("cannot be started".to_owned(), error.to_string())),
    };
    let last = output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let what = match ended {
        Ended::Exit(0) => return None,
        Ended::Exit(code) => format!("ended with {code}"),
        Ended::Signal => "was ended by a signal".to_owned(),
        Ended::Late => format!("did not end within {} s", limit.as_secs()),
    };
    Some((what, last.chars().take(MAX_SHOWN).collect()))
}

#[cfg(test)]
mod tests {
    use super::{programs, run_all};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn put(directory: &Path, name: &str, script: &str, mode: u32) {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_check_has_to_end_with_0_in_time() {
        let (own, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directories = [own.path(), image.path()];
        assert!(run_all(&[Path::new("/no/such/directory")], Duration::from_secs(1)).is_empty());
        put(image.path(), "10-good", "echo well", 0o755);
        put(image.path(), "20-bad", "echo; echo the arm does not answer; echo; exit 3", 0o755);
        put(image.path(), "30-late", "sleep 77 & echo waiting; sleep 100", 0o755);
        put(image.path(), "40-notes", "exit 1", 0o644);
        put(image.path(), "50-off", "exit 1", 0o755);
        symlink("/dev/null", own.path().join("50-off")).unwrap();
        put(image.path(), "60-replaced", "exit 1", 0o755);
        put(own.path(), "60-replaced", "exit 0", 0o755);
        let began = Instant::now();
        let found: Vec<String> =
            run_all(&directories, Duration::from_secs(2)).iter().map(ToString::to_string).collect();
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("20-bad ended with 3 (the arm does not answer)"), "{found:?}");
        assert!(found[1].ends_with("30-late did not end within 2 s (waiting)"), "{found:?}");
        assert_eq!(programs(&directories).unwrap().len(), 4);
    }

    #[test]
    fn a_check_that_cannot_be_started_fails() {
        let image = tempfile::tempdir().unwrap();
        fs::write(image.path().join("10-broken"), "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(image.path().join("10-broken"), Permissions::from_mode(0o755)).unwrap();
        let found = run_all(&[image.path()], Duration::from_secs(2));
        assert!(found[0].what == "cannot be started" && found[0].counts, "{found:?}");
    }
}
