//! Users and groups that files of sysusers.d declare and that the image does not have.
//!
//! systemd-sysusers would make them at the first start of each robot: with numbers that nothing keeps, and in copies of
//! `passwd` and `group` in the machine's own `/etc`, which then hide what every later release brings. Scripts of
//! Debian's packages make theirs while they are installed; a file of the recipe, or of another distribution, has none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::container::Container;
use super::within::{followed, text};
use crate::step;

/// Program that makes them, of the image.
const PROGRAM: &str = "/usr/bin/systemd-sysusers";
/// Directories of the declarations. A name in an earlier one stands in the place of the same name in a later one.
const DIRECTORIES: [&str; 3] = ["etc/sysusers.d", "usr/local/lib/sysusers.d", "usr/lib/sysusers.d"];

/// Has the image's own systemd make the users and groups that are declared and missing.
///
/// # Errors
/// When it cannot, with its words, or is missing in an image that declares users.
pub fn make(tree: &Path, timestamp: u64) -> Result<()> {
    let names = missing_in(tree).join(", ");
    if names.is_empty() {
        return Ok(());
    }
    if !followed(tree, Path::new(PROGRAM)).is_file() {
        bail!("sysusers.d of the image declares {names}, and the image has no {PROGRAM} to make them; add systemd");
    }
    step::step(&format!("users of sysusers.d: {names}"), || {
        step::run("sysusers", Container::probe(tree).command(tree, timestamp).arg(PROGRAM))
    })?;
    let names = missing_in(tree).join(", ");
    if !names.is_empty() {
        // It ends in order all the same.
        eprintln!("  systemd-sysusers did not make {names}: what needs them will fail on the robots");
    }
    Ok(())
}

fn missing_in(tree: &Path) -> Vec<String> {
    let database = |path: &str| text(tree, path).unwrap_or_default();
    missing(&declarations(tree), &database("etc/passwd"), &database("etc/group"))
}

/// Texts of the files that count.
fn declarations(tree: &Path) -> String {
    let mut files = BTreeMap::new();
    for directory in DIRECTORIES {
        for entry in fs::read_dir(followed(tree, Path::new(directory))).into_iter().flatten().flatten() {
            let path = Path::new(directory).join(entry.file_name());
            if path.extension().is_some_and(|extension| extension == "conf") {
                files.entry(entry.file_name()).or_insert_with(|| followed(tree, &path));
            }
        }
    }
    // A link to /dev/null leads to nothing in a tree that is no running system.
    let texts = files.values().filter(|path| path.is_file()).filter_map(|path| fs::read_to_string(path).ok());
    texts.map(|text| text + "\n").collect()
}

/// Names that are declared (sysusers.d(5)), as `user NAME` or `group NAME`, and that the databases lack.
fn missing(declarations: &str, passwd: &str, group: &str) -> Vec<String> {
    let has = |database: &str, name: &str| database.lines().any(|line| line.split(':').next() == Some(name));
    let mut found: Vec<String> = Vec::new();
    for line in declarations.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(kind), Some(name)) = (words.next(), words.next()) else { continue };
        let name = name.trim_matches('"');
        let what = match kind.trim_end_matches('!') {
            "u" if !has(passwd, name) => "user",
            "g" if !has(group, name) => "group",
            _ => continue,
        };
        let text = format!("{what} {name}");
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{declarations, make, missing};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_declared_and_missing_is_found() {
        let text = "# u no 1\nu app - \"The application\" /var/lib/app\nu! locked 300\ng input 104\ng  disk -\nu root 0\n\
                    m app disk\nr - 500-900\nu app -\n\nu\n";
        let found = missing(text, "root:x:0:0::/root:\n", "root:x:0:\ndisk:x:6:\n");
        assert_eq!(found, ["user app", "user locked", "group input"]);
        assert!(missing("u app -", "app:x:999:999::/:\n", "").is_empty());
    }

    #[test]
    fn declarations_that_are_switched_off_or_replaced_do_not_count() {
        let tree = tempfile::tempdir().unwrap();
        for directory in ["etc/sysusers.d", "usr/lib/sysusers.d"] {
            fs::create_dir_all(tree.path().join(directory)).unwrap();
        }
        let put = |path: &str, text: &str| fs::write(tree.path().join(path), text).unwrap();
        put("usr/lib/sysusers.d/a.conf", "u one -");
        put("usr/lib/sysusers.d/b.conf", "u two -");
        put("usr/lib/sysusers.d/c.conf", "u three -");
        put("etc/sysusers.d/b.conf", "u other -");
        put("etc/sysusers.d/notes", "u none -");
        symlink("/dev/null", tree.path().join("etc/sysusers.d/c.conf")).unwrap();
        assert_eq!(declarations(tree.path()), "u one -\nu other -\n");
        let error = make(tree.path(), 1).unwrap_err().to_string();
        assert!(error.contains("user one, user other") && error.contains("systemd-sysusers"), "{error}");
        put("etc/passwd", "one:x:1:1::/:\nother:x:2:2::/:\n");
        make(tree.path(), 1).unwrap();
    }
}
