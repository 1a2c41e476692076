//! Facts of the running system, which roll-outs may ask for: an image's own program answers them.

use std::path::Path;
use std::time::Duration;

use crate::release::rollout::Facts;
use crate::sys::companion::{self, Ended};

/// The program, in the first of these places where it is: the machine's own stands in place of the image's.
pub const PROGRAMS: [&str; 2] = ["/etc/reflash/facts", "/usr/lib/reflash/facts"];
/// Time in which it has to answer. What has to be measured for longer is measured before.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Runs the program, and takes its lines `NAME=VALUE`. Facts of one that fails, hangs or is not there are not known:
/// a release that asks for any waits, and the error says for what.
///
/// # Errors
/// What is wrong with the program, as a sentence.
pub fn ask(programs: &[&Path], limit: Duration) -> Result<Facts, String> {
    // A link to nothing is there, and cannot be started.
    let Some(program) = programs.iter().find(|program| program.symlink_metadata().is_ok()) else {
        let places: Vec<String> = programs.iter().map(|program| program.display().to_string()).collect();
        return Err(format!("there is no program for facts ({})", places.join(" or ")));
    };
    let shown = program.display();
    match companion::run_group_within(program, &[], limit) {
        Ok((Ended::Exit(0), output)) => Ok(Facts::Answered(answers(&output))),
        Ok((Ended::Exit(code), _)) => Err(format!("{shown} ended with {code}, so that no fact is known")),
        Ok((Ended::Signal, _)) => Err(format!("{shown} was ended by a signal, so that no fact is known")),
        Ok((Ended::Late, _)) => Err(format!("{shown} did not answer within {} s: no fact is known", limit.as_secs())),
        Err(error) => Err(format!("{shown} cannot be started, so that no fact is known: {error}")),
    }
}

fn answers(output: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
    output.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::ask;
    use crate::release::rollout::Facts;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn a_program_answers_in_time_or_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        let ask = |script: &str| {
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            ask(&[Path::new("/no/such/program"), &path], Duration::from_secs(1))
        };
        let answered = |pairs: &[(&str, &str)]| {
            Ok(Facts::Answered(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()))
        };
        assert_eq!(
            ask("echo battery_percent = 81; echo nothing; echo docked=yes"),
            answered(&[("battery_percent", "81"), ("docked", "yes")])
        );
        assert!(ask("echo docked=yes; exit 3").unwrap_err().contains("ended with 3"));
        assert!(ask("sleep 20").unwrap_err().contains("within 1 s"));
        let none = super::ask(&[Path::new("/no/such/program")], Duration::from_secs(1)).unwrap_err();
        assert_eq!(none, "there is no program for facts (/no/such/program)");
        std::os::unix::fs::symlink("/no/such/program", dir.path().join("link")).unwrap();
        let link = super::ask(&[&dir.path().join("link"), &path], Duration::from_secs(1)).unwrap_err();
        assert!(link.contains("cannot be started"), "{link}");
    }
}
