//! The first tree: a minimal Debian or Ubuntu with the recipe's packages, kept as a tarball.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::access;
use super::archives::{self, ArchiveRecord, PackageRenewal, PackagesDay, RenewalWish, quoted};
use super::container::{self, Container};
use super::removal::{remove_file, remove_tree};
use super::snapshot;
use super::stamp::{self, InputDigest};
use crate::fresh;
use crate::mirror::{self, AptSource};
use crate::recipe::{BootstrapTool, Distribution};
use crate::step;

/// Tree that a bootstrap tool made.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Tarball of the tree.
    pub tarball: PathBuf,
    /// Digest over everything that the tree was made from.
    pub key: String,
    /// Time of the package archive's last change, seconds since 1970.
    pub archive_time: u64,
    /// Day that its packages are of, and whether they were renewed; `None` where that is not known.
    pub packages: Option<(PackagesDay, PackageRenewal)>,
}

/// Wish for a tree that is kept from an earlier build.
#[derive(Debug, Clone, Copy)]
pub struct KeptTree {
    /// Whether it is made again in any case.
    pub fresh: bool,
    /// Whether it is used although the archives have changed.
    pub keep_packages: bool,
}

/// Makes the tree, unless the one in `directory` was made from the same inputs, and the archives have not changed
/// since. When they cannot be asked, the kept tree is used.
///
/// # Errors
/// Fails with the output of the bootstrap tool. The kept tree then stays.
pub fn bootstrap(distribution: &Distribution, directory: &Path, kept: KeptTree) -> Result<Bootstrapped> {
    let distribution = &snapshot::resolved(distribution)?;
    let sources = sources(distribution)?;
    if let Some(warning) = without_updates(distribution, &sources) {
        eprintln!("  {warning}");
    }
    let lines: Vec<String> = sources.iter().map(AptSource::line).collect();
    let key = InputDigest::default()
        .with(include_str!("bootstrap.rs"))
        .with(include_str!("record_archives.sh"))
        // Whether packages are renewed decides nothing of how they are installed.
        .with(serde_json::to_vec(&Distribution { renew: true, ..distribution.clone() })?)
        .with(lines.join("\n"))
        .finish();
    let tarball = directory.join("bootstrap.tar");
    let record = ArchiveRecord::at(directory.join("bootstrap.archives"));
    let name = format!("bootstrap {}", distribution.suite);
    let usable = !kept.fresh && stamp::is_current(&tarball, &key);
    let renewal = match usable.then(|| archives::decide(&record, wish(distribution, kept))).flatten() {
        Some(renewal) => {
            step::unchanged(&name);
            renewal
        }
        None => {
            let made = step::step(&name, || make(distribution, &sources, directory, &tarball, &record, &key));
            let hint = "the packages of the last build are kept: --keep-packages uses them";
            if usable {
                made.context(hint)?
            } else {
                made?
            }
            PackageRenewal::Made
        }
    };
    let mut day = record.read()?;
    day.snapshot = distribution.snapshot.as_deref().map(snapshot::timestamp).transpose()?;
    let archive_time = day.archive_time().context("the archives have no date")?;
    Ok(Bootstrapped { tarball, key, archive_time, packages: Some((day, renewal)) })
}

/// Returns what a recipe and the command line want of packages that are kept.
#[must_use]
pub fn wish(distribution: &Distribution, kept: KeptTree) -> RenewalWish<'_> {
    if distribution.snapshot.is_some() {
        RenewalWish::Pinned
    } else if kept.keep_packages {
        RenewalWish::Keep { because: "--keep-packages; a build without it renews them" }
    } else if !distribution.renew {
        RenewalWish::Keep { because: "distribution.renew = false in the recipe; --fresh renews them" }
    } else {
        RenewalWish::Renew { keyring: distribution.keyring.as_deref() }
    }
}

/// Makes the tree in a directory of its own, so that a failure leaves the one that is kept.
fn make(
    distribution: &Distribution,
    sources: &[AptSource],
    directory: &Path,
    tarball: &Path,
    record: &ArchiveRecord,
    key: &str,
) -> Result<()> {
    let scratch = directory.join("bootstrap.tmp");
    remove_tree(&scratch)?;
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let new = ArchiveRecord::at(scratch.join("archives"));
    let job = Job { distribution, sources, scratch: &scratch, record: &new };
    let result = match distribution.bootstrap {
        BootstrapTool::Mmdebstrap => job.mmdebstrap()?,
        BootstrapTool::Debootstrap => job.debootstrap()?,
    };
    stamp::forget(tarball)?;
    new.replace(record)?;
    fs::rename(&result, tarball).with_context(|| format!("rename {}", result.display()))?;
    remove_tree(&scratch)?;
    stamp::remember(tarball, key)
}

