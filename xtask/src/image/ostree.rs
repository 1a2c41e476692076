//! OSTree: the repository that is kept between builds, and the deployment that becomes the image.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::fragment::BootEntry;
use super::removal::remove_tree;
use crate::fresh;
use crate::recipe::Recipe;
use crate::step;

/// Name of the only operating system in an image. It is not the recipe's name: it is part of paths, and a machine may
/// be reflashed from one recipe to another.
const STATEROOT: &str = "system";

/// Kernel arguments that every image needs. systemd must not look for partitions by itself (`systemd.gpt_auto`): the
/// system does not use the ESP, and the system and data partitions are mounted before systemd starts.
const ARGUMENTS: &[&str] = &["ro", "systemd.gpt_auto=0"];

/// Repository of all builds. Files are kept as they are (mode `bare`), not compressed for serving over HTTP: releases
/// are what is served, and without compression a commit takes a third of the time and a deployment none.
#[derive(Debug)]
pub struct Repository(PathBuf);

impl Repository {
    /// Opens the repository, and creates it if it is missing.
    ///
    /// # Errors
    /// Fails with the output of ostree.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join("config").exists() {
            // The repository is created under another name first: an interrupted init must not look like a repository.
            let temporary = path.with_added_extension("tmp");
            remove_tree(&temporary)?;
            fresh::make(&temporary)?;
            step::output(ostree(&temporary).args(["init", "--mode=bare"]))?;
            // The content of a build can be made again, so it need not be on the disk before the next step.
            step::output(ostree(&temporary).args(["config", "set", "core.fsync", "false"]))?;
            fs::rename(&temporary, path).with_context(|| format!("rename {}", temporary.display()))?;
        }
        Ok(Self(path.to_owned()))
    }

    /// Commits the tree and returns the digest of the commit: the same for the same tree, version and timestamp.
    ///
    /// # Errors
    /// Fails with the output of ostree.
    pub fn commit(&self, tree: &Path, recipe: &Recipe, timestamp: u64) -> Result<String> {
        let branch = &recipe.ostree.branch;
        let mut command = ostree(&self.0);
        command
            .args(["commit", "--orphan", "--subject"])
            .arg(format!("{} {}", recipe.name, recipe.version))
            .arg(format!("--add-metadata-string=version={}", recipe.version))
            .arg(format!("--timestamp=@{timestamp}"))
            .arg(format!("--tree=dir={}", tree.display()))
            // No parent: the digest must not depend on what was built here before.
            .arg(format!("--bind-ref={branch}"))
            .args(recipe.ostree.refs.iter().map(|name| format!("--bind-ref={name}")))
            .env("SOURCE_DATE_EPOCH", timestamp.to_string());
        let commit = step::output(&mut command)?.trim().to_owned();
        ensure!(commit.len() == 64, "ostree commit printed {commit:?} instead of a digest");
        // The branch moves only now, so that an interrupted build leaves it where it was.
        step::output(ostree(&self.0).args(["refs", "--force", "--create", branch, &commit]))?;
        Ok(commit)
    }

    /// Deploys a commit into an empty sysroot and returns its boot entry.
    ///
    /// # Errors
    /// Fails with the output of ostree, or when the boot entry is not as expected.
    pub fn deploy(&self, commit: &str, recipe: &Recipe, sysroot: &Path) -> Result<BootEntry> {
        let branch = &recipe.ostree.branch;
        remove_sysroot(sysroot)?;
        // This directory becomes the root of the file system, which only the initramfs sees.
        fresh::make(sysroot)?;
        let admin = |words: &[&str]| {
            let mut command = Command::new("ostree");
            command.arg("admin").arg(format!("--sysroot={}", sysroot.display())).args(words);
            // Without this the root of the deployment would be immutable, and could not be deleted here. A robot does
            // not need the flag: its file system is mounted read-only.
            command.env("OSTREE_SYSROOT_DEBUG", "mutable-deployments");
            // A deployment ends with a sync of the host's file system, which it freezes for that. On a busy host this
            // takes longer than ostree's own limit, which ends the build, and others cannot write meanwhile. A
            // directory that becomes an image needs neither.
            command.env("OSTREE_SYSROOT_OPTS", "skip-sync");
            command
        };
        let sysroot_text = sysroot.to_str().context("the path of the work directory is not UTF-8")?;
        step::output(Command::new("ostree").args(["admin", "init-fs", "--modern", sysroot_text]))?;
        let repo = sysroot.join("ostree/repo");
        for (key, value) in [
            // Without this ostree looks for the boot loader of this host.
            ("sysroot.bootloader", "none"),
            // This would ask for a remount of /sysroot in the running system; ours is read-only from the start.
            ("sysroot.readonly", "false"),
            ("core.fsync", "false"),
        ] {
            step::output(ostree(&repo).args(["config", "set", key, value]))?;
        }
        step::output(&mut admin(&["os-init", STATEROOT]))?;
        let kept = self.0.to_str().context("the path of the work directory is not UTF-8")?;
        step::output(ostree(&repo).args(["pull-local", kept, commit]))?;
        step::output(ostree(&repo).args(["refs", "--create", branch, commit]))?;
        let os = format!("--os={STATEROOT}");
        let mut words = vec!["deploy", os.as_str()];
        let recipe_arguments = recipe.boot.kernel_arguments.iter().map(String::as_str);
        // The option is --karg-append because --karg replaces an earlier argument of the same name, such as a first
        // console=.
        let arguments: Vec<String> =
            ARGUMENTS.iter().copied().chain(recipe_arguments).map(|one| format!("--karg-append={one}")).collect();
        words.extend(arguments.iter().map(String::as_str));
        words.push(branch);
        step::run("ostree deploy", &mut admin(&words))?;
        step::output(ostree(&repo).args(["config", "unset", "core.fsync"]))?;
        // The tool leaves a lock behind, and a directory named after this boot of this host.
        let _ = fs::remove_file(repo.join(".lock"));
        remove_tree(&repo.join("tmp"))?;
        fs::create_dir(repo.join("tmp")).context("create tmp of the repository")?;
        one_deployment(sysroot)?;
        same_for_every_version(sysroot)?;
        entry_of(sysroot)
    }
}

