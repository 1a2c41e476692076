//! The notices that go with the agent: the crates it is linked from, their authors and their licences.
//!
//! Most of these licences ask for no more than their text and the name of the author in every copy, and a binary in a
//! recovery partition is a copy. The same `Cargo.lock` gives the same text, so what carries it is reproducible.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::agent::TARGET;
use crate::embedded;
use crate::paths::Paths;
use crate::step::{output, produced};

/// Path of the notices in the recovery initramfs and in a system image.
pub const PATH: &str = "/usr/share/doc/reflash/THIRD-PARTY";

/// Notices of what the toolchain links in, of which cargo knows nothing.
const RUNTIME: &str = include_str!("notices/runtime.txt");

/// How the names of licence files begin.
const NAMES: &[&str] = &["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// A crate, as `cargo metadata` describes it.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    #[serde(default)]
    authors: Vec<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Returns the notices of the agent that [`crate::agent::obtain`] takes: those beside an agent that a person gave; in a
/// checkout, those of its sources; otherwise those that the builder was installed with.
///
/// # Errors
/// When there are none: an agent is not shipped without them.
pub fn of_agent(paths: &Paths) -> Result<String> {
    if let Some(agent) = paths.given_agent() {
        let path = beside(agent);
        return std::fs::read_to_string(&path).with_context(|| {
            format!(
                "read {}, the notices of the software in that agent; copy it from where the agent was built",
                path.display()
            )
        });
    }
    if paths.in_checkout() {
        return text(paths);
    }
    embedded::notices().map(str::to_owned).context("this builder has no agent inside, and no notices of one")
}

/// Writes the notices of the checkout's agent beside it, with which it can be taken elsewhere.
///
/// # Errors
/// When they cannot be collected or written.
pub fn write_beside(agent: &Path, paths: &Paths) -> Result<()> {
    let path = beside(agent);
    std::fs::write(&path, text(paths)?).with_context(|| format!("write {}", path.display()))?;
    produced("notices of the software in it", &path);
    Ok(())
}

fn beside(agent: &Path) -> PathBuf {
    agent.with_added_extension("THIRD-PARTY")
}

/// The notices of the agent: every crate with its licence, then every licence text once.
///
/// # Errors
/// cargo does not know a crate, or one says nothing of its licence.
pub fn text(paths: &Paths) -> Result<String> {
    let mut texts = Texts::default();
    let mut list = String::new();
    let packages = linked(paths)?;
    let mut without_text = Vec::new();
    for package in &packages {
        let Package { name, version, authors, .. } = package;
        let license = package.license.as_ref().with_context(|| format!("{name} {version} names no licence"))?;
        let found = licence_files(package)?;
        let numbers: Vec<String> = found.iter().map(|text| format!("[{}]", texts.number(text))).collect();
        if found.is_empty() {
            without_text.push(package);
            writeln!(list, "{name} {version}: {license}, by {}", authors.join(", "))?;
        } else {
            writeln!(list, "{name} {version}: {license} {}", numbers.join(" "))?;
        }
    }
    for Package { name, license, .. } in without_text {
        let license = license.as_deref().unwrap_or_default();
        let has_text = license.contains("Apache-2.0") && texts.hold("Apache License", "Version 2.0");
        ensure!(has_text, "{name} comes without the text of its licence, {license}, and no other crate has it");
    }
    Ok(format!(
        "The program reflash contains the following software of others. The numbers behind a licence are those of\n\
         its texts below; where there is a choice, the text is that of the licence chosen. Apache-2.0 without a\n\
         number: the text of the Apache License below.\n\n{list}\n{RUNTIME}{texts}"
    ))
}

/// The crates whose code is in the binary, by name: no build scripts, no macros, nothing for tests.
fn linked(paths: &Paths) -> Result<Vec<Package>> {
    let cargo = |arguments: &[&str]| output(Command::new("cargo").current_dir(&paths.root).args(arguments));
    let tree = ["tree", "--locked", "--package", "reflash", "--target", TARGET, "--edges", "normal,no-proc-macro"];
    let tree = cargo(&[&tree[..], &["--prefix", "none", "--no-dedupe", "--format", "{p}"]].concat())?;
    let metadata = cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("read what cargo metadata says")?;
    let known = metadata.packages.into_iter().map(|package| (package.id(), package));
    let mut known: BTreeMap<String, Package> = known.collect();
    let mut found = BTreeMap::new();
    for line in tree.lines() {
        let id = line.split_whitespace().take(2).collect::<Vec<_>>().join(" v").replace("vv", "v");
        if id.starts_with("reflash v") || found.contains_key(&id) {
            continue;
        }
        let package = known.remove(&id).with_context(|| format!("cargo metadata does not know {line:?}"))?;
        found.insert(id, package);
    }
    Ok(found.into_values().collect())
}

impl Package {
    /// As `cargo tree` names it.
    fn id(&self) -> String {
        format!("{} v{}", self.name, self.version)
    }
}

/// The texts that come with a crate. Where a crate leaves the choice and MIT is among it, that is what is chosen: its
/// text is the shortest.
fn licence_files(package: &Package) -> Result<Vec<String>> {
    let directory = package.manifest_path.parent().context("a manifest lies in a directory")?;
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(directory).max_depth(4).sort_by_file_name() {
        let entry = entry.with_context(|| format!("look for licences in {}", directory.display()))?;
        let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
        let extension = entry.path().extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let is_code = matches!(extension.as_deref(), Some("yml" | "rs" | "c" | "h" | "py"));
        if entry.file_type().is_file() && !is_code && NAMES.iter().any(|prefix| name.starts_with(prefix)) {
            files.push(entry.into_path());
        }
    }
    let license = package.license.as_deref().unwrap_or_default();
    let is_choice = license.contains(" OR ") || license.contains('/');
    let is_mit = |path: &PathBuf| matches!(stem(path).as_str(), "license-mit" | "license.mit");
    if is_choice && !license.contains(" AND ") && files.iter().any(is_mit) {
        files.retain(is_mit);
    }
    // Beside another text, COPYING is a note on the choice, or the GPL that zstd may be had under as well.
    let others = files.iter().filter(|path| stem(path) != "copying").filter_map(|path| path.parent());
    let with_others: Vec<PathBuf> = others.map(Path::to_owned).collect();
    let is_kept = |path: &PathBuf| {
        stem(path) != "copying" || !path.parent().is_some_and(|folder| with_others.iter().any(|other| other == folder))
    };
    files.retain(is_kept);
    files.iter().map(|path| read(path)).collect()
}

/// The name of a file in small letters, without `.txt` and `.md`.
fn stem(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    name.trim_end_matches(".txt").trim_end_matches(".md").to_owned()
}

/// A text without what differs between copies of the same one: line ends, and white space at the ends.
fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned())
}