fn sources(distribution: &Distribution) -> Result<Vec<AptSource>> {
    if let (Some(_), None) = (&distribution.snapshot, &distribution.mirror) {
        return snapshot::sources(distribution);
    }
    let Some(mirror) = &distribution.mirror else {
        let mut sources = mirror::of_host(&distribution.suite);
        sources.retain(|source| distribution.updates || source.release == distribution.suite);
        if !distribution.components.is_empty() {
            sources.iter_mut().for_each(|source| source.components.clone_from(&distribution.components));
        }
        return Ok(sources);
    };
    let components = match distribution.components.as_slice() {
        [] => vec!["main".to_owned()],
        given => given.to_vec(),
    };
    Ok(vec![AptSource { uri: mirror.clone(), release: distribution.suite.clone(), components }])
}

/// Returns a warning about archives that are not what `updates` of the recipe says. Where a mirror has its pockets only
/// its owner knows; Debian has security updates at another address.
fn without_updates(distribution: &Distribution, sources: &[AptSource]) -> Option<String> {
    let Distribution { suite, updates, mirror, bootstrap, .. } = distribution;
    // Debian's unstable has no pockets.
    if ["sid", "unstable"].contains(&suite.as_str()) {
        return None;
    }
    let security = format!("{suite}-security");
    let is_alone = mirror.is_some() || sources.is_empty() && *bootstrap == BootstrapTool::Debootstrap;
    if *updates && is_alone && !distribution.sources.iter().any(|line| line.contains(&security)) {
        let why = match mirror {
            Some(_) => "distribution.mirror has the suite alone",
            None => "this host's apt does not have the suite, and debootstrap takes nothing else",
        };
        return Some(format!(
            "NO SECURITY UPDATES: {why}; add a line for {security} (and one for {suite}-updates) to \
             distribution.sources, or say so by updates = false"
        ));
    }
    (!*updates && sources.is_empty() && *bootstrap == BootstrapTool::Mmdebstrap).then(|| {
        format!(
            "updates = false is without effect: this host's apt does not have {suite}, and mmdebstrap adds updates by \
             itself; name distribution.mirror"
        )
    })
}

struct Job<'a> {
    distribution: &'a Distribution,
    sources: &'a [AptSource],
    /// Directory for the tool's temporary files.
    scratch: &'a Path,
    /// Record of the archives, which is made with the tree.
    record: &'a ArchiveRecord,
}

