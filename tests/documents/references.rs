//! What documents refer to: other pages and their sections, files of the repository, tests, and texts of the screen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{checkout, documents, read};

/// A document without its code, where a bracket is no link.
pub(super) fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence && !line.starts_with("    ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of a document's links and pictures.
fn links(prose: &str) -> Vec<String> {
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The names by which GitHub finds the headings of a document.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| !line.starts_with("    ")).filter_map(|line| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len()).then(|| heading.strip_prefix(' ')).flatten()
    });
    let name = |heading: &str| -> String {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    headings.map(name).collect()
}

/// Why a link of a document leads nowhere, if it does not lead anywhere.
fn leads_nowhere(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let file = if file.is_empty() { document.to_owned() } else { document.parent()?.join(file) };
    if !file.exists() {
        return Some(format!("{}: {link} is no file", document.display()));
    }
    let anchors = anchors(&anchor.map(|_| std::fs::read_to_string(&file).unwrap()).unwrap_or_default());
    anchor.filter(|anchor| !anchors.contains(*anchor)).map(|_| format!("{}: {link} is no section", document.display()))
}

#[test]
fn every_link_leads_to_a_file_and_a_section() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        let links = links(&prose(&std::fs::read_to_string(&document).unwrap()));
        count += links.len();
        wrong.extend(links.iter().filter_map(|link| leads_nowhere(&document, link)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} links were found");
    let page = checkout().join("docs/building.md");
    assert!(leads_nowhere(&page, "publishing.md#an-s3-compatible-store").is_none());
    assert!(leads_nowhere(&page, "publishing.md#no-such-section").is_some());
    assert!(leads_nowhere(&page, "no-such-page.md").is_some());
}

/// Paths on a robot's disk, which look like those of the repository.
const ON_A_DISK: [&str; 2] = ["grub/local.cfg", "grub/BOOTX64.EFI"];

/// The words of a text that are paths below one of the directories of the repository.
fn paths(text: &str) -> Vec<String> {
    let words = text.split(|letter: char| !(letter.is_alphanumeric() || "/._-*{}@".contains(letter)));
    let ours = ["docs/", "src/", "xtask/", "tests/", "grub/", "initramfs/"];
    let paths = words.map(|word| word.trim_end_matches(['.', '-']));
    paths.filter(|word| ours.iter().any(|start| word.starts_with(start))).map(str::to_owned).collect()
}

#[test]
fn every_file_of_the_repository_that_a_document_or_a_help_text_names_is_there() {
    let mut wrong = Vec::new();
    let mut count = 0;
    let root = checkout();
    let sources = ["src", "xtask/src", "xtask/release/src"].into_iter().flat_map(|below| rust_files(&root.join(below)));
    for file in documents().into_iter().chain(sources) {
        let rust = file.extension().is_some_and(|extension| extension == "rs");
        let text = std::fs::read_to_string(&file).unwrap();
        for path in paths(&text) {
            // Sources name paths of other trees too; what they print of ours are pages.
            let ours = if rust { path.starts_with("docs/") && path.ends_with(".md") } else { path.contains('.') };
            if !ours || path.contains(['*', '{', '@']) || ON_A_DISK.contains(&path.as_str()) {
                continue;
            }
            count += 1;
            if !root.join(&path).exists() {
                wrong.push(format!("{}: there is no {path}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "only {count} paths were found");
}

fn rust_files(below: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(below).into_iter().map(|entry| entry.unwrap().into_path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn the_readme_lists_every_document() {
    let readme = read("README.md");
    for page in documents() {
        let name = page.strip_prefix(checkout()).unwrap().display().to_string();
        if name.starts_with("docs/") && !name.starts_with("docs/examples/") {
            assert!(readme.contains(&name), "README.md does not name {name}");
        }
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = checkout();
    let sources = ["src", "xtask", "tests"].into_iter().flat_map(|below| rust_files(&root.join(below)));
    let sources: Vec<String> = sources.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let spans = text.split("(test").skip(1).filter_map(|rest| rest.split_once(')')).map(|(inside, _)| inside);
        for name in spans.flat_map(|inside| inside.split('`').skip(1).step_by(2)) {
            count += 1;
            let function = format!("fn {name}(");
            let found = sources.iter().any(|source| source.contains(&function));
            assert!(found || name.contains('/'), "{}: there is no test {name}", document.display());
        }
    }
    assert!(count > 50, "only {count} tests were found");
}

/// Sources with every run of white space as one space, and strings that go on in the next line joined.
fn joined(text: &str) -> String {
    let text = text.replace("\\\n", "").replace("\\\"", "\"");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a person at a machine looks for on the page is what the machine writes: each text in the first column of a
/// table, between backquotes, with `…` for what differs from case to case, is in the sources.
#[test]
fn the_page_for_a_person_at_the_machine_has_the_texts_of_the_screen() {
    let root = checkout();
    let scripts = walkdir::WalkDir::new(root.join("grub")).into_iter().map(|entry| entry.unwrap().into_path());
    let files = rust_files(&root.join("src")).into_iter().chain(scripts.filter(|path| path.is_file()));
    let sources: Vec<String> = files.map(|path| joined(&std::fs::read_to_string(path).unwrap())).collect();
    let page = read("docs/at-the-machine.md");
    let first_cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let texts: Vec<&str> = first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(texts.len() > 25, "only {} texts were found", texts.len());
    for text in texts {
        for part in text.split('…').map(str::trim).filter(|part| !part.is_empty()) {
            assert!(sources.iter().any(|source| source.contains(part)), "nothing writes {part:?} of {text:?}");
        }
    }
}
