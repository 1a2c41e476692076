//! The image's own health checks: the programs of `health.d`, each of which ends with 0 when what it looks at works.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
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
    let found = entries(directories).map_err(|(directory, error)| {
        io::Error::new(error.kind(), format!("{} cannot be read: {error}", directory.display()))
    })?;
    Ok(found.into_iter().filter(|(_, is_program)| *is_program).map(|(path, _)| path).collect())
}

/// Every name of the directories that is not switched off, and whether it is a program. Names that begin with a dot are
/// of those who keep the directory.
fn entries(directories: &[&Path]) -> Result<Vec<(PathBuf, bool)>, (PathBuf, io::Error)> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err((directory.to_path_buf(), error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| (directory.to_path_buf(), error))?;
            found.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    let is_program = |path: &Path| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    // A link to /dev/null in the first directory switches a program of the second one off.
    let is_off = |path: &Path| path.metadata().is_ok_and(|it| it.file_type().is_char_device());
    let is_hidden = |name: &OsString| name.as_bytes().starts_with(b".");
    let shown = found.into_iter().filter(|(name, path)| !is_hidden(name) && !is_off(path));
    Ok(shown.map(|(_, path)| (path.clone(), is_program(&path))).collect())
}

/// Meaning of a file that is no program: one without permission to execute it, or a link to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoProgram {
    /// The file is only mentioned: a note among the checks must not take a release back.
    Mentioned,
    /// The file counts as one that failed: it may have been meant to speak against something.
    Failed,
}

/// Runs every check of the directories, one after the other, and says which failed.
#[must_use]
pub fn run_all(directories: &[&Path], limit: Duration, no_program: NoProgram) -> Vec<Problem> {
    let problem = |name: &Path, (what, detail): (String, String)| Problem {
        name: name.display().to_string(),
        what,
        detail,
        counts: true,
    };
    let found = match entries(directories) {
        Ok(found) => found,
        // What cannot be read may be a check, and nothing is called good that was not seen to be so.
        Err((directory, error)) => return vec![problem(&directory, ("cannot be read".to_owned(), error.to_string()))],
    };
    let problems = found.iter().filter_map(|(path, is_program)| match is_program {
        true => run(path, limit).map(|why| problem(path, why)),
        false => Some(Problem {
            counts: no_program == NoProgram::Failed,
            ..problem(path, ("is no program that can be started".to_owned(), String::new()))
        }),
    });
    problems.collect()
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
    Some((what, shown(last)))
}

/// Text of a program, as it may be shown to people: nothing in it moves a cursor or begins another line.
#[must_use]
pub fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::{NoProgram, programs};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn run_all(directories: &[&Path], limit: Duration) -> Vec<super::Problem> {
        super::run_all(directories, limit, NoProgram::Failed)
    }

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
        put(image.path(), ".keep", "exit 1", 0o644);
        symlink("/no/such/program", image.path().join("45-link")).unwrap();
        put(image.path(), "50-off", "exit 1", 0o755);
        symlink("/dev/null", own.path().join("50-off")).unwrap();
        put(image.path(), "60-replaced", "exit 1", 0o755);
        put(own.path(), "60-replaced", "exit 0", 0o755);
        let began = Instant::now();
        let found: Vec<String> =
            run_all(&directories, Duration::from_secs(2)).iter().map(ToString::to_string).collect();
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[2].ends_with("40-notes is no program that can be started"), "{found:?}");
        assert!(found[3].ends_with("45-link is no program that can be started"), "{found:?}");
        let mentioned = super::run_all(&directories, Duration::from_secs(2), NoProgram::Mentioned);
        assert_eq!(mentioned.iter().map(|problem| problem.counts).collect::<Vec<_>>(), [true, true, false, false]);
        assert!(found[0].ends_with("20-bad ended with 3 (the arm does not answer)"), "{found:?}");
        assert!(found[1].ends_with("30-late did not end within 2 s (waiting)"), "{found:?}");
        assert_eq!(programs(&directories).unwrap().len(), 4);
    }

    #[test]
    fn what_cannot_be_read_or_shown_is_said_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("update.d");
        fs::write(&file, "").unwrap();
        let found = run_all(&[&file], Duration::from_secs(1));
        assert!(found[0].name.ends_with("update.d") && found[0].what == "cannot be read", "{found:?}");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        put(&file, "10-arm", "printf 'a\\033[2Jb\\rc\\n'; exit 1", 0o755);
        let found = run_all(&[&file], Duration::from_secs(5));
        assert_eq!(found[0].detail, "a [2Jb c");
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
