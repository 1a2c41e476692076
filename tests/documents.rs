//! What documents and examples tell a person to type: every command line is parsed by the builder itself, and the chain
//! of the README is run as it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use saphyr_parser::{Event, Parser as YamlParser};
use xtask::cli::Cli;
use xtask::host_packages::Need;
use xtask::paths::Paths;

fn checkout() -> PathBuf {
    Paths::of_checkout().root
}

fn read(path: &str) -> String {
    std::fs::read_to_string(checkout().join(path)).unwrap()
}

/// The words of a line that runs the builder, without the name of the builder; `None` for other lines, and for those
/// that leave something out.
fn words(line: &str) -> Option<Vec<String>> {
    if line.contains("...") {
        return None;
    }
    // A comment, and what follows the command, are for the shell.
    let line = line.split(['>', '|', ';']).next()?;
    let words: Vec<String> = shlex::split(line)?;
    let named = words.iter().position(|word| word == "reflash-build");
    let xtask = words.windows(2).position(|pair| pair == ["cargo", "xtask"]).map(|at| at + 1);
    let at = named.or(xtask)?;
    // What stands before is an environment, or sudo.
    let before = words[..at].iter().all(|word| word.contains('=') || ["sudo", "env", "cargo"].contains(&word.as_str()));
    before.then(|| words[at + 1..].to_vec()).filter(|words| !words.is_empty())
}

/// Whether the builder takes the words; otherwise why not.
fn refused(words: &[String]) -> Option<String> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    let parsed = Cli::try_parse_from(std::iter::once("reflash-build").chain(words.iter().map(String::as_str)));
    let error = parsed.err()?;
    (!matches!(error.kind(), DisplayHelp | DisplayVersion)).then(|| format!("{}: {error}", words.join(" ")))
}

/// The lines of code of a document, with those that end in a backslash joined.
fn code(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            goes_on = false;
            continue;
        };
        let (content, more) = line.strip_suffix('\\').map_or((line, false), |content| (content, true));
        match lines.last_mut() {
            Some(last) if goes_on => *last += content,
            _ => lines.push(content.to_owned()),
        }
        goes_on = more;
    }
    lines
}