impl Job<'_> {
    fn mmdebstrap(&self) -> Result<PathBuf> {
        let distribution = self.distribution;
        let tarball = self.scratch.join("tree.tar");
        let mut command = private_mounts("mmdebstrap");
        command.args(["--mode=root", "--variant=minbase", "--format=tar"]);
        if !distribution.packages.is_empty() {
            command.arg(format!("--include={}", distribution.packages.join(",")));
        }
        if !distribution.components.is_empty() {
            command.arg(format!("--components={}", distribution.components.join(",")));
        }
        for option in apt_options(distribution) {
            command.arg(format!("--aptopt={option}"));
        }
        // A tree is thrown away when the power fails, so syncing every file of it is a waste.
        command.arg("--dpkgopt=force-unsafe-io");
        // dpkg then keeps the setting of NO_INITRAMFS.
        command.arg("--dpkgopt=force-confold");
        // Without this hook Debian 12 pulls in a tool that merges /usr of old installations, and 50 MB of perl with it.
        let merged_usr = Path::new("/usr/share/mmdebstrap/hooks/maybe-merged-usr");
        if merged_usr.exists() {
            command.arg("--hook-directory").arg(merged_usr);
        }
        for pattern in &distribution.exclude {
            command.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        for pattern in &distribution.keep {
            command.arg(format!("--dpkgopt=path-include={pattern}"));
        }
        if let Some(keyring) = &distribution.keyring {
            ensure!(keyring.exists(), "distribution.keyring {} is missing on this host", keyring.display());
            command.arg("--keyring").arg(keyring);
        }
        if !distribution.sources.is_empty() {
            let list = self.scratch.join("recipe.list");
            write(&list, &(distribution.sources.join("\n") + "\n"))?;
            let copy = format!("cp {} \"$1\"/etc/apt/sources.list.d/recipe.list", quoted(&list));
            command.arg(format!("--setup-hook={copy}"));
        }
        if let Some(preferences) = held(distribution) {
            let file = self.scratch.join("hold");
            write(&file, &preferences)?;
            let copy = format!("cp {} \"$1\"/{PREFERENCES}", quoted(&file));
            command.arg(format!("--setup-hook=mkdir -p \"$1\"/etc/apt/preferences.d && {copy}"));
            command.arg(format!("--customize-hook=rm \"$1\"/{PREFERENCES}"));
        }
        command.arg(format!("--setup-hook={}", host_name_hook()));
        // Both this and INITRD=No are needed: initramfs-tools comes with the kernel, and minutes of its work would be
        // in vain.
        command.arg(format!("--essential-hook={NO_INITRAMFS}"));
        let [before, after] = self.record.hooks(self.scratch)?;
        command.arg(format!("--setup-hook={}", self.record.line(&before, "\"$1\"")));
        command.arg(format!("--customize-hook={}", self.record.line(&after, "\"$1\"")));
        if !distribution.packages.is_empty() {
            let script = self.scratch.join("known-packages.sh");
            write(&script, KNOWN_PACKAGES)?;
            // A recipe with a name that a shell would read as more than a name is refused.
            command.arg(format!("--setup-hook=sh -e {} {}", quoted(&script), distribution.packages.join(" ")));
        }
        command.arg(&distribution.suite).arg(&tarball);
        command.args(self.sources.iter().map(AptSource::line));
        command.env("TMPDIR", self.scratch).env("INITRD", "No").env("SOURCE_DATE_EPOCH", "1");
        step::run("bootstrap", &mut command)?;
        Ok(tarball)
    }

    /// Makes the tree with debootstrap. That only makes the minimal tree: apt in it solves the dependencies of the
    /// recipe's packages better.
    fn debootstrap(&self) -> Result<PathBuf> {
        let distribution = self.distribution;
        let tree = self.scratch.join("tree");
        let mut command = private_mounts("debootstrap");
        command.arg("--variant=minbase");
        if !distribution.components.is_empty() {
            command.arg(format!("--components={}", distribution.components.join(",")));
        }
        if let Some(keyring) = &distribution.keyring {
            ensure!(keyring.exists(), "distribution.keyring {} is missing on this host", keyring.display());
            command.arg(format!("--keyring={}", keyring.display()));
        }
        command.arg(&distribution.suite).arg(&tree);
        let main = self.sources.iter().find(|source| source.release == distribution.suite);
        command.args(main.map(|source| source.uri.as_str()));
        step::run("bootstrap", &mut command)?;

        let list: Vec<String> = self.sources.iter().map(AptSource::line).collect();
        if !list.is_empty() {
            write(&tree.join("etc/apt/sources.list"), &(list.join("\n") + "\n"))?;
        }
        set_up_apt(distribution, &tree)?;
        let [before, after] = self.record.hooks(self.scratch)?;
        step::run("bootstrap", Command::new("sh").args(["-ec", &self.record.line(&before, &quoted(&tree))]))?;
        let apt: String = apt_options(distribution).iter().map(|option| format!("{option};\n")).collect();
        write(&tree.join("etc/apt/apt.conf.d/99mmdebstrap"), &format!("{apt}APT::Install-Recommends \"false\";\n"))?;
        let container = Container::probe(&tree);
        let install = "apt-get update && apt-get -y dist-upgrade && apt-get -y install \"$@\"";
        let mut command = container.command(&tree, 1);
        command.args(["/bin/sh", "-ec", install, "sh"]).args(&distribution.packages);
        step::run("bootstrap", &mut command)?;
        let after = self.record.line(&after, &quoted(&tree));
        let tidy = format!("{after}; rm -rf {}/var/cache/apt/archives/*.deb", quoted(&tree));
        step::run("bootstrap", Command::new("sh").args(["-ec", &tidy]))?;
        let tarball = self.scratch.join("tree.tar");
        pack(&tree, &tarball, "bootstrap")?;
        Ok(tarball)
    }
}

/// Returns the options by which apt reaches the archives. The signature of an old state has run out by design.
fn apt_options(distribution: &Distribution) -> Vec<String> {
    let mut options = mirror::apt_options();
    options.extend(distribution.snapshot.as_ref().map(|_| "Acquire::Check-Valid-Until \"false\"".to_owned()));
    options
}

/// Writes the settings for apt and dpkg in a tree: the recipe's archives, what it holds back and leaves out.
///
/// # Errors
/// Fails with the path.
pub fn set_up_apt(distribution: &Distribution, tree: &Path) -> Result<()> {
    write(&tree.join("etc/apt/sources.list.d/recipe.list"), &(distribution.sources.join("\n") + "\n"))?;
    let lines = |key: &str, patterns: &[String]| -> String {
        patterns.iter().map(|pattern| format!("{key}={pattern}\n")).collect()
    };
    let dpkg = lines("path-exclude", &distribution.exclude) + &lines("path-include", &distribution.keep);
    write(&tree.join("etc/dpkg/dpkg.cfg.d/99mmdebstrap"), &format!("force-unsafe-io\nforce-confold\n{dpkg}"))?;
    if let Some(preferences) = held(distribution) {
        write(&tree.join(PREFERENCES), &preferences)?;
    }
    step::run("bootstrap", Command::new("sh").args(["-ec", NO_INITRAMFS, "sh"]).arg(tree))
}

