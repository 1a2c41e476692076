//! Additions to the bootstrapped tree: the recipe's files, commands and playbook, and what every image gets.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::container::Container;
use super::within::{followed, inside, text};
use crate::embedded;
use crate::notices;
use crate::recipe::{Ansible, FileEntry, Recipe};
use crate::step;

/// Puts the recipe's files into the tree, and returns the directories that were made for them. `directory` is the one
/// that the recipe lies in. What belongs to a user that a command makes belongs to root until [`super::homes::settle`].
///
/// # Errors
/// Fails with the path at fault.
pub fn place(recipe: &Recipe, directory: &Path, tree: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for file in &recipe.files {
        let content = match (&file.source, &file.text) {
            (Some(source), _) => {
                let source = directory.join(source);
                fs::read(&source).with_context(|| format!("read {}", source.display()))?
            }
            (None, text) => text.clone().unwrap_or_default().into_bytes(),
        };
        put_noting(tree, &file.path, &content, file.mode_bits()?, &mut made)?;
        let owner = file.owner.as_deref().map(|owner| owner_of(tree, owner)).transpose()?.flatten();
        give(tree, file, owner.unwrap_or_default())?;
    }
    Ok(made)
}

/// Gives a placed file to its owner. Its mode comes last, since a new owner takes setuid and setgid away.
///
/// # Errors
/// Fails with the path.
pub fn give(tree: &Path, file: &FileEntry, (user, group): (u32, u32)) -> Result<()> {
    let target = inside(tree, &file.path);
    lchown(&target, Some(user), Some(group))
        .and_then(|()| fs::set_permissions(&target, Permissions::from_mode(file.mode_bits().unwrap_or(0o644))))
        .with_context(|| format!("change the owner of {}", file.path.display()))
}

/// Writes one file that belongs to root, in place of what is there, even of a symbolic link.
///
/// # Errors
/// Fails with the path.
pub fn put(tree: &Path, path: &Path, content: &[u8], mode: u32) -> Result<()> {
    put_noting(tree, path, content, mode, &mut Vec::new())
}

fn put_noting(tree: &Path, path: &Path, content: &[u8], mode: u32, made: &mut Vec<PathBuf>) -> Result<()> {
    let parent = make_parents(tree, path, made)?;
    let target = parent.join(path.file_name().context("the path has no file name")?);
    if target.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        fs::remove_file(&target).with_context(|| format!("replace {}", target.display()))?;
    }
    fs::write(&target, content).with_context(|| format!("write {}", target.display()))?;
    fs::set_permissions(&target, Permissions::from_mode(mode)).with_context(|| format!("chmod {}", target.display()))
}

/// Creates the directories above `path`, adds those that were not there to `made`, and returns the last one. Links on
/// the way are followed as the image's own system will, and must lead to something.
fn make_parents(tree: &Path, path: &Path, made: &mut Vec<PathBuf>) -> Result<PathBuf> {
    let shown = path.display();
    path.file_name().context("the path has no file name")?;
    let mut below = PathBuf::new();
    for name in path.parent().into_iter().flatten().filter(|name| *name != "/") {
        below.push(name);
        let next = inside(tree, &below);
        let Ok(found) = next.symlink_metadata() else {
            // Given by hand: the mask of permissions is a matter of the host.
            fs::create_dir(&next)
                .and_then(|()| fs::set_permissions(&next, Permissions::from_mode(0o755)))
                .with_context(|| format!("create {}", next.display()))?;
            made.push(Path::new("/").join(next.strip_prefix(tree)?));
            continue;
        };
        if found.is_symlink() {
            let target = fs::read_link(&next)?;
            ensure!(
                followed(tree, &below).is_dir(),
                "{shown} lies below /{}, a symbolic link of the image to {}, where the image has no directory",
                below.display(),
                target.display()
            );
        } else {
            ensure!(found.is_dir(), "{shown} lies below /{}, which is a file of the image", below.display());
        }
    }
    Ok(followed(tree, &below))
}

