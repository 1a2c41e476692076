//! Conversion of a Debian tree to an OSTree tree: everything that the image owns goes below /usr, everything that the
//! machine owns elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::removal::remove_tree;
use super::shipped::{self, MadeKind, Shipping};
use super::within::followed;
use crate::recipe::Recipe;
use crate::recipe::places::LINKS;

/// Place of the package database, which is part of the image, not of the machine.
const DPKG: &str = "usr/share/reflash/dpkg";

/// Converts the tree in place. The kernel and the initramfs must be in `usr/lib/modules/VERSION` already.
///
/// # Errors
/// Fails with the path.
pub fn convert(tree: &Path, recipe: &Recipe) -> Result<()> {
    // The kernel lies in /usr/lib/modules; OSTree fills /boot itself.
    for name in ["boot", "media"] {
        remove_tree(&tree.join(name))?;
    }
    for name in ["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old", ".dockerenv"] {
        let _ = fs::remove_file(tree.join(name));
    }
    runtime_links(tree)?;
    join(tree, "etc", "usr/etc")?;
    for (name, target) in LINKS {
        let path = tree.join(name);
        let target_path = tree.join(target);
        take_the_place_of_a_link(tree, name, target)?;
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            if target.starts_with("run/") {
                remove_tree(&path)?;
            } else {
                join(tree, name, target)?;
            }
        } else if (target.starts_with("var/") || target.starts_with("usr/")) && target_path.symlink_metadata().is_err()
        {
            create(&target_path, 0o755)?;
        }
        symlink(target, &path).with_context(|| format!("link {}", path.display()))?;
    }
    for (name, mode) in [
        ("boot", 0o755),
        ("sysroot", 0o755),
        ("dev", 0o755),
        ("proc", 0o755),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
    ] {
        create(&tree.join(name), mode)?;
    }
    tmp_in_memory(tree)?;
    follow_links(tree)?;
    let dpkg = tree.join("var/lib/dpkg");
    if dpkg.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        rename(&dpkg, &tree.join(DPKG))?;
        symlink(format!("../../{DPKG}"), &dpkg).context("link var/lib/dpkg")?;
    }
    ship_var(tree, recipe)
}

/// Removes a link that stands where one of [`LINKS`] is to be, after what it leads to was moved to where that one
/// leads.
fn take_the_place_of_a_link(tree: &Path, name: &str, target: &str) -> Result<()> {
    let path = tree.join(name);
    let Ok(found) = fs::read_link(&path) else { return Ok(()) };
    let (from, to) = (followed(tree, Path::new(name)), tree.join(target));
    // A directory in which others lie, such as /usr or /var itself, is not this directory alone.
    let below = from.strip_prefix(tree).unwrap_or(&from);
    let is_own = from.is_dir() && !tree.starts_with(&from) && below.components().count() > 1 && !to.starts_with(&from);
    if is_own && from != to && !target.starts_with("run/") {
        ensure!(
            to.symlink_metadata().is_err(),
            "/{name} of the tree is a link to {}, and the tree has a directory /{target} too; move the one into the other \
             in `commands`",
            found.display()
        );
        rename(&from, &to)?;
        // Programs that name it by that path still find it.
        symlink(Path::new("/").join(target), &from).with_context(|| format!("link {}", from.display()))?;
    } else {
        ensure!(
            from == to || from.symlink_metadata().is_err() || target.starts_with("run/"),
            "/{name} of the tree is a link to {}, and an image has it in /{target}; make it a directory in `commands`",
            found.display()
        );
    }
    if from != to && to.symlink_metadata().is_err() {
        eprintln!("  /{name} is a link to {}, where the tree has nothing: it is in /{target} now", found.display());
    }
    fs::remove_file(&path).with_context(|| format!("replace the link {}", path.display()))
}

/// Makes links of `/var/run` and `/var/lock`, as every system has them: programs put there what must be gone at the
/// next start, and look for it in `/run`.
fn runtime_links(tree: &Path) -> Result<()> {
    for (name, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        let path = tree.join(name);
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            eprintln!(
                "  /{name} was a directory, which no system has: it is the link to {target} again, without content"
            );
            remove_tree(&path)?;
            symlink(target, &path).with_context(|| format!("link {}", path.display()))?;
        }
    }
    Ok(())
}

