//! Software that no package manager of the system lists: what pip put beside the packages, and the crates of the agent.
//! Pure.

use std::collections::BTreeMap;

use super::file_facts::FileFacts;
use crate::notices;

/// Software that belongs to no package of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSoftware {
    /// Kind of its registry, as package URLs name it: `pypi` or `cargo`.
    pub kind: &'static str,
    /// Name in its registry.
    pub name: String,
    /// Version of it.
    pub version: String,
    /// Licence, as it names it itself.
    pub licence: Option<String>,
    /// Path of the file that names it.
    pub found_in: String,
}

/// Finds the software among the files of a system, whose texts `text` gives.
pub fn found(files: &BTreeMap<String, FileFacts>, text: &dyn Fn(&str) -> Option<String>) -> Vec<OtherSoftware> {
    let metadata = files.iter().filter(|(path, file)| file.package.is_none() && path.ends_with(".dist-info/METADATA"));
    let mut found: Vec<OtherSoftware> =
        metadata.filter_map(|(path, _)| of_python(path, &text(path.trim_start_matches('/'))?)).collect();
    if let Some(notices) = text(notices::PATH.trim_start_matches('/')) {
        found.extend(of_notices(&notices));
    }
    found
}

/// Parses the head of a Python package's METADATA.
fn of_python(path: &str, metadata: &str) -> Option<OtherSoftware> {
    let head = metadata.lines().take_while(|line| !line.is_empty());
    let fields: Vec<(&str, &str)> = head.filter_map(|line| line.split_once(": ")).collect();
    let field = |name: &str| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned());
    // Names in the registry are lower case with dashes (PEP 503).
    let name = field("Name")?.to_ascii_lowercase().replace(['_', '.'], "-");
    let licence = field("License-Expression").or_else(|| field("License")).filter(|text| text != "UNKNOWN");
    Some(OtherSoftware { kind: "pypi", name, version: field("Version")?, licence, found_in: path.to_owned() })
}

/// Parses the list of crates in the agent's notices: its second paragraph, with lines such as
/// `blake3 1.8.2: CC0-1.0 OR Apache-2.0 [4]`.
fn of_notices(notices: &str) -> Vec<OtherSoftware> {
    let list = notices.split("\n\n").nth(1).unwrap_or_default();
    list.lines().filter_map(of_crate).collect()
}

fn of_crate(line: &str) -> Option<OtherSoftware> {
    let (name, rest) = line.split_once(' ')?;
    let (version, licence) = rest.split_once(": ")?;
    // Numbers of texts, or authors, come behind it.
    let end = licence.find(" [").or_else(|| licence.find(", by ")).unwrap_or(licence.len());
    Some(OtherSoftware {
        kind: "cargo",
        name: name.to_owned(),
        version: version.to_owned(),
        licence: Some(licence[..end].to_owned()),
        found_in: notices::PATH.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::{of_notices, of_python};

    #[test]
    fn packages_of_pip_are_named_as_in_their_registry() {
        let text = "Metadata-Version: 2.1\nName: Foo_Bar.baz\nVersion: 1.2\nLicense: MIT\n\nVersion: 9\n";
        let found = of_python("/usr/local/lib/x.dist-info/METADATA", text).unwrap();
        assert_eq!((found.name.as_str(), found.version.as_str()), ("foo-bar-baz", "1.2"));
        assert_eq!(found.licence.as_deref(), Some("MIT"));
        assert!(of_python("x", "Name: a\n").is_none());
    }

    #[test]
    fn crates_of_the_agent_are_found_in_its_notices() {
        let text = "The program contains:\nthe numbers\n\nblake3 1.8.2: CC0-1.0 OR Apache-2.0 [1] [2]\n\
                    bitflags 2.9.0: MIT, by A <a@b>\n\n---- [1] ----\n\nmore 1: text\n";
        let found = of_notices(text);
        let found: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.licence.as_deref())).collect();
        assert_eq!(found, [("blake3", Some("CC0-1.0 OR Apache-2.0")), ("bitflags", Some("MIT"))]);
    }
}