/// Finds the numbers of `user:group`; `None` where the image does not have one of the names yet.
///
/// # Errors
/// When the databases of the image cannot be read.
pub fn owner_of(tree: &Path, owner: &str) -> Result<Option<(u32, u32)>> {
    let (user, group) = owner.split_once(':').context("the owner has no ':' in it")?;
    let find = |database: &str, name: &str| -> Result<Option<u32>> {
        if let Ok(number) = name.parse() {
            return Ok(Some(number));
        }
        Ok(id_of(&text(tree, database)?, name))
    };
    Ok(find("etc/passwd", user)?.zip(find("etc/group", group)?))
}

/// Finds the number of a name. Both `passwd` and `group` have the name first and the number third.
fn id_of(database: &str, name: &str) -> Option<u32> {
    let mut lines = database.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten())
}

/// The agent's binary with its manual page and completion, the units that call `reflash good`, `reflash mend` and
/// others, names in os-release, and keys for a secure shell server.
///
/// # Errors
/// Fails with the path.
pub fn place_own(recipe: &Recipe, agent: &Path, notices: &str, tree: &Path) -> Result<()> {
    let binary = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
    put(tree, Path::new("/usr/bin/reflash"), &binary, 0o755)?;
    let page = Path::new("/usr/share/man/man8/reflash.8");
    put(tree, page, reflash::cli::manual::page().as_bytes(), 0o644)?;
    let completion = Path::new("/usr/share/bash-completion/completions/reflash");
    put(tree, completion, reflash::cli::completion::bash().as_bytes(), 0o644)?;
    put(tree, Path::new(notices::PATH), notices.as_bytes(), 0o644)?;
    let watchdog = Path::new("/usr/lib/systemd/system.conf.d/50-reflash-watchdog.conf");
    put(tree, watchdog, embedded::WATCHDOG_SETTINGS.as_bytes(), 0o644)?;
    unit(tree, "reflash-good.service", embedded::GOOD_UNIT, "multi-user.target")?;
    linked_unit(tree, "reflash-health.service", embedded::HEALTH_UNIT, "boot-complete.target.requires")?;
    unit(tree, "reflash-after-undo.service", embedded::AFTER_UNDO_UNIT, "basic.target")?;
    unit(tree, "reflash-mend.timer", embedded::MEND_TIMER, "timers.target")?;
    unit(tree, "reflash-report.timer", embedded::REPORT_TIMER, "timers.target")?;
    // It does nothing until the configuration says so.
    unit(tree, "reflash-update.timer", embedded::UPDATE_TIMER, "timers.target")?;
    // What their timers start. Drills are off until the machine's owner enables theirs.
    for (path, text) in [
        ("/usr/lib/systemd/system/reflash-mend.service", embedded::MEND_UNIT),
        ("/usr/lib/systemd/system/reflash-report.service", embedded::REPORT_UNIT),
        ("/usr/lib/systemd/system/reflash-update.service", embedded::UPDATE_UNIT),
        ("/usr/lib/systemd/system/reflash-drill.service", embedded::DRILL_UNIT),
        ("/usr/lib/systemd/system/reflash-drill.timer", embedded::DRILL_TIMER),
        ("/usr/lib/systemd/system-preset/50-reflash-drill.preset", embedded::DRILL_PRESET),
    ] {
        put(tree, Path::new(path), text.as_bytes(), 0o644)?;
    }
    if followed(tree, Path::new("/usr/sbin/sshd")).exists() {
        unit(tree, "reflash-ssh-keys.service", embedded::SSH_KEYS_UNIT, "multi-user.target")?;
    }
    let path = followed(tree, Path::new("/usr/lib/os-release"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    fs::write(&path, os_release(&text, recipe)).with_context(|| format!("write {}", path.display()))
}

/// Puts in a unit that `target` wants.
fn unit(tree: &Path, name: &str, text: &str, target: &str) -> Result<()> {
    linked_unit(tree, name, text, &format!("{target}.wants"))
}

/// Puts in a unit and the link in `links` that enables it, both in /usr: /etc belongs to the machine's owner.
///
/// # Errors
/// Fails with the path.
pub fn linked_unit(tree: &Path, name: &str, text: &str, links: &str) -> Result<()> {
    let directory = Path::new("/usr/lib/systemd/system");
    put(tree, &directory.join(name), text.as_bytes(), 0o644)?;
    let link = inside(tree, &directory.join(links)).join(name);
    make_parents(tree, &directory.join(links).join("link"), &mut Vec::new())?;
    if link.symlink_metadata().is_err() {
        symlink(format!("../{name}"), &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}

/// Adds the recipe's names to os-release. systemd takes the default host name from there; a file /etc/hostname would
/// win over the name from the hardware.
fn os_release(text: &str, recipe: &Recipe) -> String {
    let ours = ["IMAGE_ID", "IMAGE_VERSION", "DEFAULT_HOSTNAME"];
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !ours.iter().any(|key| line.split('=').next() == Some(key)))
        .map(str::to_owned)
        .collect();
    for (key, value) in ours.iter().zip([&recipe.name, &recipe.version, &recipe.hostname]) {
        // os-release wants identifiers in lower case.
        let value = if *key == "IMAGE_ID" { value.to_ascii_lowercase() } else { value.clone() };
        lines.push(format!("{key}={value}"));
    }
    lines.join("\n") + "\n"
}

/// Runs the commands and the playbook in the tree. Each line is a step of its own, so a failure names the line.
///
/// # Errors
/// Fails at the first command that fails, with its output.
pub fn run(recipe: &Recipe, directory: &Path, tree: &Path, timestamp: u64) -> Result<()> {
    if recipe.commands.is_empty() && recipe.ansible.is_none() {
        return Ok(());
    }
    let container = Container::probe(tree);
    let _temporary = Temporary::put(tree)?;
    for line in &recipe.commands {
        step::step(&format!("command: {}", shortened(line)), || {
            let mut command = container.command(tree, timestamp);
            step::run("command", command.args(["/bin/sh", "-ec", line]))
        })?;
    }
    let Some(ansible) = &recipe.ansible else { return Ok(()) };
    step::step(&format!("playbook: {}", ansible.playbook.display()), || {
        playbook(ansible, directory, tree, container, timestamp)
    })
}

fn playbook(ansible: &Ansible, directory: &Path, tree: &Path, container: Container, timestamp: u64) -> Result<()> {
    let python = followed(tree, Path::new("/usr/bin/python3"));
    ensure!(python.exists(), "the image has no python3, which ansible needs; add it to distribution.packages");
    let playbook = directory.join(&ansible.playbook);
    ensure!(playbook.is_file(), "playbook {} is missing", playbook.display());
    let prefix: Vec<String> = container
        .prefix(tree, timestamp)
        .into_iter()
        .map(|word| word.into_string().map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8")))
        .collect::<Result<_>>()?;
    // ansible-core has no connection plugin for a directory tree; the collection that has one is a hundred times its
    // size.
    let plugins = tempfile::tempdir().context("create a directory for the connection plugin")?;
    let plugin = plugins.path().join("reflash_tree.py");
    fs::write(&plugin, embedded::ANSIBLE_CONNECTION).context("write the connection plugin")?;
    let mut command = Command::new("ansible-playbook");
    command.args(["--inventory", "image,", "--connection", "reflash_tree"]);
    for variables in &ansible.extra_vars {
        command.args(["--extra-vars", variables]);
    }
    command.arg(playbook.canonicalize().with_context(|| format!("resolve {}", playbook.display()))?);
    command
        .env("ANSIBLE_CONNECTION_PLUGINS", plugins.path())
        .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
        .env("ANSIBLE_REMOTE_TEMP", "/var/tmp/reflash-ansible")
        .env("ANSIBLE_NOCOWS", "1")
        .env("LC_ALL", "C.UTF-8")
        .env("REFLASH_TREE", tree)
        .env("REFLASH_CONTAINER", serde_json::to_string(&prefix)?)
        .current_dir(directory);
    let result = step::run("playbook", &mut command);
    super::removal::remove_tree(&inside(tree, Path::new("var/tmp/reflash-ansible")))?;
    result
}

fn shortened(line: &str) -> String {
    let first = line.trim().lines().next().unwrap_or_default();
    if first.chars().count() <= 60 && first.len() == line.trim().len() {
        return first.to_owned();
    }
    first.chars().take(60).collect::<String>() + "…"
}

/// Files that commands need while they run and that must not stay: the name servers of the host, and a policy that
/// keeps packages from starting their services.
pub struct Temporary {
    placed: Vec<(PathBuf, Vec<u8>)>,
}

impl Temporary {
    /// Puts the files into the tree, until the value is dropped.
    ///
    /// # Errors
    /// Fails with the path.
    pub fn put(tree: &Path) -> Result<Self> {
        let mut this = Self { placed: Vec::new() };
        let resolver = fs::read("/etc/resolv.conf").unwrap_or_default();
        this.place(tree, "/etc/resolv.conf", &resolver, 0o644)?;
        this.place(tree, "/usr/sbin/policy-rc.d", b"#!/bin/sh\nexit 101\n", 0o755)?;
        Ok(this)
    }

    fn place(&mut self, tree: &Path, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let target = inside(tree, Path::new(path));
        if target.symlink_metadata().is_err() {
            put(tree, Path::new(path), content, mode)?;
            self.placed.push((target, content.to_vec()));
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        for (path, content) in &self.placed {
            // A command may have put another file there, which stays.
            let ours = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
                && fs::read(path).is_ok_and(|found| found == *content);
            if ours && let Err(error) = fs::remove_file(path) {
                eprintln!("  cannot delete {}: {error}", path.display());
            }
        }
    }
}

/// Finds the only kernel of the tree: its version and its image.
///
/// # Errors
/// Fails when there is no kernel, or more than one.
pub fn kernel(tree: &Path) -> Result<(String, PathBuf)> {
    let modules = followed(tree, Path::new("usr/lib/modules"));
    let mut versions: Vec<String> = fs::read_dir(&modules)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("modules.dep").exists() || entry.path().join("kernel").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    versions.sort();
    let version = match versions.as_slice() {
        [one] => one.clone(),
        [] => bail!("the image has no kernel; add one to distribution.packages, such as linux-image-amd64"),
        several => bail!("the image has {} kernels ({}); it boots only one", several.len(), several.join(", ")),
    };
    let candidates = [format!("usr/lib/modules/{version}/vmlinuz"), format!("boot/vmlinuz-{version}")];
    let candidates = candidates.map(|path| followed(tree, Path::new(&path)));
    let image = candidates.into_iter().find(|path| path.is_file());
    let image =
        image.with_context(|| format!("the image has modules of kernel {version}, but no /boot/vmlinuz-{version}"))?;
    Ok((version, image))
}

#[cfg(test)]
mod tests {
    use super::{id_of, kernel, os_release, place_own, put, shortened};
    use crate::recipe::Recipe;
    use std::fs;
    use std::path::Path;

    #[test]
    fn identifiers_come_from_the_image() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nrobot:x:1000:1001::/home/robot:/bin/sh\n";
        assert_eq!((id_of(passwd, "robot"), id_of(passwd, "rob")), (Some(1000), None));
    }

    #[test]
    fn os_release_gets_the_names_once() {
        let text = "name = 'Demo'\nversion = '2'\nhostname = 'h'\n[distribution]\nsuite = 's'\npackages = []\n\
                    [ostree]\nbranch = 'b'\n";
        let recipe = Recipe::parse(text).unwrap();
        let once = os_release("ID=debian\nIMAGE_VERSION=1\n", &recipe);
        assert_eq!(once, "ID=debian\nIMAGE_ID=demo\nIMAGE_VERSION=2\nDEFAULT_HOSTNAME=h\n");
        assert_eq!(os_release(&once, &recipe), once);
    }

    /// `reflash good` comes after multi-user.target. <https://systemd.io/NETWORK_ONLINE/>: with no cable the wait for a
    /// network takes minutes, or for ever.
    #[test]
    fn nothing_that_waits_for_a_network_holds_the_call_that_a_boot_is_good() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("usr/lib")).unwrap();
        fs::create_dir_all(tree.path().join("usr/sbin")).unwrap();
        fs::write(tree.path().join("usr/lib/os-release"), "ID=debian\n").unwrap();
        fs::write(tree.path().join("usr/sbin/sshd"), "").unwrap();
        let agent = tree.path().join("agent");
        fs::write(&agent, "").unwrap();
        let text = "name = 'Demo'\nversion = '2'\nhostname = 'h'\n[distribution]\nsuite = 's'\npackages = []\n\
                    [ostree]\nbranch = 'b'\n";
        place_own(&Recipe::parse(text).unwrap(), &agent, "", tree.path()).unwrap();
        let units = tree.path().join("usr/lib/systemd/system");
        let mut seen = 0;
        for target in ["multi-user.target.wants", "basic.target.wants", "boot-complete.target.requires"] {
            for link in units.join(target).read_dir().unwrap() {
                let path = link.unwrap().path();
                assert!(!fs::read_to_string(&path).unwrap().contains("network"), "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen >= 4, "{seen} units");
        assert!(units.join("timers.target.wants/reflash-report.timer").exists());
    }

    #[test]
    fn nothing_is_written_through_a_link_out_of_the_tree() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.path().join("etc")).unwrap();
        let error = put(tree.path(), Path::new("/etc/x"), b"x", 0o644).unwrap_err().to_string();
        assert!(error.contains("/etc, a symbolic link") && error.contains("no directory"), "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
        std::os::unix::fs::symlink("usr/bin", tree.path().join("bin")).unwrap();
        put(tree.path(), Path::new("/bin/tool"), b"x", 0o755).unwrap();
        assert!(tree.path().join("usr/bin/tool").is_file());
        let error = put(tree.path(), Path::new("/bin/tool/x"), b"x", 0o644).unwrap_err().to_string();
        assert!(error.contains("/bin/tool, which is a file"), "{error}");
    }

    /// A release of an application beside the ones before, as many install theirs.
    #[test]
    fn a_link_that_begins_with_a_slash_is_followed_within_the_image() {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("opt/app/1.0")).unwrap();
        std::os::unix::fs::symlink("/opt/app/1.0", at("opt/app/current")).unwrap();
        let mut made = Vec::new();
        super::put_noting(tree.path(), Path::new("/opt/app/current/etc/conf"), b"x", 0o600, &mut made).unwrap();
        assert_eq!(fs::read(at("opt/app/1.0/etc/conf")).unwrap(), b"x");
        assert_eq!(made, [Path::new("/opt/app/1.0/etc")]);
    }

    #[test]
    fn one_kernel_is_demanded() {
        let tree = tempfile::tempdir().unwrap();
        assert!(kernel(tree.path()).unwrap_err().to_string().contains("no kernel"));
        fs::create_dir_all(tree.path().join("usr/lib/modules/6.1/kernel")).unwrap();
        assert!(kernel(tree.path()).unwrap_err().to_string().contains("vmlinuz-6.1"));
        fs::create_dir_all(tree.path().join("boot")).unwrap();
        fs::write(tree.path().join("boot/vmlinuz-6.1"), "x").unwrap();
        assert_eq!(kernel(tree.path()).unwrap().0, "6.1");
        fs::create_dir_all(tree.path().join("usr/lib/modules/6.2/kernel")).unwrap();
        assert!(kernel(tree.path()).unwrap_err().to_string().contains("6.1, 6.2"));
    }

    #[test]
    fn long_commands_are_shortened_for_the_step() {
        assert_eq!(shortened("true"), "true");
        assert!(shortened("set -e\ntrue").ends_with('…'));
    }
}
