//! The program as a shell starts it: its output, its exit codes, and the documents that are made of its definitions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use reflash::cli::answer::Exit;
use reflash::cli::commands::COMMANDS;
use reflash::cli::{completion, help, manual};
use reflash::machine::config::reference;

fn reflash(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflash"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn code(output: &Output) -> Exit {
    // A signal, such as that of an abort, is no exit code at all.
    let code = output.status.code().unwrap_or_else(|| panic!("{output:?}"));
    Exit::ALL.into_iter().find(|exit| i32::from(exit.code()) == code).unwrap_or_else(|| panic!("{output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A state partition with nothing on it but an environment, for the commands that answer from there.
fn state() -> (tempfile::TempDir, String) {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().display().to_string();
    let set = reflash(&["env", "set", "reflash_max_tries=5", "--state", &path]).output().unwrap();
    assert_eq!(code(&set), Exit::Done, "{set:?}");
    (state, path)
}

#[test]
fn a_lost_environment_is_no_empty_answer() {
    let (state, path) = state();
    std::fs::write(state.path().join("grubenv"), "of another program").unwrap();
    for arguments in [&["env", "--state", &path][..], &["env", "--json", "--state", &path]] {
        let output = reflash(arguments).output().unwrap();
        let said = text(&output.stderr);
        assert!(code(&output) == Exit::Failed && said.contains("environment is lost: "), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    // A command that changes it makes it anew.
    assert_eq!(code(&reflash(&["env", "set", "a=b", "--state", &path]).output().unwrap()), Exit::Done);
    assert_eq!(text(&reflash(&["env", "--state", &path]).output().unwrap().stdout), "a=b\n");
}

/// A unit that failed beside the robot's work would be noise in each journal, every ten minutes.
#[test]
fn an_update_in_the_background_ends_well_however_early_it_fails() {
    for (more, exit) in [(&[][..], Exit::Failed), (&["--background"], Exit::Done)] {
        // No directory can be made below a file.
        let line = [&["update", "--store", "/dev/null/below/store"], more].concat();
        let output = reflash(&line).output().unwrap();
        assert_eq!(code(&output), exit, "{output:?}");
        assert!(!text(&output.stderr).is_empty(), "{line:?}");
    }
}

#[test]
fn help_is_printed_for_every_command() {
    for row in COMMANDS {
        let output = reflash(&[row.word, "--help"]).output().unwrap();
        assert_eq!((code(&output), text(&output.stdout)), (Exit::Done, help::help(Some(row.name))));
    }
    for arguments in [&[][..], &["--help"], &["-h"], &["help"]] {
        let output = reflash(arguments).output().unwrap();
        assert_eq!((code(&output), text(&output.stdout)), (Exit::Done, help::help(None)));
    }
    let version = reflash(&["--version"]).output().unwrap();
    assert_eq!(text(&version.stdout), format!("reflash {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_answer_is_text_or_json() {
    let (_state, path) = state();
    let output = reflash(&["env", "--state", &path]).output().unwrap();
    assert_eq!((code(&output), text(&output.stdout)), (Exit::Done, "reflash_max_tries=5\n".to_owned()));
    let output = reflash(&["good", "--json", "--state", &path]).output().unwrap();
    assert_eq!((code(&output), text(&output.stdout)), (Exit::Done, "{\"tries\":\"5\"}\n".to_owned()));
}

#[test]
fn a_failure_is_one_line_on_standard_error_and_an_exit_code() {
    for (arguments, exit, named) in [
        (&["flsh"][..], Exit::Usage, "flsh"),
        (&["flash", "--targt", "x"], Exit::Usage, "--targt"),
        (&["provision", "--disk", "/nowhere"], Exit::Failed, "--config FILE"),
        (&["flash", "--target", "/nowhere", "--config", "/nowhere.toml"], Exit::Failed, "/nowhere.toml"),
    ] {
        let output = reflash(arguments).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!(code(&output), exit, "{arguments:?}: {complaint}");
        assert!(complaint.starts_with("reflash: ") && complaint.contains(named), "{complaint}");
        assert_eq!((complaint.lines().count(), output.stdout.len()), (1, 0), "{complaint}");
    }
}

#[test]
fn a_reader_that_goes_away_takes_nothing_from_the_exit_code() {
    let (_state, path) = state();
    for arguments in [&["--help"][..], &["flash", "--help"], &["--version"], &["env", "--state", &path]] {
        let output = reflash(arguments).stdout(closed_pipe()).output().unwrap();
        assert_eq!((code(&output), text(&output.stderr)), (Exit::Done, String::new()), "{arguments:?}");
    }
    // What the command does, it has done.
    let good = reflash(&["good", "--state", &path]).stdout(closed_pipe()).output().unwrap();
    assert_eq!(code(&good), Exit::Done);
    let env = reflash(&["env", "--state", &path]).output().unwrap();
    assert!(text(&env.stdout).contains("reflash_boot_ok=1"), "{env:?}");
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let (_state, path) = state();
    for arguments in [&["--help"][..], &["--version"], &["env", "--state", &path], &["env", "--json", "--state", &path]]
    {
        let output = reflash(arguments).stdout(full()).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!(code(&output), Exit::Failed, "{arguments:?}");
        assert!(complaint.contains("standard output") && complaint.contains("No space left"), "{complaint}");
    }
}

#[test]
fn a_complaint_that_cannot_be_written_leaves_the_exit_code() {
    for stderr in [full as fn() -> Stdio, closed_pipe] {
        for (arguments, exit) in [
            (&["flsh"][..], Exit::Usage),
            (&["provision", "--disk", "/nowhere"], Exit::Failed),
            (&["flash", "--verbose", "--target", "/nowhere", "--config", "/nowhere.toml"], Exit::Failed),
        ] {
            let output = reflash(arguments).stderr(stderr()).output().unwrap();
            assert_eq!(code(&output), exit, "{arguments:?}");
        }
        let nowhere_to_write = reflash(&["--help"]).stdout(full()).stderr(stderr()).output().unwrap();
        assert_eq!(code(&nowhere_to_write), Exit::Failed);
    }
}

/// Set `UPDATE_DOCS=1` to write the documents anew.
#[test]
fn the_documents_are_those_of_the_definitions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, current) in [
        ("docs/configuration.md", reference::markdown()),
        ("docs/configuration.schema.json", reference::json_schema()),
        ("docs/man/reflash.8", manual::page()),
        ("docs/completions/reflash.bash", completion::bash()),
        ("docs/completions/_reflash", completion::zsh()),
        ("docs/completions/reflash.fish", completion::fish()),
    ] {
        let file = root.join(path);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, &current).unwrap();
        }
        let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            checked_in == current,
            "{path} is not current: UPDATE_DOCS=1 cargo test -p reflash --test command_line"
        );
    }
}
