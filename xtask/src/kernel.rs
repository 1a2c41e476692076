//! A Debian kernel that is not installed: it is downloaded through an apt with its own state, and unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::mirror;
use crate::paths::Paths;
use crate::step::{output, run, step};

/// Suite the recovery kernel is from.
pub const SUITE: &str = "bookworm";
/// Package of the generic kernel: the cloud variant has no drivers for AHCI, MMC, USB and real network cards.
pub const PACKAGE: &str = "linux-image-amd64";

/// Key of Debian's archive, whatever distribution the host has.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Archive of Debian's security updates.
const SECURITY: &str = "http://security.debian.org/debian-security";

/// Age of a kernel from which on the archive is asked for a newer one: a robot's last resort should have the security
/// fixes of its kernel, and drivers for new hardware, and Debian makes a kernel every few weeks.
const LOOK_AFTER: Duration = Duration::from_hours(7 * 24);

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Release of the kernel, as `uname -r` prints it.
    pub release: String,
    /// Path of the bootable image.
    pub vmlinuz: PathBuf,
    /// Directory `lib/modules/RELEASE`, with depmod's tables.
    pub modules: PathBuf,
}

/// Returns the mirror that debootstrap would take for a suite: on a host of another distribution, apt knows none.
#[must_use]
pub fn default_mirror(suite: &str) -> Option<String> {
    let script = std::fs::read_to_string(Path::new("/usr/share/debootstrap/scripts").join(suite)).ok()?;
    script.lines().find_map(|line| line.trim().strip_prefix("default_mirror ").map(|mirror| mirror.trim().to_owned()))
}

/// Downloads and unpacks the kernel that the meta package of the suite names. A kernel that was unpacked before is
/// used for a week; then the archive is asked for a newer one.
///
/// # Errors
/// When there is none yet, and no mirror is known or a download fails.
pub fn fetch(paths: &Paths) -> Result<Kernel> {
    let base = paths.work().join("kernel");
    let marker = base.join("current");
    let release = std::fs::read_to_string(&marker).unwrap_or_default();
    kept_or_renewed(unpacked(&base, release.trim()).ok(), age(&marker), |kept| {
        let text = if kept.is_some() { "look for a newer recovery kernel" } else { "download the recovery kernel" };
        step(text, || renew(&Apt::open(paths, kept.is_some())?, &base, kept))
    })
}

/// Returns the kernel that is kept, unless it is old and can be renewed.
fn kept_or_renewed(
    kept: Option<Kernel>,
    age: Duration,
    renew: impl FnOnce(Option<&Kernel>) -> Result<Kernel>,
) -> Result<Kernel> {
    if let Some(kernel) = kept.as_ref().filter(|_| age < LOOK_AFTER) {
        return Ok(kernel.clone());
    }
    match (renew(kept.as_ref()), kept) {
        (Err(error), Some(kernel)) => {
            eprintln!("  the recovery kernel {} was NOT renewed: {error:#}", kernel.release);
            Ok(kernel)
        }
        (renewed, _) => renewed,
    }
}

/// Time since a file was written. One from the future is as good as an old one: somebody's clock is wrong.
fn age(path: &Path) -> Duration {
    let written = path.metadata().and_then(|found| found.modified());
    written.ok().and_then(|written| written.elapsed().ok()).unwrap_or(Duration::MAX)
}

