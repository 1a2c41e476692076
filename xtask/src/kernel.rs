//! A Debian kernel that is not installed: it is downloaded through an apt with its own state, and unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

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
/// used.
///
/// # Errors
/// When no mirror is known, or a download fails.
pub fn fetch(paths: &Paths) -> Result<Kernel> {
    let base = paths.work().join("kernel");
    let marker = base.join("current");
    if let Some(kernel) = std::fs::read_to_string(&marker).ok().and_then(|release| unpacked(&base, release.trim()).ok())
    {
        return Ok(kernel);
    }
    step("download and unpack the recovery kernel", || {
        let apt = Apt::open(paths)?;
        let depends = output(apt.command("apt-cache").args(["depends", PACKAGE]))?;
        let package = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{PACKAGE} depends on no kernel"))?
            .to_owned();
        let release = package.trim_start_matches("linux-image-").to_owned();
        let downloads = apt.root.join("downloads");
        std::fs::create_dir_all(&downloads)?;
        run("kernel-download", apt.command("apt-get").args(["download", &package]).current_dir(&downloads))?;
        let deb = std::fs::read_dir(&downloads)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&package)))
            .context("apt-get download left no package")?;
        let (root, new) = (base.join(&release), base.join(format!("{release}.new")));
        let _ = std::fs::remove_dir_all(&new);
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&new)?;
        run("kernel-unpack", Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&new))?;
        run("depmod", Command::new("depmod").arg("-b").arg(&new).arg(&release))?;
        std::fs::rename(new, &root)?;
        std::fs::write(&marker, &release)?;
        unpacked(&base, &release)
    })
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
    fn open(paths: &Paths) -> Result<Self> {
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
        if let Some(mirror) = named.or_else(|| lines.is_empty().then(|| default_mirror(SUITE)).flatten()) {
            lines = vec![format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")];
        }
        ensure!(!lines.is_empty(), "no mirror of {SUITE} is known here; name one with REFLASH_MIRROR=http://...");
        let sources = lines.concat();
        std::fs::write(root.join("etc/sources.list"), sources)?;
        std::fs::write(root.join("status"), "")?;
        let apt = Self { root };
        run("kernel-apt-update", apt.command("apt-get").arg("update"))?;
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
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command
    }
}
