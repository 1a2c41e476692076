//! Makes the tree the same on every machine, at any time and in any place. Each rule is there because a difference was
//! seen.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::removal::{remove_file, remove_tree};
use super::within::{followed, inside, lines};
use super::{access, caches, identities};
use crate::recipe::places::{EMPTIED, REMOVED};
use crate::recipe::{Distribution, FileEntry, Recipe};

/// Directories among the emptied ones whose links stay.
const LINKS_STAY: &[&str] = &["var/log", "var/cache"];

/// Removes what the bootstrap tool copied from the host. Called before the recipe's own files are placed.
///
/// # Errors
/// Fails with the path.
pub fn forget_host(tree: &Path) -> Result<()> {
    ["etc/hostname", "etc/resolv.conf"].iter().try_for_each(|path| remove_file(&inside(tree, Path::new(path))))
}

/// Makes the whole pass, after commands and playbook.
///
/// # Errors
/// Fails with the path; or with the files of the recipe that the pass would take away.
pub fn normalise(tree: &Path, recipe: &Recipe, timestamp: u64) -> Result<()> {
    let is_there = |file: &&FileEntry| inside(tree, &file.path).symlink_metadata().is_ok();
    // What a command has deleted was meant for it alone.
    let placed: Vec<&FileEntry> = recipe.files.iter().filter(is_there).collect();
    access::mend(tree)?;
    for (path, _) in REMOVED {
        remove_file(&inside(tree, Path::new(path)))?;
    }
    for (path, _) in EMPTIED {
        empty(&followed(tree, Path::new(path)), path.starts_with("var"), LINKS_STAY.contains(path))?;
    }
    let name = inside(tree, Path::new("etc/hostname"));
    if name.symlink_metadata().is_ok() {
        eprintln!(
            "  /etc/hostname is left out, since every robot would have that name: `hostname` of the recipe is the name of \
             those that get none from machine.hostname"
        );
        remove_file(&name)?;
    }
    // The file is empty, not missing and not "uninitialized": systemd then writes a new ID into the overlay at the
    // first boot and keeps it, without the rest of a first boot, which would undo the recipe's choice of services.
    let id = inside(tree, Path::new("etc/machine-id"));
    if id.is_symlink() {
        remove_file(&id)?;
    }
    fs::write(id, "").context("empty etc/machine-id")?;
    caches::remove(tree)?;
    identities::remove(tree)?;
    let shadow = followed(tree, Path::new("etc/shadow"));
    if let Ok(text) = fs::read(&shadow) {
        fs::write(&shadow, with_change_date(&text, timestamp / 86_400)).context("write etc/shadow")?;
    }
    exclude(tree, &recipe.distribution)?;
    bytecode(tree)?;
    let gone: Vec<String> =
        placed.iter().filter(|file| !is_there(file)).map(|file| file.path.display().to_string()).collect();
    ensure!(
        gone.is_empty(),
        "no image would have these files of the recipe: {}; a link on the way leads to where an image has nothing, or \
         distribution.exclude names them",
        gone.join(", ")
    );
    Ok(())
}

/// Deletes the files below `path`, and the directories too except in /var: packages rely on theirs. Links may stay,
/// where a person says by them that logs or caches lie elsewhere.
fn empty(path: &Path, keeps_directories: bool, keeps_links: bool) -> Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && keeps_directories {
            empty(&path, keeps_directories, keeps_links)?;
        } else if kind.is_dir() {
            remove_tree(&path)?;
        } else if !(kind.is_symlink() && keeps_links) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Replaces the date of the last password change, which is the day of the build. It must not be 0, which asks for a new
/// password at every use of an account, and which tools write that take the time of the bootstrap for today; beside a
/// password it is the word of the recipe (`chage -d 0`).
fn with_change_date(shadow: &[u8], day: u64) -> Vec<u8> {
    let day = day.max(1).to_string();
    let mut out = Vec::with_capacity(shadow.len());
    for line in lines(shadow) {
        let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let has_password =
            fields.get(1).and_then(|password| password.first()).is_some_and(|first| !b"!*".contains(first));
        let is_word = |changed: &[u8]| changed.is_empty() || has_password && changed == b"0";
        if let Some(changed) = fields.get_mut(2).filter(|changed| !is_word(changed)) {
            *changed = day.as_bytes();
        }
        out.extend(fields.join(&b':'));
        out.push(b'\n');
    }
    out
}