/// Unpacks the kernel that the archive has now, unless it is the one that is kept.
fn renew(apt: &Apt, base: &Path, kept: Option<&Kernel>) -> Result<Kernel> {
    let depends = output(apt.command("apt-cache").args(["depends", PACKAGE]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{PACKAGE} depends on no kernel"))?
        .to_owned();
    let release = package.trim_start_matches("linux-image-").to_owned();
    // The name of the file has the version: security updates mostly keep the release.
    let file = file_of(&output(apt.command("apt-get").args(["download", "--print-uris", &package]))?)
        .with_context(|| format!("apt-get does not say where {package} is"))?;
    let (marker, version) = (base.join("current"), base.join("version"));
    let is_same = std::fs::read_to_string(&version).is_ok_and(|known| known.trim() == file);
    if let Some(kernel) = kept.filter(|_| is_same) {
        std::fs::write(&marker, &kernel.release)?;
        return Ok(kernel.clone());
    }
    let downloads = apt.root.join("downloads");
    let _ = std::fs::remove_dir_all(&downloads);
    std::fs::create_dir_all(&downloads)?;
    run("kernel-download", apt.command("apt-get").args(["download", &package]).current_dir(&downloads))?;
    let mut left = std::fs::read_dir(&downloads)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let deb = left.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.context("apt-get download left no package")?;
    let (root, new) = (base.join(&release), base.join(format!("{release}.new")));
    let _ = std::fs::remove_dir_all(&new);
    std::fs::create_dir_all(&new)?;
    run("kernel-unpack", Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&new))?;
    run("depmod", Command::new("depmod").arg("-b").arg(&new).arg(&release))?;
    let _ = std::fs::remove_file(&version);
    let _ = std::fs::remove_dir_all(&root);
    std::fs::rename(new, &root)?;
    std::fs::write(&marker, &release)?;
    std::fs::write(&version, &file)?;
    unpacked(base, &release)
}

/// The name of the file in what `apt-get download --print-uris` prints: address, name, size and digest.
fn file_of(printed: &str) -> Option<String> {
    let line = printed.lines().find(|line| line.starts_with('\''))?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

fn unpacked(base: &Path, release: &str) -> Result<Kernel> {
    let root = base.join(release);
    let kernel = Kernel {
        release: release.to_owned(),
        vmlinuz: root.join("boot").join(format!("vmlinuz-{release}")),
        modules: root.join("lib/modules").join(release),
    };
    ensure!(
        kernel.vmlinuz.is_file() && kernel.modules.join("modules.dep").is_file(),
        "the unpacked kernel {} is incomplete",
        root.display()
    );
    Ok(kernel)
}

/// Runs apt with its own lists, so that the host may be another distribution and nothing on it changes.
struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Asks the archives what they have. Where there is a kernel already, one that does not answer is an error: it may
    /// have a newer one.
    fn open(paths: &Paths, has_kernel: bool) -> Result<Self> {
        let root = paths.work().join("apt").join(SUITE);
        for directory in ["lists/partial", "cache/archives/partial", "etc"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        // The suite's updates are used too: a robot's last resort should have the kernel's security fixes.
        let mut lines: Vec<String> = mirror::of_host(SUITE)
            .into_iter()
            .map(|source| format!("deb [signed-by={KEYRING}] {} {} main\n", source.uri, source.release))
            .collect();
        let named = std::env::var("REFLASH_MIRROR").ok();
        let is_default = named.is_none();
        if let Some(mirror) = named.or_else(|| lines.is_empty().then(|| default_mirror(SUITE)).flatten()) {
            lines = vec![format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")];
            // A mirror that a person names has what that person wants of it.
            lines.extend(is_default.then(|| format!("deb [signed-by={KEYRING}] {SECURITY} {SUITE}-security main\n")));
        }
        ensure!(!lines.is_empty(), "no mirror of {SUITE} is known here; name one with REFLASH_MIRROR=http://...");
        let sources = lines.concat();
        std::fs::write(root.join("etc/sources.list"), sources)?;
        std::fs::write(root.join("status"), "")?;
        let apt = Self { root };
        let mode = has_kernel.then_some("APT::Update::Error-Mode=any");
        run(
            "kernel-apt-update",
            apt.command("apt-get").args(mode.iter().flat_map(|mode| ["-o", *mode])).arg("update"),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.root.join(name).display().to_string();
        for (key, value) in [
            ("Dir::State::lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("Dir::Etc::SourceList", path("etc/sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Architectures", "amd64".to_owned()),
            // root writes below the work directory, where the sandbox user of apt may not.
            ("APT::Sandbox::User", "root".to_owned()),
            // A build must not hang for long at a network that swallows everything.
            ("Acquire::http::Timeout", "20".to_owned()),
            ("Acquire::https::Timeout", "20".to_owned()),
            ("Acquire::Retries", "1".to_owned()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::{Kernel, LOOK_AFTER, age, file_of, kept_or_renewed};
    use std::path::PathBuf;
    use std::time::Duration;

    fn kernel(release: &str) -> Kernel {
        Kernel { release: release.into(), vmlinuz: PathBuf::new(), modules: PathBuf::new() }
    }

    /// The kernel of the first day was used for ever.
    #[test]
    fn an_old_kernel_is_renewed_and_kept_where_that_cannot_be_done() {
        let got = |kept: Option<&str>, age, renewed: Option<&str>| {
            let renew = |_: Option<&Kernel>| renewed.map(kernel).ok_or_else(|| anyhow::anyhow!("no network"));
            kept_or_renewed(kept.map(kernel), age, renew).map(|kernel| kernel.release).ok()
        };
        let young = Duration::from_hours(24);
        assert_eq!(got(Some("1"), young, Some("2")).as_deref(), Some("1"));
        assert_eq!(got(Some("1"), LOOK_AFTER, Some("2")).as_deref(), Some("2"));
        assert_eq!(got(Some("1"), LOOK_AFTER, None).as_deref(), Some("1"));
        assert_eq!(got(None, young, Some("2")).as_deref(), Some("2"));
        assert_eq!(got(None, young, None), None);
        assert_eq!(age(&PathBuf::from("/nonexistent")), Duration::MAX);
    }

    #[test]
    fn a_package_is_known_by_the_name_of_its_file() {
        let printed = "'http://deb.example/pool/l/linux-image_6.1.158-1_amd64.deb' linux-image_6.1.158-1_amd64.deb 7 \
                       SHA256:00\n";
        assert_eq!(file_of(printed).as_deref(), Some("linux-image_6.1.158-1_amd64.deb"));
        assert_eq!(file_of("E: none\n"), None);
    }
}