#[test]
fn every_command_line_in_the_documents_is_one_that_the_builder_takes() {
    let mut wrong = Vec::new();
    let mut count = 0;
    let documents = walkdir::WalkDir::new(checkout().join("docs")).into_iter().map(|entry| entry.unwrap().into_path());
    let documents = documents.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let own = ["README.md", "xtask/src/init/readme.md"].map(|name| checkout().join(name));
    for document in documents.chain(own) {
        let text = std::fs::read_to_string(&document).unwrap();
        for words in code(&text).iter().filter_map(|line| words(line)) {
            count += 1;
            wrong.extend(refused(&words).map(|why| format!("{}: {why}", document.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 30, "only {count} command lines were found");
    assert!(refused(&["image".into(), "--no-such-option".into()]).is_some());
}

/// Every text of a YAML file.
fn texts(yaml: &str) -> Vec<String> {
    let events = YamlParser::new_from_str(yaml).map(|event| event.unwrap().0);
    let scalar = |event| if let Event::Scalar(text, ..) = event { Some(text.into_owned()) } else { None };
    events.filter_map(scalar).collect()
}

#[test]
fn the_examples_for_continuous_integration_are_yaml_and_run_commands_that_there_are() {
    for name in ["docs/ci/github.yml", "docs/ci/gitlab-ci.yml"] {
        let found = texts(&read(name));
        let lines = found.iter().flat_map(|text| text.lines()).filter(|line| line.contains("reflash-build "));
        let commands: Vec<Vec<String>> = lines.filter_map(words).collect();
        let wrong: Vec<String> = commands.iter().filter_map(|words| refused(words)).collect();
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
        for command in ["check", "image", "release", "publish", "prune"] {
            assert!(commands.iter().any(|words| words[0] == command), "{name} has no {command}");
        }
        // No secret on a command line, where every process of the host reads it.
        assert!(!commands.iter().flatten().any(|word| word.contains("PASSWORD")), "{name}");
    }
}

#[test]
fn the_container_has_what_the_builder_would_ask_for() {
    let text = read("docs/ci/Containerfile").replace("\\\n", " ");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stages: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("FROM ")).collect();
    let packages = |lines: &[&str]| -> BTreeSet<String> {
        let install = lines.iter().find(|line| line.contains("apt-get install")).unwrap();
        let (_, rest) = install.split_once("apt-get install").unwrap();
        let words = rest.split("&&").next().unwrap().split_whitespace();
        words.filter(|word| !word.starts_with('-')).map(str::to_owned).collect()
    };
    let wanted = |needs: &[Need], more: &[&str]| -> BTreeSet<String> {
        needs.iter().flat_map(|need| need.packages()).chain(more).map(|name| (*name).to_owned()).collect()
    };
    assert_eq!(packages(&lines[stages[0]..stages[1]]), wanted(&[Need::Agent], &[]));
    let needs = [Need::Initramfs, Need::Image, Need::Ansible, Need::Disk, Need::Media];
    assert_eq!(packages(&lines[stages[1]..]), wanted(&needs, &["git", "ca-certificates"]));
    let install = lines.iter().find(|line| line.contains("cargo xtask")).unwrap();
    assert_eq!(refused(&words(install.strip_prefix("RUN ").unwrap()).unwrap()), None);
}

/// The lines of the README's first chain that are for the fleet's own repository.
fn chain() -> Vec<String> {
    let text = read("README.md");
    let (_, section) = text.split_once("## Your first robot").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lines: Vec<String> = code(section).into_iter().filter(|line| !line.starts_with("cargo ")).collect();
    assert!(lines.iter().any(|line| line.starts_with("reflash-build media")), "{lines:?}");
    lines
}

/// Runs lines as a person would paste them, in a home of its own, with the builder on the search path.
fn paste(home: &Path, lines: &[String], more: &[(&str, &str)]) -> String {
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let builder = Path::new(env!("CARGO_BIN_EXE_reflash-build"));
    let _ = std::os::unix::fs::symlink(builder, bin.join("reflash-build"));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "REFLASH_DIST", "REFLASH_WORK", "REFLASH_PROJECT"] {
        shell.env_remove(name);
    }
    shell.args(["-exc", &lines.join("\n")]).current_dir(home).env("HOME", home).env("PATH", path);
    let output = shell.envs(more.iter().copied()).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_chain_of_the_readme_makes_a_project_that_passes_its_check() {
    let home = tempfile::tempdir().unwrap();
    let lines = chain();
    let end = lines.iter().position(|line| line.starts_with("reflash-build image")).unwrap();
    let text = paste(home.path(), &lines[..end], &[]);
    assert!(text.contains("next release: no image yet; nothing is offered yet"), "{text}");
}

/// All of it, up to a medium that firmware starts.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_chain_of_the_readme_ends_with_a_boot_medium() {
    let paths = Paths::of_checkout();
    let agent = xtask::agent::obtain(&paths, true).unwrap();
    xtask::notices::write_beside(&agent, &paths).unwrap();
    let home = tempfile::tempdir_in(paths.work()).unwrap();
    // There is no USB drive, a server does not end, and the store is not there.
    let is_left_out = |line: &String| {
        ["dd ", "reflash-build serve", "reflash-build publish --to"].iter().any(|left| line.starts_with(left))
    };
    let lines: Vec<String> = chain().into_iter().filter(|line| !is_left_out(line)).collect();
    paste(home.path(), &lines, &[("REFLASH_AGENT", agent.to_str().unwrap())]);
    let medium = walkdir::WalkDir::new(home.path()).into_iter().map(|entry| entry.unwrap().into_path());
    let medium = medium.into_iter().find(|path| path.ends_with("dist/media.iso")).unwrap();
    let head = std::fs::read(medium).unwrap();
    assert_eq!(head[510..512], [0x55, 0xaa]);
    assert!(head.len() > 200 << 20, "the release is on it");
}