/// Deletes excluded paths. dpkg left most of them out; those that commands made, or debootstrap unpacked, go now.
fn exclude(tree: &Path, distribution: &Distribution) -> Result<()> {
    if distribution.exclude.is_empty() {
        return Ok(());
    }
    let matches =
        |patterns: &[String], path: &str| patterns.iter().any(|pattern| glob(pattern.as_bytes(), path.as_bytes()));
    for entry in WalkDir::new(tree).contents_first(true) {
        let entry = entry.context("look for excluded paths")?;
        let path = entry.path();
        let Some(name) = path.strip_prefix(tree).ok().and_then(Path::to_str) else { continue };
        let name = format!("/{name}");
        if !matches(&distribution.exclude, &name) || matches(&distribution.keep, &name) {
            continue;
        }
        if entry.file_type().is_dir() {
            // This succeeds only when nothing that is kept lies in it.
            let _ = fs::remove_dir(path);
        } else {
            remove_file(path)?;
        }
    }
    Ok(())
}

/// Matches a pattern as dpkg does: `*` and `?` match slashes too.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => glob(&pattern[1..], &text[1..]),
        (Some(one), Some(other)) if one == other => glob(&pattern[1..], &text[1..]),
        _ => false,
    }
}

/// Turns Python bytecode into unchecked bytecode (PEP 552), which has no time and is always used. Other bytecode holds
/// the time of its source, and OSTree forgets times: every start of a program would compile again, without keeping the
/// result because /usr is read-only.
fn bytecode(tree: &Path) -> Result<()> {
    for top in ["usr/lib", "usr/local/lib", "usr/share", "opt"] {
        let files = WalkDir::new(followed(tree, Path::new(top))).into_iter().filter_map(Result::ok);
        for entry in files.filter(|entry| entry.file_type().is_file()) {
            if entry.path().extension().is_some_and(|extension| extension == "pyc") {
                let path = entry.path();
                let mut content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
                if unchecked(&mut content) {
                    let mode = entry.metadata()?.permissions().mode();
                    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
                }
            }
        }
    }
    Ok(())
}

/// Changes the header of a .pyc. It has magic (4 bytes), flags (4 bytes), then time and size of the source, or the hash
/// of the source if bit 0 of flags is set; bit 1 asks for the hash to be checked.
fn unchecked(content: &mut [u8]) -> bool {
    let Some(header) = content.get_mut(4..16) else { return false };
    // Python 2 has no flags: its header is 8 bytes, and the time lies where the flags would be.
    if header[..4] != [0; 4] {
        return false;
    }
    header.copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    true
}

#[cfg(test)]
mod tests {
    use super::{empty, exclude, forget_host, glob, normalise, unchecked, with_change_date};
    use crate::recipe::Recipe;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn patterns_match_as_in_dpkg() {
        assert!(glob(b"/usr/share/doc/*", b"/usr/share/doc/a/b"));
        assert!(glob(b"/usr/*/x?", b"/usr/a/b/xy"));
        assert!(!glob(b"/usr/share/doc/*", b"/usr/share/docs"));
    }

    #[test]
    fn excluded_paths_go_and_kept_ones_stay() {
        let tree = tempfile::tempdir().unwrap();
        let doc = tree.path().join("usr/share/doc");
        fs::create_dir_all(doc.join("a/examples")).unwrap();
        fs::create_dir_all(doc.join("b")).unwrap();
        for file in ["a/copyright", "a/examples/x", "b/changelog"] {
            fs::write(doc.join(file), "").unwrap();
        }
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\nexclude=['/usr/share/doc/*']\n\
                    keep=['/usr/share/doc/*/copyright']\n[ostree]\nbranch='b'\n";
        exclude(tree.path(), &Recipe::parse(text).unwrap().distribution).unwrap();
        assert!(doc.join("a/copyright").exists() && !doc.join("a/examples").exists() && !doc.join("b").exists());
    }

    #[test]
    fn the_change_date_is_that_of_the_image() {
        let text = b"root:*:19000:0:99999:7:::\nlocked:!::::::\n\xfc:x:2:\n";
        assert_eq!(with_change_date(text, 5), b"root:*:5:0:99999:7:::\nlocked:!::::::\n\xfc:x:5:\n");
        assert!(with_change_date(text, 0).starts_with(b"root:*:1:"));
        let text = b"pilot:$y$j9T$x:0:0:99999:7:::\nsystemd-network:!*:0:::::::\nopen::0:\n";
        assert_eq!(
            with_change_date(text, 5),
            b"pilot:$y$j9T$x:0:0:99999:7:::\nsystemd-network:!*:5:::::::\nopen::5:\n"
        );
    }

