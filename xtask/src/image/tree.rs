//! Conversion of a Debian tree to an OSTree tree: everything that the image owns goes below /usr, everything that the
//! machine owns elsewhere.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use super::removal::remove_tree;

/// Place of the package database, which is part of the image, not of the machine.
const DPKG: &str = "usr/share/reflash/dpkg";

/// Links in the root directory. /opt belongs to the image, unlike in OSTree's own examples: large frameworks of robots
/// live there and would otherwise be copied to the data partition, where no update reaches them.
const LINKS: &[(&str, &str)] = &[
    ("home", "var/home"),
    ("root", "var/roothome"),
    ("srv", "var/srv"),
    ("mnt", "var/mnt"),
    ("opt", "usr/opt"),
    ("media", "run/media"),
    ("ostree", "sysroot/ostree"),
];

/// Converts the tree in place. The kernel and the initramfs must be in `usr/lib/modules/VERSION` already.
///
/// # Errors
/// Fails with the path.
pub fn convert(tree: &Path) -> Result<()> {
    // The kernel lies in /usr/lib/modules; OSTree fills /boot itself.
    for name in ["boot", "media"] {
        remove_tree(&tree.join(name))?;
    }
    for name in ["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old", ".dockerenv"] {
        let _ = fs::remove_file(tree.join(name));
    }
    rename(&tree.join("etc"), &tree.join("usr/etc"))?;
    for (name, target) in LINKS {
        let path = tree.join(name);
        let target_path = tree.join(target);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            if target.starts_with("run/") {
                remove_tree(&path)?;
            } else {
                rename(&path, &target_path)?;
            }
        } else if target.starts_with("var/") || target.starts_with("usr/") {
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
    var_to_tmpfiles(tree)
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
    for path in files.map(|entry| entry.path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let moved: String = text.lines().map(|line| followed(line) + "\n").collect();
        if moved != text {
            fs::write(&path, moved).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

/// Returns the line with the path that one of [`LINKS`] leads to.
fn followed(line: &str) -> String {
    let path = line.split_ascii_whitespace().nth(1).filter(|_| !line.starts_with('#')).unwrap_or_default();
    for (name, target) in LINKS {
        let link = format!("/{name}");
        if path == link || path.starts_with(&format!("{link}/")) {
            return line.replacen(&link, &format!("/{target}"), 1);
        }
    }
    line.to_owned()
}

/// Empties /var: on the machine it is a directory of the data partition, which the first boot finds empty.
/// systemd-tmpfiles makes again what packages put there, from a list that is written here.
fn var_to_tmpfiles(tree: &Path) -> Result<()> {
    let var = tree.join("var");
    let factory = tree.join("usr/share/factory");
    let known = known_to_tmpfiles(tree);
    let mut lines = Vec::new();
    for entry in WalkDir::new(&var).min_depth(1).sort_by_file_name() {
        let entry = entry.context("read var")?;
        let metadata = entry.metadata().context("read var")?;
        let path = format!("/{}", entry.path().strip_prefix(tree).unwrap_or(entry.path()).display());
        if known.contains(&path) {
            continue;
        }
        let name = escaped(&path);
        let (mode, user, group) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        if metadata.is_dir() {
            lines.push(format!("d {name} {mode:04o} {user} {group} - -"));
        } else if metadata.is_symlink() {
            let target = fs::read_link(entry.path()).with_context(|| format!("read {path}"))?;
            lines.push(format!("L {name} - - - - {}", escaped(&target.display().to_string())));
        } else if metadata.is_file() {
            let kept = factory.join(path.trim_start_matches('/'));
            if let Some(parent) = kept.parent() {
                fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            }
            fs::copy(entry.path(), &kept).with_context(|| format!("copy {path}"))?;
            lines.push(format!("C {name} {mode:04o} {user} {group} - -"));
        }
    }
    let text =
        "# Made by the image builder from what the packages have in /var.\n".to_owned() + &lines.join("\n") + "\n";
    // This name sorts last, so that the packages' own lines win.
    let path = tree.join("usr/lib/tmpfiles.d/zz-reflash-var.conf");
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    remove_tree(&var)?;
    create(&var, 0o755)
}

/// Returns the paths that a package's own tmpfiles.d makes: a second line for one of them would be a warning at every
/// boot.
fn known_to_tmpfiles(tree: &Path) -> BTreeSet<String> {
    let directories: [PathBuf; 2] = [tree.join("usr/lib/tmpfiles.d"), tree.join("usr/etc/tmpfiles.d")];
    let files = directories.iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    let texts = files.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.flat_map(|text| text.lines().filter_map(made_by).collect::<Vec<_>>()).collect()
}

/// Returns the path that a line of tmpfiles.d makes; `None` for lines that only change or delete.
fn made_by(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next()?;
    let makes = matches!(kind.chars().next()?, 'd' | 'D' | 'f' | 'F' | 'L' | 'q' | 'Q' | 'v' | 'C');
    makes.then(|| words.next()).flatten().map(|path| path.trim_end_matches('/').to_owned())
}

/// Escapes a path for tmpfiles.d, which splits at white space, and reads `%` as a specifier and C escapes.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\\\").replace(' ', "\\x20").replace('\t', "\\x09").replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::{convert, followed, made_by};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn lines_that_make_a_path_are_distinguished_from_those_that_change_it() {
        assert_eq!(made_by("d /var/log 0755 - - -").as_deref(), Some("/var/log"));
        assert_eq!(made_by("L+ /var/x/ - - - - y").as_deref(), Some("/var/x"));
        assert_eq!(made_by("z /var/log/journal 2755 - - -"), None);
        assert_eq!(made_by("# d /x"), None);
    }

    #[test]
    fn lines_for_a_link_are_moved_to_its_target() {
        assert_eq!(followed("Q /home 0755 - - -"), "Q /var/home 0755 - - -");
        assert_eq!(followed("d- /root/.ssh :0700"), "d- /var/roothome/.ssh :0700");
        for other in ["d /homes 0755", "# d /home", "", "d /run/x - - - - /home"] {
            assert_eq!(followed(other), other);
        }
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
        fs::write(at("usr/lib/tmpfiles.d/x.conf"), "d /var/log/known 0755 - - -\n").unwrap();
        fs::write(at("var/lib/a b/state"), "s").unwrap();
        fs::set_permissions(at("var/lib/a b/state"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(at("etc/hosts"), "h").unwrap();
        symlink("/run", at("var/run")).unwrap();
        convert(tree.path()).unwrap();
        assert_eq!(fs::read_to_string(at("usr/etc/hosts")).unwrap(), "h");
        assert!(!at("etc").exists() && at("usr/opt/ros").is_dir());
        assert_eq!(fs::read_link(at("home")).unwrap().to_str(), Some("var/home"));
        assert_eq!(fs::read_dir(at("var")).unwrap().count(), 0);
        assert!(at("usr/share/reflash/dpkg/info").is_dir());
        let list = fs::read_to_string(at("usr/lib/tmpfiles.d/zz-reflash-var.conf")).unwrap();
        for line in [
            "d /var/home/robot 0755",
            "C /var/lib/a\\x20b/state 0640",
            "L /var/run - - - - /run",
            "L /var/lib/dpkg - - - - ../../usr/share/reflash/dpkg",
            "d /var/roothome",
        ] {
            assert!(list.contains(line), "{line} is missing in:\n{list}");
        }
        assert!(!list.contains("/var/log/known"), "{list}");
        assert_eq!(fs::read_to_string(at("usr/share/factory/var/lib/a b/state")).unwrap(), "s");
        assert_eq!(at("tmp").metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
    }
}