/// Deletes a sysroot, even one whose deployments are immutable.
///
/// # Errors
/// Fails when something in it cannot be deleted.
pub fn remove_sysroot(sysroot: &Path) -> Result<()> {
    let deployments = sysroot.join("ostree/deploy").join(STATEROOT).join("deploy");
    for entry in fs::read_dir(deployments).into_iter().flatten().flatten() {
        // chattr fails on file systems without this flag, and nothing needs to be done there.
        let _ = Command::new("chattr").arg("-i").arg(entry.path()).output();
    }
    remove_tree(sysroot)
}

/// The tree of a build on its way into a sysroot.
#[derive(Debug, Clone, Copy)]
pub struct Deploying<'a> {
    /// The recipe of the image.
    pub recipe: &'a Recipe,
    /// Time of the commit, seconds since 1970.
    pub timestamp: u64,
    /// Directory of the tree.
    pub tree: &'a Path,
}

impl Deploying<'_> {
    /// Commits the tree to the repository in `path`, deploys it into `sysroot`, and returns the digest of the commit.
    /// Objects of the build before are used again. Whoever changes the directory, were it by `chmod -R`, changes them,
    /// and a loss of power leaves some of them empty: they are then made anew.
    ///
    /// # Errors
    /// Fails with the output of ostree.
    pub fn through(&self, path: &Path, sysroot: &Path) -> Result<String> {
        let _alone = lock(path)?;
        let was_there = path.exists();
        let checked = |commit| check(sysroot).map(|()| commit);
        let damage = match self.once(path, sysroot).and_then(checked) {
            Ok(commit) => {
                // What no branch has is of earlier builds: it would grow for ever.
                step::output(ostree(path).args(["prune", "--refs-only"]))?;
                return Ok(commit);
            }
            Err(error) if !was_there => return Err(error),
            Err(error) => error,
        };
        eprintln!(
            "  the objects of earlier builds in {} do not serve, so they are made anew: {damage:#}",
            path.display()
        );
        remove_sysroot(sysroot)?;
        remove_tree(path)?;
        let commit = self.once(path, sysroot)?;
        check(sysroot).context("the objects of this build do not stay as they are written: is the disk failing?")?;
        Ok(commit)
    }

    fn once(&self, path: &Path, sysroot: &Path) -> Result<String> {
        let repository = Repository::open(path)?;
        let commit = step::step("OSTree commit", || repository.commit(self.tree, self.recipe, self.timestamp))?;
        step::step("OSTree deployment", || {
            let entry = repository.deploy(&commit, self.recipe, sysroot)?;
            let script = sysroot.join("boot/reflash.cfg");
            fs::write(&script, entry.script()).with_context(|| format!("write {}", script.display()))
        })?;
        Ok(commit)
    }
}

