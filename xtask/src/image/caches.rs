//! What tools that run in the commands of a recipe keep in homes for their next run, which an image has none of.
//!
//! Homes are directories of /var, so all of it would be copied to the data partition of each robot and stay there for
//! good. Only caches of tools that build and install are listed: applications of robots keep models and maps in
//! `~/.cache`, and those are meant.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::removal::{remove_file, remove_tree};
use super::within::followed;

/// Directories of tools, below a home.
const CACHES: &[&str] = &[
    ".cache/pip",
    ".cache/uv",
    ".cache/pypoetry",
    ".cache/go-build",
    ".cache/yarn",
    ".cache/node-gyp",
    ".cache/bazel",
    ".cache/bazelisk",
    ".cache/ccache",
    ".cache/pre-commit",
    ".npm/_cacache",
    ".npm/_logs",
    ".cargo/registry",
    ".cargo/git",
    ".ansible/tmp",
    ".ccache",
];
/// Files in which programs keep what was typed, and when which server was asked.
const RECORDS: &[&str] = &[
    ".bash_history",
    ".ash_history",
    ".zsh_history",
    ".python_history",
    ".node_repl_history",
    ".psql_history",
    ".mysql_history",
    ".sqlite_history",
    ".lesshst",
    ".viminfo",
    ".wget-hsts",
];

/// Removes them from the homes of root and of people, and names the directories.
///
/// # Errors
/// Fails with the path.
pub fn remove(tree: &Path) -> Result<()> {
    let mut removed = Vec::new();
    for home in homes(tree) {
        // A file of the machine's own kind, such as a link to /dev/null that keeps no history, is meant.
        let is_file = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        let records = RECORDS.iter().map(|name| home.join(name)).filter(is_file);
        records.into_iter().try_for_each(|path| remove_file(&path))?;
        for cache in CACHES.iter().map(|name| home.join(name)) {
            let parent = cache.parent().unwrap_or(&home);
            // Through a link it would be something else that is emptied.
            if [parent, &cache].iter().all(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir())) {
                remove_tree(&cache).with_context(|| format!("remove {}", cache.display()))?;
                // Made for the cache alone, it would be left empty; what is not empty stays.
                let _ = fs::remove_dir(parent);
                let shown = cache.strip_prefix(tree).unwrap_or(&cache);
                removed.push(Path::new("/").join(shown).display().to_string());
            }
        }
    }
    if !removed.is_empty() {
        eprintln!("  left out, as caches of tools that ran here: {}", removed.join(", "));
    }
    Ok(())
}

fn homes(tree: &Path) -> Vec<PathBuf> {
    let people = fs::read_dir(followed(tree, Path::new("home"))).into_iter().flatten().flatten();
    let people = people.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
    let mut homes: Vec<PathBuf> = people.chain([followed(tree, Path::new("root"))]).collect();
    homes.sort();
    homes
}

#[cfg(test)]
mod tests {
    use super::remove;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn caches_of_tools_go_and_what_an_application_keeps_stays() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for path in [
            "root/.cache/pip/http/a",
            "root/.npm/_cacache/b",
            "root/.bash_history",
            "root/.bashrc",
            "home/pilot/.cache/pip/c",
            "home/pilot/.cache/huggingface/model",
            "home/pilot/.cargo/registry/d",
            "home/pilot/.cargo/bin/tool",
            "elsewhere/pip/kept",
        ] {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), "x").unwrap();
        }
        symlink("/dev/null", at("home/pilot/.bash_history")).unwrap();
        fs::create_dir(at("home/guest")).unwrap();
        symlink("../../elsewhere", at("home/guest/.cache")).unwrap();
        remove(tree.path()).unwrap();
        for gone in
            ["root/.cache", "root/.npm", "root/.bash_history", "home/pilot/.cache/pip", "home/pilot/.cargo/registry"]
        {
            assert!(!at(gone).exists(), "{gone}");
        }
        for kept in [
            "root/.bashrc",
            "home/pilot/.cache/huggingface/model",
            "home/pilot/.cargo/bin/tool",
            "elsewhere/pip/kept",
            "home/pilot/.bash_history",
        ] {
            assert!(at(kept).symlink_metadata().is_ok(), "{kept}");
        }
        remove(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