/// Moves a directory of the tree to where an image has it. A tree may have both, as one that was made of an image.
fn join(tree: &Path, from: &str, to: &str) -> Result<()> {
    let (from_path, to_path) = (tree.join(from), tree.join(to));
    let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    if to_path.symlink_metadata().is_err() {
        return rename(&from_path, &to_path);
    }
    ensure!(
        is_directory(&from_path) && is_directory(&to_path),
        "the tree has both /{from} and /{to}, which are one in an image; delete one in `commands`"
    );
    for entry in fs::read_dir(&from_path).with_context(|| format!("read {}", from_path.display()))? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        join(tree, &format!("{from}/{name}"), &format!("{to}/{name}"))?;
    }
    fs::remove_dir(&from_path).with_context(|| format!("delete {}", from_path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

fn create(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| format!("chmod {}", path.display()))
}

/// Makes /tmp a file system in memory, because the root is read-only. Debian 12 ships the unit only as an example.
fn tmp_in_memory(tree: &Path) -> Result<()> {
    let units = tree.join("usr/lib/systemd/system");
    let unit = units.join("tmp.mount");
    if !unit.exists() {
        let example = tree.join("usr/share/systemd/tmp.mount");
        if !example.exists() {
            bail!("the image has no systemd (usr/share/systemd/tmp.mount); add systemd-sysv to distribution.packages");
        }
        fs::copy(&example, &unit).with_context(|| format!("copy {}", example.display()))?;
    }
    let link = units.join("local-fs.target.wants/tmp.mount");
    if link.symlink_metadata().is_err() {
        create(&units.join("local-fs.target.wants"), 0o755)?;
        symlink("../tmp.mount", &link).context("enable tmp.mount")?;
    }
    Ok(())
}

/// Changes paths in the packages' tmpfiles.d where [`LINKS`] apply: systemd-tmpfiles would make /home and the like, and
/// complain at every boot about the link that is there.
fn follow_links(tree: &Path) -> Result<()> {
    let files = fs::read_dir(tree.join("usr/lib/tmpfiles.d")).into_iter().flatten().flatten();
    // A link may lead out of the tree.
    for path in files.map(|entry| entry.path()).filter(|path| path.is_file() && !path.is_symlink()) {
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        // A comment may be in Latin 1.
        let text = String::from_utf8_lossy(&content);
        let moved: String = text.lines().map(|line| with_link_followed(line) + "\n").collect();
        if moved != text {
            fs::write(&path, moved).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Returns the line with the path that one of [`LINKS`] leads to.
fn with_link_followed(line: &str) -> String {
    let path = line.split_ascii_whitespace().nth(1).filter(|_| !line.starts_with('#')).unwrap_or_default();
    if path.is_empty() { line.to_owned() } else { line.replacen(path, &through_links(path), 1) }
}

/// Returns the path that one of [`LINKS`] leads to.
fn through_links(path: &str) -> String {
    for (name, target) in LINKS {
        if let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(name))
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return format!("/{target}{rest}");
        }
    }
    path.to_owned()
}

/// Puts what the packages have in /var into the list by which each machine gets it: on the machine /var is a directory
/// of the data partition, which the first boot finds empty.
fn ship_var(tree: &Path, recipe: &Recipe) -> Result<()> {
    let version = format!("{} {}", recipe.name, recipe.version);
    let made_by_packages = known_to_tmpfiles(tree);
    let shipping = Shipping {
        tree,
        rules: &recipe.rules,
        version: &version,
        made_by_packages: &made_by_packages,
        follow: through_links,
    };
    shipping.ship().map(|totals| shipped::report(&totals))
}

/// Returns the paths that a package's own tmpfiles.d makes. A name in /etc stands in the place of the same name in
/// /usr, and a link to /dev/null there switches it off.
fn known_to_tmpfiles(tree: &Path) -> BTreeMap<PathBuf, MadeKind> {
    let mut files = BTreeMap::new();
    for directory in ["usr/etc/tmpfiles.d", "usr/lib/tmpfiles.d"] {
        for entry in fs::read_dir(tree.join(directory)).into_iter().flatten().flatten() {
            let path = Path::new(directory).join(entry.file_name());
            if path.extension().is_some_and(|extension| extension == "conf") {
                files.entry(entry.file_name()).or_insert_with(|| followed(tree, &path));
            }
        }
    }
    let texts = files.values().filter(|path| path.is_file()).filter_map(|path| fs::read(path).ok());
    let texts = texts.map(|content| String::from_utf8_lossy(&content).into_owned());
    texts.flat_map(|text| text.lines().filter_map(made_by).collect::<Vec<_>>()).collect()
}

/// Returns the path that a line of tmpfiles.d makes, and what it makes; `None` for lines that only change or delete.
fn made_by(line: &str) -> Option<(PathBuf, MadeKind)> {
    let mut words = line.split_ascii_whitespace();
    let (kind, path) = (words.next()?, words.next()?.trim_end_matches('/'));
    let kind = match kind.chars().next()? {
        'd' | 'D' | 'q' | 'Q' | 'v' => MadeKind::Directory,
        'f' | 'F' | 'C' => MadeKind::File,
        // Mode, user, group and age come before; without a target it is the one of the factory.
        'L' => MadeKind::Link(words.nth(4).map_or_else(|| format!("/usr/share/factory{path}"), str::to_owned).into()),
        _ => return None,
    };
    Some((path.into(), kind))
}

#[cfg(test)]
mod tests {
    use super::{LINKS, MadeKind, convert, known_to_tmpfiles, made_by, with_link_followed};
    use crate::recipe::Recipe;
    use reflash::release::shipped::{ShippedEntry, ShippedRule, read_list};
    use std::fs;
    use std::io::BufReader;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    #[test]
    fn lines_that_make_a_path_are_distinguished_from_those_that_change_it() {
        assert_eq!(made_by("d /var/log 0755 - - -"), Some(("/var/log".into(), MadeKind::Directory)));
        assert_eq!(made_by("L+ /var/x/ - - - - y"), Some(("/var/x".into(), MadeKind::Link("y".into()))));
        let factory = MadeKind::Link("/usr/share/factory/var/x".into());
        assert_eq!(made_by("L /var/x"), Some(("/var/x".into(), factory)));
        assert_eq!(made_by("z /var/log/journal 2755 - - -"), None);
        assert_eq!(made_by("# d /x"), None);
    }

    #[test]
    fn lines_for_a_link_are_moved_to_its_target() {
        assert_eq!(with_link_followed("Q /home 0755 - - -"), "Q /var/home 0755 - - -");
        assert_eq!(with_link_followed("d- /root/.ssh :0700"), "d- /var/roothome/.ssh :0700");
        for other in ["d /homes 0755", "# d /home", "", "d /run/x - - - - /home"] {
            assert_eq!(with_link_followed(other), other);
        }
    }

    #[test]
    fn a_comment_in_another_encoding_is_no_obstacle() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("usr/lib/tmpfiles.d")).unwrap();
        fs::write(at("usr/lib/tmpfiles.d/x.conf"), b"# M\xfcller\nd /home/x\n").unwrap();
        super::follow_links(tree.path()).unwrap();
        assert!(fs::read(at("usr/lib/tmpfiles.d/x.conf")).unwrap().ends_with(b"\nd /var/home/x\n"));
        assert_eq!(known_to_tmpfiles(tree.path()).keys().collect::<Vec<_>>(), [Path::new("/var/home/x")]);
    }

    #[test]
    fn a_line_that_is_switched_off_makes_nothing() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["usr/lib/tmpfiles.d", "usr/etc/tmpfiles.d"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for (path, text) in [
            ("usr/lib/tmpfiles.d/a.conf", "f /var/lib/a"),
            ("usr/lib/tmpfiles.d/b.conf", "f /var/lib/b"),
            ("usr/etc/tmpfiles.d/b.conf", "f /var/lib/c"),
            ("usr/lib/tmpfiles.d/d.conf.dpkg-old", "f /var/lib/d"),
            ("usr/lib/tmpfiles.d/e.conf", "f /var/lib/e"),
        ] {
            fs::write(at(path), text).unwrap();
        }
        symlink("/dev/null", at("usr/etc/tmpfiles.d/e.conf")).unwrap();
        let known = known_to_tmpfiles(tree.path());
        assert_eq!(known.keys().collect::<Vec<_>>(), [Path::new("/var/lib/a"), Path::new("/var/lib/c")]);
    }

    /// A container image that keeps its homes elsewhere, and one made from a system of OSTree.
    #[test]
    fn links_in_the_place_of_the_machines_directories_are_followed_or_refused() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["data/home/pilot", "var/roothome", "srv", "usr/opt/ros", "run/media"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for (target, link) in
            [("/data/home", "home"), ("var/roothome", "root"), ("/nowhere", "mnt"), ("/usr/opt", "opt")]
        {
            symlink(target, at(link)).unwrap();
        }
        for (name, target) in LINKS {
            super::take_the_place_of_a_link(tree.path(), name, target).unwrap();
        }
        assert!(at("var/home/pilot").is_dir() && at("var/roothome").is_dir() && at("usr/opt/ros").is_dir());
        assert_eq!(fs::read_link(at("data/home")).unwrap(), Path::new("/var/home"));
        assert!(["home", "root", "mnt", "opt"].iter().all(|name| at(name).symlink_metadata().is_err()));
        assert!(at("srv").is_dir(), "no link");
        for (target, both) in [("/usr", false), ("/data/home2", true)] {
            fs::create_dir_all(at("data/home2")).unwrap();
            symlink(target, at("home")).unwrap();
            let error = super::take_the_place_of_a_link(tree.path(), "home", "var/home").unwrap_err().to_string();
            assert!(error.contains(target) && error.contains(" too;") == both, "{error}");
            fs::remove_file(at("home")).unwrap();
        }
    }

    #[test]
    fn two_places_of_one_directory_are_joined_or_named() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for directory in ["home/pilot", "var/home/pilot", "var/home/guest"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("home/pilot/a"), "").unwrap();
        fs::write(at("var/home/pilot/b"), "").unwrap();
        super::join(tree.path(), "home", "var/home").unwrap();
        assert!(
            !at("home").exists()
                && ["pilot/a", "pilot/b", "guest"].iter().all(|name| at("var/home").join(name).exists())
        );
        fs::create_dir_all(at("home/pilot")).unwrap();
        fs::write(at("home/pilot/b"), "").unwrap();
        let error = super::join(tree.path(), "home", "var/home").unwrap_err().to_string();
        assert!(error.contains("both /home/pilot/b and /var/home/pilot/b"), "{error}");
    }

    /// <https://www.freedesktop.org/software/systemd/man/latest/file-hierarchy.html>
    #[test]
    fn directories_that_every_system_has_as_links_become_links() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("var/run/app")).unwrap();
        symlink("/run/lock", tree.path().join("var/lock")).unwrap();
        super::runtime_links(tree.path()).unwrap();
        assert_eq!(fs::read_link(tree.path().join("var/run")).unwrap(), Path::new("/run"));
        assert_eq!(fs::read_link(tree.path().join("var/lock")).unwrap(), Path::new("/run/lock"));
    }

    #[test]
    fn a_debian_tree_becomes_an_ostree_tree() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        for path in [
            "etc",
            "boot/grub",
            "home/robot",
            "root",
            "opt/ros",
            "media",
            "tmp",
            "usr/lib/tmpfiles.d",
            "usr/lib/systemd/system",
            "usr/share/systemd",
            "var/lib/dpkg/info",
            "var/lib/a b",
            "var/log/known",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("usr/share/systemd/tmp.mount"), "unit").unwrap();
        fs::write(at("usr/lib/tmpfiles.d/x.conf"), "d /var/log/known 0755\nf /var/log/wtmp 0664\n").unwrap();
        fs::write(at("var/log/wtmp"), "").unwrap();
        fs::write(at("usr/lib/tmpfiles.d/y.conf"), "d /var/spool 0755\nL /var/same - - - - a\nL /var/own - - - - a\n")
            .unwrap();
        for (target, link) in [("/data/spool", "var/spool"), ("a", "var/same"), ("b", "var/own")] {
            symlink(target, at(link)).unwrap();
        }
        fs::write(at("var/lib/a b/state"), "s").unwrap();
        fs::set_permissions(at("var/lib/a b/state"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(at("etc/hosts"), "h").unwrap();
        symlink("/run", at("var/run")).unwrap();
        let recipe = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n";
        convert(tree.path(), &Recipe::parse(recipe).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(at("usr/etc/hosts")).unwrap(), "h");
        assert!(!at("etc").exists() && at("usr/opt/ros").is_dir());
        assert_eq!(fs::read_link(at("home")).unwrap().to_str(), Some("var/home"));
        assert_eq!(fs::read_dir(at("var")).unwrap().count(), 0);
        assert!(at("usr/share/reflash/dpkg/info").is_dir());
        let mut list = Vec::new();
        let text = fs::File::open(at("usr/share/reflash/shipped/list.jsonl")).unwrap();
        let take = |entry: ShippedEntry| {
            list.push(entry);
            Ok(())
        };
        read_list(BufReader::new(text), take).unwrap();
        let find =
            |path: &str| list.iter().find(|entry| entry.path.0 == Path::new(path)).unwrap().node.clone().unwrap();
        assert_eq!(find("var/home/robot").mode, 0o755);
        let state = find("var/lib/a b/state");
        assert_eq!((state.mode, state.size_bytes), (0o640, 1));
        let content = at("usr/share/reflash/shipped/content").join(state.content);
        assert_eq!(fs::read_to_string(content).unwrap(), "s");
        assert_eq!(find("var/run").target.unwrap().0, Path::new("/run"));
        // What packages note about themselves is renewed with them.
        let rule = |path: &str| list.iter().find(|entry| entry.path.0 == Path::new(path)).unwrap().rule;
        assert_eq!((rule("var/lib/dpkg"), rule("var/lib/a b/state")), (ShippedRule::Version, ShippedRule::Default));
        assert_eq!(find("var/lib/dpkg").target.unwrap().0, Path::new("../../usr/share/reflash/dpkg"));
        assert!(list.iter().all(|entry| entry.path.0 != Path::new("var/log/wtmp")), "the package makes it");
        assert!(list.iter().all(|entry| entry.path.0 != Path::new("var/same")), "the package makes it");
        assert_eq!(find("var/spool").target.unwrap().0, Path::new("/data/spool"));
        assert_eq!(find("var/own").target.unwrap().0, Path::new("b"));
        assert!(!at("usr/lib/tmpfiles.d/zz-reflash-var.conf").exists());
        assert_eq!(at("tmp").metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
    }
}