/// Licence texts, each once, in the order of their first use.
#[derive(Debug, Default)]
struct Texts {
    numbers: BTreeMap<String, usize>,
    all: Vec<String>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        self.all.push(text.to_owned());
        self.numbers.insert(text.to_owned(), self.all.len());
        self.all.len()
    }

    fn hold(&self, name: &str, version: &str) -> bool {
        self.all.iter().any(|text| text.contains(name) && text.contains(version))
    }
}

impl std::fmt::Display for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (1..).zip(&self.all).try_for_each(|(number, text): (usize, _)| write!(f, "\n---- [{number}] ----\n\n{text}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Texts, stem, text};
    use crate::agent::TARGET;
    use crate::paths::Paths;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn every_crate_of_the_agent_is_named_with_a_licence_and_a_text() {
        let paths = Paths::of_checkout();
        let notices = text(&paths).unwrap();
        let (list, texts) = notices.split_once("musl libc").unwrap();
        let tree = ["tree", "--package", "reflash", "--target", TARGET, "--edges", "normal,no-proc-macro"];
        let tree =
            Command::new("cargo").current_dir(&paths.root).args(tree).args(["--prefix", "none"]).output().unwrap();
        let tree = String::from_utf8(tree.stdout).unwrap();
        let mut names: Vec<String> = tree.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
        names.sort();
        names.dedup();
        assert!(names.len() > 60, "{}", names.len());
        for name in names.iter().filter(|name| !name.starts_with("reflashv")) {
            let (crate_name, version) = name.rsplit_once('v').unwrap();
            let line = list.lines().find(|line| line.starts_with(&format!("{crate_name} {version}: ")));
            let line = line.unwrap_or_else(|| panic!("{crate_name} {version} is not in\n{list}"));
            assert!(line.ends_with(']') || line.contains("Apache-2.0, by "), "{line}");
        }
        assert!(!list.contains("serde_derive") && !list.contains("tempfile"), "{list}");
        for needed in ["Rich Felker", "Meta Platforms", "Brian Smith", "Version 2.0, January 2004", "LLVM Exceptions"] {
            assert!(texts.contains(needed), "{needed}");
        }
        assert!(!texts.contains("GNU GENERAL PUBLIC LICENSE"));
        assert_eq!(text(&paths).unwrap(), notices);
    }

    #[test]
    fn a_text_is_there_once_and_file_names_are_compared_without_their_kind() {
        let mut texts = Texts::default();
        assert_eq!((texts.number("a"), texts.number("b"), texts.number("a")), (1, 2, 1));
        assert_eq!(texts.to_string(), "\n---- [1] ----\n\na\n\n---- [2] ----\n\nb\n");
        assert!(texts.hold("a", "a") && !texts.hold("a", "b"));
        assert_eq!(stem(Path::new("x/LICENSE-MIT.txt")), "license-mit");
    }
}