/// Keeps other builds out of the repository until the file is dropped: recipes share it, and one of two at once could
/// delete what the other is about to deploy.
fn lock(repository: &Path) -> Result<File> {
    let path = repository.with_added_extension("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another build that uses {}", repository.display());
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// Checks that every object of a sysroot, and so every file of its deployment, is what its name says: content, mode,
/// owner and extended attributes.
///
/// # Errors
/// Fails with what ostree found.
pub fn check(sysroot: &Path) -> Result<()> {
    step::output(ostree(&sysroot.join("ostree/repo")).arg("fsck")).map(drop)
}

/// Lines of a boot entry that the image keeps, as ostree of 2022 wrote them.
const ENTRY_LINES: &[&str] = &["title", "version", "options", "linux", "initrd"];

/// Makes the deployment that of every version of ostree: newer ones name the boot entry in another way, add lines for
/// other boot loaders, keep directories for a root that is written to, and no longer fill `/var`.
fn same_for_every_version(sysroot: &Path) -> Result<()> {
    let stateroot = sysroot.join("ostree/deploy").join(STATEROOT);
    remove_tree(&stateroot.join("backing"))?;
    let var = stateroot.join("var");
    for (name, mode) in [("lib", 0o755), ("log", 0o755), ("tmp", 0o1777)] {
        let path = var.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for (name, target) in [("lock", "../run/lock"), ("run", "../run")] {
        let path = var.join(name);
        if path.symlink_metadata().is_err() {
            symlink(target, &path).with_context(|| format!("link {}", path.display()))?;
        }
    }
    let directory = sysroot.join("boot/loader/entries");
    let entry = only_entry(&directory)?;
    let text = fs::read_to_string(&entry).with_context(|| format!("read {}", entry.display()))?;
    let kept = text.lines().filter(|line| line.split(' ').next().is_some_and(|key| ENTRY_LINES.contains(&key)));
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    fs::write(&entry, kept).with_context(|| format!("write {}", entry.display()))?;
    fs::rename(&entry, directory.join(format!("ostree-1-{STATEROOT}.conf")))
        .with_context(|| format!("rename {}", entry.display()))
}

/// Checks that the image holds one deployment, and no object that is not part of it: every byte is sent to robots.
fn one_deployment(sysroot: &Path) -> Result<()> {
    let directory = sysroot.join("ostree/deploy").join(STATEROOT).join("deploy");
    let entries = fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let deployments = entries.flatten().filter(|entry| entry.path().is_dir()).count();
    ensure!(deployments == 1, "{} holds {deployments} deployments instead of one", directory.display());
    let words = ["prune", "--refs-only", "--no-prune"];
    let report = step::output(ostree(&sysroot.join("ostree/repo")).args(words))?;
    ensure!(
        report.contains("No unreachable objects"),
        "the image would hold objects that nothing uses:\n{}",
        report.trim()
    );
    Ok(())
}

fn entry_of(sysroot: &Path) -> Result<BootEntry> {
    let file = only_entry(&sysroot.join("boot/loader/entries"))?;
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    BootEntry::parse(&text).with_context(|| format!("boot entry {}", file.display()))
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let [file] = files.as_slice() else {
        anyhow::bail!("{} holds {} boot entries instead of one", directory.display(), files.len())
    };
    Ok(file.clone())
}

/// The program `ostree`, for a repository.
pub fn ostree(repo: &Path) -> Command {
    let mut command = Command::new("ostree");
    command.arg(format!("--repo={}", repo.display()));
    command
}

#[cfg(test)]
mod tests {
    use super::{Deploying, STATEROOT, check, one_deployment, ostree};
    use crate::recipe::Recipe;
    use crate::step;
    use std::fs;

    #[test]
    #[ignore = "needs root: to install ostree; cargo xtask test --tier root"]
    fn an_image_with_more_than_one_deployment_or_unused_objects_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let deployments = at("ostree/deploy").join(STATEROOT).join("deploy");
        fs::create_dir_all(deployments.join("a.0")).unwrap();
        fs::create_dir_all(at("ostree/repo")).unwrap();
        fs::create_dir(at("tree")).unwrap();
        let repo = at("ostree/repo");
        step::output(ostree(&repo).args(["init", "--mode=bare-user-only"])).unwrap();
        let commit = |content: &str| {
            fs::write(at("tree/file"), content).unwrap();
            let tree = format!("--tree=dir={}", at("tree").display());
            step::output(ostree(&repo).args(["commit", "--branch=x", &tree])).unwrap();
        };
        commit("1");
        one_deployment(directory.path()).unwrap();
        fs::create_dir(deployments.join("b.0")).unwrap();
        let error = one_deployment(directory.path()).unwrap_err().to_string();
        assert!(error.contains("2 deployments"), "{error}");
        fs::remove_dir(deployments.join("b.0")).unwrap();
        step::output(ostree(&repo).args(["refs", "--delete", "x"])).unwrap();
        let error = one_deployment(directory.path()).unwrap_err().to_string();
        assert!(error.contains("nothing uses"), "{error}");
    }

    #[test]
    #[ignore = "needs root: to install ostree; cargo xtask test --tier root"]
    fn objects_that_something_else_changed_are_found_by_content_and_by_mode() {
        for change in [["chmod", "4777"], ["chown", "1234"], ["cp", "/proc/self/comm"]] {
            let directory = tempfile::tempdir().unwrap();
            let (kept, tree) = (directory.path().join("kept"), directory.path().join("tree"));
            let repo = directory.path().join("sysroot/ostree/repo");
            fs::create_dir_all(&tree).unwrap();
            fs::create_dir_all(&repo).unwrap();
            fs::write(tree.join("file"), "content").unwrap();
            for repo in [&kept, &repo] {
                step::output(ostree(repo).args(["init", "--mode=bare"])).unwrap();
            }
            let from = format!("--tree=dir={}", tree.display());
            let commit = step::output(ostree(&kept).args(["commit", "--branch=x", &from])).unwrap();
            step::output(ostree(&repo).arg("pull-local").arg(&kept).arg(commit.trim())).unwrap();
            let sysroot = directory.path().join("sysroot");
            check(&sysroot).unwrap();
            // The objects of both are the same files.
            let is_file = |path: &std::path::Path| path.extension().is_some_and(|extension| extension == "file");
            let objects = walkdir::WalkDir::new(kept.join("objects")).into_iter();
            let object = objects.map(|entry| entry.unwrap().into_path()).find(|path| is_file(path)).unwrap();
            step::output(std::process::Command::new(change[0]).arg(change[1]).arg(&object)).unwrap();
            let error = check(&sysroot).unwrap_err().to_string();
            assert!(error.contains("orrupt"), "{change:?}: {error}");
        }
    }

    /// A loss of power left empty objects, and every build after it failed at them until a person deleted the
    /// directory; and the repository grew with every build.
    #[test]
    #[ignore = "needs root: to install ostree; cargo xtask test --tier root"]
    fn objects_of_earlier_builds_go_and_those_that_do_not_serve_are_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let modules = at("tree/usr/lib/modules/6.1");
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir_all(at("tree/usr/etc")).unwrap();
        let os = "ID=debian\nNAME=x\nVERSION=1\nPRETTY_NAME=x\n";
        for (path, text) in [("vmlinuz", "k"), ("initramfs.img", "i"), ("../../os-release", os), ("../../file", "1")] {
            fs::write(modules.join(path), text).unwrap();
        }
        let text = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n";
        let recipe = Recipe::parse(text).unwrap();
        let made = Deploying { recipe: &recipe, timestamp: 1, tree: &at("tree") };
        let build = || made.through(&at("kept"), &at("sysroot")).unwrap();
        let objects = || {
            let entries = walkdir::WalkDir::new(at("kept/objects")).into_iter().map(Result::unwrap);
            let files: Vec<_> = entries.filter(|entry| entry.file_type().is_file()).collect();
            files.into_iter().map(walkdir::DirEntry::into_path).collect::<Vec<_>>()
        };
        let (first, count) = (build(), objects().len());
        fs::write(at("tree/usr/lib/file"), "2").unwrap();
        let second = build();
        assert!(first != second && objects().len() == count, "{count} objects, and now {:?}", objects());
        objects().iter().for_each(|object| fs::write(object, "").unwrap());
        assert_eq!(build(), second);
    }
}
