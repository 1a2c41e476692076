//! Licences of a package, from a copyright file that a program can read (DEP-5). Pure.

use std::collections::BTreeSet;

use deb822_fast::Deb822;

/// Returns the short names of the licences, sorted. There are none for a file that is written for people only.
#[must_use]
pub fn licences(copyright: &str) -> Vec<String> {
    let is_machine_readable = copyright
        .lines()
        .find(|line| !line.trim().is_empty())
        .is_some_and(|line| line.to_ascii_lowercase().starts_with("format:"));
    if !is_machine_readable {
        return Vec::new();
    }
    let Ok(paragraphs) = copyright.parse::<Deb822>() else { return Vec::new() };
    // Only paragraphs about files count: others hold the text of a licence that is named there.
    let of_files = paragraphs.iter().filter(|paragraph| paragraph.get("Files").is_some());
    let names = of_files.filter_map(|paragraph| paragraph.get("License")?.lines().next().map(str::trim));
    let names: BTreeSet<&str> = names.filter(|name| !name.is_empty()).collect();
    names.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::licences;

    #[test]
    fn licences_of_files_are_found() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nSource: x\n\nFiles: *\n\
                    Copyright: 2020 A\nLicense: GPL-2+ or Expat\n Text.\n\nFiles: b c\nCopyright: 2021 B\n\
                    License: BSD-3-clause\n\nLicense: BSD-3-clause\n Text.\n";
        assert_eq!(licences(text), ["BSD-3-clause", "GPL-2+ or Expat"]);
        assert!(licences("This package was debianized by A.\n\nLicense: see below\n").is_empty());
        assert!(licences("").is_empty());
    }
}
