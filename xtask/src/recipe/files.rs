//! Section `[[files]]` of a recipe: single files that are put into the image.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::places::{one_name, reason_against};

/// Longest name and longest path that Linux has, bytes (`NAME_MAX`, and `PATH_MAX` with its zero byte).
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;

/// Section `[[files]]` of a recipe: one file put into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Absolute path in the image.
    pub path: PathBuf,
    /// Path of a file on the host, relative to the recipe.
    pub source: Option<PathBuf>,
    /// Content given in the recipe itself.
    pub text: Option<String>,
    /// Permissions as an octal number. Default `0644`.
    #[serde(default = "default_mode")]
    pub mode: String,
    /// `user:group`, names of the image or numbers, also of users that a command makes. Default: below a user's home
    /// that user, elsewhere `root:root`.
    pub owner: Option<String>,
}

fn default_mode() -> String {
    "0644".into()
}

impl FileEntry {
    /// A file with this content, which everybody may read.
    #[must_use]
    pub fn of_text(path: PathBuf, text: String) -> Self {
        Self { path, source: None, text: Some(text), mode: default_mode(), owner: None }
    }

    /// Returns the permission bits.
    ///
    /// # Errors
    /// Fails when the mode is not an octal number up to 7777.
    pub fn mode_bits(&self) -> Result<u32> {
        let bits = u32::from_str_radix(&self.mode, 8).ok().filter(|bits| *bits <= 0o7777);
        bits.with_context(|| format!("mode {:?} of {} is not octal, such as 0644", self.mode, self.path.display()))
    }

    fn check(&self) -> Result<()> {
        let path = self.path.display();
        let plain = self.path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        ensure!(self.path.is_absolute() && plain, "files: path {path} is not an absolute path without '..'");
        ensure!(self.path != Path::new("/"), "files: path / is a directory");
        let names = self.path.components().map(|name| name.as_os_str().len());
        ensure!(
            names.max().unwrap_or_default() <= LONGEST_NAME && self.path.as_os_str().len() <= LONGEST_PATH,
            "files: path {path} is longer than Linux has them: {LONGEST_NAME} bytes a name, {LONGEST_PATH} in all"
        );
        if let Some(reason) = reason_against(&self.path) {
            bail!("files: path {path}: {reason}");
        }
        match (&self.source, &self.text) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => bail!("files: {path} has neither source nor text"),
            (Some(_), Some(_)) => bail!("files: {path} has both source and text; keep one"),
        }
        if let Some(owner) = &self.owner {
            let is_name = |name: &str| !name.is_empty() && !name.contains(|c: char| c == ':' || c.is_whitespace());
            let is_pair = owner.split_once(':').is_some_and(|(user, group)| is_name(user) && is_name(group));
            ensure!(is_pair, "files: owner {owner:?} of {path} is not user:group, such as \"root:root\"");
        }
        self.mode_bits().map(|_| ())
    }
}

/// Checks all files of a recipe, each for itself and beside the others.
///
/// # Errors
/// Names the path and what is wrong with it.
pub fn check(files: &[FileEntry]) -> Result<()> {
    files.iter().try_for_each(FileEntry::check)?;
    let mut known: HashMap<PathBuf, &Path> = HashMap::new();
    for file in files {
        let path = file.path.display();
        if let Some(other) = known.insert(one_name(&file.path), &file.path) {
            ensure!(other != file.path, "files: {path} is there twice; keep one");
            bail!("files: {path} and {} are the same file of an image; keep one", other.display());
        }
    }
    for file in files {
        let name = one_name(&file.path);
        if let Some(other) = name.ancestors().skip(1).find_map(|above| known.get(above)) {
            bail!("files: {} would lie in {}, which is a file", file.path.display(), other.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FileEntry, check};

    fn files(paths: &[&str]) -> Vec<FileEntry> {
        let entry = |path: &&str| FileEntry {
            path: path.into(),
            source: None,
            text: Some(String::new()),
            mode: "0644".into(),
            owner: None,
        };
        paths.iter().map(entry).collect()
    }

    #[test]
    fn an_owner_is_a_user_and_a_group() {
        for owner in ["root", ":root", "root:", "1000:1000:1", "my user:users"] {
            let mut files = files(&["/etc/a"]);
            files[0].owner = Some(owner.to_owned());
            assert!(check(&files).unwrap_err().to_string().contains("is not user:group"), "{owner}");
        }
    }

    #[test]
    fn files_that_cannot_be_beside_each_other_are_refused() {
        let long = format!("/etc/{}", "n".repeat(300));
        let deep = "/d".repeat(2048);
        for (paths, said) in [
            (&["/etc/a", "/etc/a/b"][..], "/etc/a/b would lie in /etc/a"),
            (&["/usr/bin/x/y/z", "/bin/x"], "would lie in /bin/x"),
            (&["/bin/x", "/usr/bin/x"], "the same file"),
            (&["/etc/a", "/etc/a"], "twice"),
            (&[&long], "255 bytes a name"),
            (&[&deep], "4095 in all"),
            (&["/run/app/x"], "no image has anything in /run"),
        ] {
            let error = check(&files(paths)).unwrap_err().to_string();
            assert!(error.contains(said), "{paths:?}: {error}");
        }
        check(&files(&["/etc/a", "/etc/ab", "/etc/b/a", "/usr/bin/x", "/usr/sbin/x"])).unwrap();
    }
}
