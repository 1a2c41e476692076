//! What documents and examples give a person to type: every command line is parsed by the program that it names, and
//! the chain of the README is run as it stands. What they refer to is checked in `references`, the manual pages of the
//! builder in `manual_pages`.

mod manual_pages;
mod references;

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

/// The programs whose command lines are checked, with the words by which a line starts them.
const PROGRAMS: [(Program, &[&str]); 3] =
    [(Program::Builder, &["reflash-build"]), (Program::Builder, &["cargo", "xtask"]), (Program::Agent, &["reflash"])];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Builder,
    Agent,
}

/// A command line of a document, without the name of its program.
#[derive(Debug)]
struct Typed {
    program: Program,
    words: Vec<String>,
}

impl Typed {
    /// The commands of a line of a shell, without those that leave something out.
    fn all_of(line: &str) -> Vec<Self> {
        line.split("&&").filter_map(Self::of).collect()
    }

    fn of(line: &str) -> Option<Self> {
        if line.contains("...") {
            return None;
        }
        // A comment, and what follows the command, are for the shell.
        let line = line.split(['>', '|', ';']).next()?;
        let words: Vec<String> = shlex::split(line)?;
        let (program, at, length) = PROGRAMS.iter().find_map(|(program, name)| {
            let at = words.windows(name.len()).position(|some| some == *name)?;
            Some((*program, at, name.len()))
        })?;
        // What stands before is an environment, sudo, or the way to another machine.
        let before = match &words[..at] {
            [ssh, _, rest @ ..] if ssh == "ssh" => rest,
            all => all,
        };
        let known = before.iter().all(|word| word.contains('=') || ["sudo", "env"].contains(&word.as_str()));
        let words = words[at + length..].to_vec();
        (known && !words.is_empty()).then_some(Self { program, words })
    }

    /// Why the program does not take the words, if it does not.
    fn refused(&self) -> Option<String> {
        let why = match self.program {
            Program::Builder => refused(&self.words)?,
            Program::Agent => reflash::cli::args::parse(self.words.iter().map(Into::into)).err()?.to_string(),
        };
        Some(format!("{}: {why}", self.words.join(" ")))
    }
}

/// The words of a line that runs the builder, without the name of the builder; `None` for other lines, and for those
/// that leave something out.
fn words(line: &str) -> Option<Vec<String>> {
    Typed::of(line).filter(|typed| typed.program == Program::Builder).map(|typed| typed.words)
}

/// Whether the builder takes the words; otherwise why not.
fn refused(words: &[String]) -> Option<String> {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    let parsed = Cli::try_parse_from(std::iter::once("reflash-build").chain(words.iter().map(String::as_str)));
    let error = parsed.err()?;
    (!matches!(error.kind(), DisplayHelp | DisplayVersion)).then(|| error.to_string())
}