/// Packs a tree in which apt has done its work.
///
/// # Errors
/// Fails with the output of tar.
pub fn pack(tree: &Path, tarball: &Path, name: &str) -> Result<()> {
    remove_file(&tree.join(PREFERENCES))?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"]);
    step::run(name, tar.arg(tarball).arg("--directory").arg(tree).arg("."))
}

/// File of apt's preferences, which holds packages back while others are installed.
const PREFERENCES: &str = "etc/apt/preferences.d/hold";

/// Returns preferences that keep packages at the suite's own version; a priority above 1000 wins over newer versions.
fn held(distribution: &Distribution) -> Option<String> {
    let Distribution { hold, suite, .. } = distribution;
    (!hold.is_empty()).then(|| format!("Package: {}\nPin: release n={suite}\nPin-Priority: 1001\n", hold.join(" ")))
}

/// Script that looks for the recipe's packages in the archives.
const KNOWN_PACKAGES: &str = include_str!("known_packages.sh");

const NO_INITRAMFS: &str = "mkdir -p \"$1\"/etc/initramfs-tools && \
     echo update_initramfs=no > \"$1\"/etc/initramfs-tools/update-initramfs.conf";

/// Unpacks the tarball as it was packed.
///
/// # Errors
/// Fails with the output of tar.
pub fn unpack(tarball: &Path, tree: &Path) -> Result<()> {
    remove_tree(tree)?;
    fresh::make(tree)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    step::run("unpack", tar.arg("--file").arg(tarball).arg("--directory").arg(tree))?;
    // Before any program runs in it as another user.
    access::mend(tree)
}

/// Returns the hook by which packages see the same host name on every host, while mmdebstrap installs them: mail
/// servers, among others, write it into their configuration.
fn host_name_hook() -> String {
    let name = container::NAME;
    format!(
        "hostname {name} || echo 'the packages see the name of this host' >&2; \
         mkdir -p \"$1\"/etc && echo {name} > \"$1\"/etc/hostname"
    )
}

/// Makes a command whose mounts vanish with it, and whose host name is its own.
fn private_mounts(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--uts", "--propagation", "private", program]);
    command
}

/// Writes a file, with the directories on the way to it.
///
/// # Errors
/// Fails with the path.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{container, host_name_hook, private_mounts, sources, without_updates};
    use crate::recipe::{BootstrapTool, Distribution};

    /// Images of the day of the point release for ever, and "the archives have not changed since".
    #[test]
    fn a_mirror_that_takes_the_security_updates_away_is_said() {
        let said = |change: &dyn Fn(&mut Distribution)| {
            let mut distribution = Distribution { suite: "noble".into(), ..Distribution::default() };
            change(&mut distribution);
            let sources = match distribution.mirror {
                Some(_) => sources(&distribution).unwrap(),
                None => Vec::new(),
            };
            without_updates(&distribution, &sources)
        };
        let mirror = |it: &mut Distribution| it.mirror = Some("http://mirror.example/ubuntu".into());
        assert!(said(&mirror).unwrap().contains("noble-security (and one for noble-updates)"));
        let line = "deb http://mirror.example/ubuntu noble-security main".to_owned();
        assert_eq!(said(&|it| (mirror(it), it.sources = vec![line.clone()]).0), None);
        assert_eq!(said(&|it| (mirror(it), it.updates = false).0), None);
        assert_eq!(said(&|it| (mirror(it), it.suite = "sid".into()).0), None);
        assert_eq!(said(&|_| ()), None, "mmdebstrap adds them by itself");
        assert!(said(&|it| it.updates = false).unwrap().contains("without effect"));
        assert!(said(&|it| it.bootstrap = BootstrapTool::Debootstrap).unwrap().contains("debootstrap takes nothing"));
    }

    /// postfix and exim4 keep the name in /etc/mailname: two hosts made two images of one recipe.
    #[test]
    #[ignore = "needs root: to have a host name of its own; cargo xtask test --tier root"]
    fn packages_do_not_see_the_name_of_the_host() {
        let tree = tempfile::tempdir().unwrap();
        let name_of_host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let own = name_of_host();
        let mut command = private_mounts("sh");
        command.args(["-ec", &format!("{}; hostname", host_name_hook()), "sh"]).arg(tree.path());
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), container::NAME, "{output:?}");
        assert_eq!(std::fs::read_to_string(tree.path().join("etc/hostname")).unwrap().trim(), container::NAME);
        assert_eq!(name_of_host(), own);
    }
}