    #[test]
    fn bytecode_loses_its_time() {
        let mut timed = *b"\xa7\r\r\n\0\0\0\0TIMEsizeCODE";
        assert!(unchecked(&mut timed));
        assert_eq!(&timed[4..], b"\x01\0\0\0\0\0\0\0\0\0\0\0CODE");
        assert!(!unchecked(&mut timed), "done already");
        assert!(!unchecked(&mut [0; 8]));
    }

    /// Whatever put it there, all robots had one name, and the template of the configuration was without effect.
    #[test]
    fn no_image_names_its_robots_or_the_name_servers_of_the_host_that_built_it() {
        let tree = tempfile::tempdir().unwrap();
        let etc = tree.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let names = ["hostname", ".resolv.conf.systemd-resolved.bak"];
        names.iter().for_each(|name| fs::write(etc.join(name), "x").unwrap());
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n";
        normalise(tree.path(), &Recipe::parse(text).unwrap(), 1).unwrap();
        assert!(names.iter().all(|name| !etc.join(name).exists()));
    }

    /// `/var/tmp -> /tmp`, as container images and read-only systems have it, is not the `/tmp` of the host.
    #[test]
    fn nothing_of_the_host_is_touched_through_links_of_the_tree() {
        let (tree, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (at, outside) = (|path: &str| tree.path().join(path), |path: &str| host.path().join(path));
        for directory in ["etc", "var/lib/dpkg", "usr/local", "here"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::create_dir(outside("d")).unwrap();
        let names = ["d/file", "ssh_host_rsa_key", "machine-id", "shadow", "resolv.conf", "x.pyc", "lock"];
        names.iter().for_each(|name| fs::write(outside(name), [0; 32]).unwrap());
        fs::write(at("here/log"), "").unwrap();
        for link in ["tmp", "run", "var/tmp", "var/cache", "var/backups", "etc/ssh", "opt", "usr/local/lib"] {
            symlink(host.path(), at(link)).unwrap();
        }
        symlink(outside("machine-id"), at("etc/machine-id")).unwrap();
        symlink(outside("shadow"), at("etc/shadow")).unwrap();
        symlink("/here", at("var/log")).unwrap();
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n";
        forget_host(tree.path()).unwrap();
        normalise(tree.path(), &Recipe::parse(text).unwrap(), 1).unwrap();
        assert!(names.iter().all(|name| fs::read(outside(name)).unwrap() == [0; 32]));
        assert!(at("etc/machine-id").symlink_metadata().unwrap().is_file());
        assert!(!at("here/log").exists(), "a link within the tree is followed there");
    }

    #[test]
    fn var_keeps_its_directories_and_the_links_by_which_logs_lie_elsewhere() {
        let tree = tempfile::tempdir().unwrap();
        for directory in ["var/log/apt", "run/lock"] {
            fs::create_dir_all(tree.path().join(directory)).unwrap();
            fs::write(tree.path().join(directory).join("x"), "").unwrap();
        }
        for link in ["var/log/journal", "run/link"] {
            symlink("/var/lib/journal", tree.path().join(link)).unwrap();
        }
        empty(&tree.path().join("var/log"), true, true).unwrap();
        empty(&tree.path().join("run"), false, false).unwrap();
        assert!(tree.path().join("var/log/apt").is_dir() && !tree.path().join("var/log/apt/x").exists());
        assert!(tree.path().join("var/log/journal").is_symlink() && !tree.path().join("run/link").is_symlink());
        assert!(tree.path().join("run").is_dir() && !tree.path().join("run/lock").exists());
    }

    /// Of two ways for a file of the recipe not to be in the image only one is meant.
    #[test]
    fn a_file_of_the_recipe_does_not_vanish_without_a_word() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["etc", "run/app", "usr/share/doc/app"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        symlink("/run/app", at("etc/app")).unwrap();
        for path in ["run/app/conf", "usr/share/doc/app/help"] {
            fs::write(at(path), "").unwrap();
        }
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\nexclude=['/usr/share/doc/*']\n[ostree]\nbranch='b'\n\
                    [[files]]\npath='/etc/app/conf'\ntext=''\n[[files]]\npath='/usr/share/doc/app/help'\ntext=''\n\
                    [[files]]\npath='/root/app.deb'\ntext=''\n";
        let error = normalise(tree.path(), &Recipe::parse(text).unwrap(), 1).unwrap_err().to_string();
        assert!(error.contains("/etc/app/conf, /usr/share/doc/app/help;"), "{error}");
    }
}