/// The lines of code of a document, indented by four columns or more or between fences, with those that end in a
/// backslash joined.
fn code(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let (mut goes_on, mut fenced) = (false, false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let line = if fenced { Some(line) } else { line.strip_prefix("    ") };
        let Some(line) = line.map(str::trim_start) else {
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

/// The commands that stand whole within a sentence, between backquotes, with numbers in the places of their names.
fn commands_in_sentences(text: &str) -> Vec<String> {
    let prose = references::prose(text).replace('\n', " ");
    let spans = prose.split('`').skip(1).step_by(2);
    // A sentence may speak of a command, or of one of its options, without all that belongs to it.
    let part = |span: &str| {
        let last = span.rsplit(' ').next().unwrap_or_default();
        last.starts_with("--") || last == "COMMAND" || span == "reflash provision"
    };
    let whole = spans.filter(|span| !span.contains(['[', '{', '*']) && !part(span));
    let numbered = |span: &str| {
        let words = span.split(' ').map(|word| if ["SERIAL", "N", "KIB"].contains(&word) { "1" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    whole.map(numbered).collect()
}

/// The documents of the repository that people read, and the README that `init` writes.
fn documents() -> Vec<PathBuf> {
    let below = walkdir::WalkDir::new(checkout().join("docs")).into_iter().map(|entry| entry.unwrap().into_path());
    let pages = below.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let own = ["README.md", "xtask/src/init/readme.md", "grub/README.md", "tests/fixtures/README.md"];
    pages.chain(own.map(|name| checkout().join(name))).collect()
}

#[test]
fn every_command_line_in_the_documents_is_one_that_its_program_takes() {
    let mut wrong = Vec::new();
    let mut count = [0, 0];
    for document in documents() {
        // The first line of a file looks like a command there.
        let text = std::fs::read_to_string(&document).unwrap().replace("`reflash etc defaults 1`", "");
        for line in code(&text).into_iter().chain(commands_in_sentences(&text)) {
            for typed in Typed::all_of(&line) {
                count[usize::from(typed.program == Program::Agent)] += 1;
                wrong.extend(typed.refused().map(|why| format!("{}: {why}", document.display())));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count[0] > 60 && count[1] > 30, "only {count:?} command lines of builder and agent were found");
}

#[test]
fn a_command_line_that_its_program_does_not_take_is_found() {
    for line in [
        "reflash-build image --no-such-option",
        "sudo reflash request --no-such-option && reboot",
        "sudo mount /dev/sdX3 /mnt && sudo reflash status --stat /mnt",
        "ssh robot-7 sudo reflash undo",
        "cargo xtask flash    # this is the agent's",
    ] {
        let typed = Typed::all_of(line);
        assert!(typed.iter().any(|typed| typed.refused().is_some()), "{line}: {typed:?}");
    }
    let text =
        "Ask `reflash status` first.\n\n```\nreflash good\n```\n\n1. Then:\n\n       reflash \\\n       verify\n";
    let found: Vec<String> = code(text).into_iter().chain(commands_in_sentences(text)).collect();
    for command in ["reflash good", "reflash verify", "reflash status"] {
        assert!(found.iter().any(|line| line == command), "{command}: {found:?}");
    }
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
    assert_eq!(packages(&lines[stages[1]..]), wanted(&needs, &["awscli", "git", "ca-certificates"]));
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

/// Runs lines as a person would paste them, in a home of its own with an ssh key, with the builder on the search path.
fn paste(home: &Path, lines: &[String], more: &[(&str, &str)]) -> String {
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let builder = Path::new(env!("CARGO_BIN_EXE_reflash-build"));
    let _ = std::os::unix::fs::symlink(builder, bin.join("reflash-build"));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    std::fs::write(home.join(".ssh/id_ed25519.pub"), "ssh-ed25519 AAAA ada@desk\n").unwrap();
    let lines = lines.join("\n").replace("/home/YOU", home.to_str().unwrap());
    let mut shell = Command::new("sh");
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "REFLASH_DIST", "REFLASH_WORK", "REFLASH_PROJECT"] {
        shell.env_remove(name);
    }
    shell.args(["-exc", &lines]).current_dir(home).env("HOME", home).env("PATH", path);
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
    assert!(!text.contains("NOBODY CAN LOG IN"), "{text}");
}

/// Blocks of a document's code, as they would be copied.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        let code = line.strip_prefix("    ").or(line.is_empty().then_some(""));
        match (code, blocks.last_mut()) {
            (Some(code), Some(block)) => *block += &format!("{code}\n"),
            _ => blocks.push(String::new()),
        }
    }
    blocks.into_iter().map(|block| format!("{}\n", block.trim())).filter(|block| block.len() > 1).collect()
}

/// What the page on the first product has copied into a recipe and into files is a project that passes its check.
#[test]
fn the_pieces_of_the_first_product_fit_into_the_recipe_that_init_writes() {
    let home = tempfile::tempdir().unwrap();
    paste(home.path(), &["reflash-build init my-robot --yes --product my-robot --user pilot".to_owned()], &[]);
    let project = home.path().join("my-robot");
    let blocks = blocks(&read("docs/first-product.md"));
    let beginning = |start: &str| blocks.iter().filter(|block| block.starts_with(start)).collect::<Vec<_>>();
    let recipe = std::fs::read_to_string(project.join("recipe.toml")).unwrap();
    let in_list = |recipe: String, list: &str, lines: &[&String]| {
        let (before, after) = recipe.split_once(list).unwrap();
        lines.iter().fold(format!("{before}{list}\n"), |text, line| text + line) + after
    };
    let recipe = in_list(recipe, "packages = [", &beginning("\"python3\""));
    let recipe = in_list(recipe, "commands = [", &beginning("\"systemctl enable"));
    let files = beginning("[[files]]");
    let recipe = files.iter().fold(recipe, |recipe, block| recipe + "\n" + block);
    assert_eq!(recipe.matches("\n[[files]]").count(), 3 + 5, "{recipe}");
    std::fs::write(project.join("recipe.toml"), recipe).unwrap();
    let check = ["cd my-robot".to_owned(), "reflash-build check".to_owned()];
    let application = beginning("#!/usr/bin/python3");
    std::fs::write(project.join("files/my-robot"), application.first().unwrap()).unwrap();
    let text = paste(home.path(), &check, &[]);
    assert!(text.contains("recipe: my-robot 1.0.0, 15 packages"), "{text}");
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
