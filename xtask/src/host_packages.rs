//! Packages that a command needs on this machine. Missing ones are listed, and installed once a person at the terminal
//! agrees.

use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::invocation;
use crate::step::{run, step};

/// How long other programs may hold apt's locks: an upgrade of a whole machine takes minutes.
const LOCK_PATIENCE: Duration = Duration::from_mins(15);
const LOCK_PAUSE: Duration = Duration::from_secs(3);

/// Reasons for which Debian and Ubuntu packages are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// C code of the agent (ring, zstd) for musl.
    Agent,
    /// The musl target without rustup: Debian's compiler and the sources of its library.
    AgentWithoutRustup,
    /// Kernel tables of the initramfs.
    Initramfs,
    /// Building of system images.
    Image,
    /// Playbooks of a recipe, run by Ansible.
    Ansible,
    /// Publishing as an OSTree repository.
    OstreeRepository,
    /// Signing of an OSTree repository.
    OstreeSigning,
    /// Building of containers, for tests.
    Containers,
    /// Building of applications of flatpak, for tests.
    Flatpak,
    /// Systems that exist already, in place of one that is bootstrapped: container images, squashfs files.
    Source,
    /// Boot images and file systems of a disk.
    Disk,
    /// Building of boot media.
    Media,
    /// Running of virtual machines.
    Vm,
    /// Measurements of the benchmark.
    Bench,
    /// Tools that the benchmark compares with; two more come from cargo.
    Peers,
    /// Tools that the tests compare with, servers for network namespaces, a cache, a store, and a browser for the
    /// station page.
    Test,
}

impl Need {
    /// Returns the packages by their names in Debian and Ubuntu.
    #[must_use]
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Agent => &["musl-tools", "gcc", "make"],
            Self::AgentWithoutRustup => &["rustc-web", "cargo-web", "rust-web-src", "libunwind-14-dev"],
            // Debian compresses the modules of its kernels with xz from version 13 on.
            Self::Initramfs => &["kmod", "dpkg", "apt", "debootstrap", "debian-archive-keyring", "xz-utils"],
            Self::Image => &[
                "mmdebstrap",
                "debootstrap",
                "debian-archive-keyring",
                "ostree",
                "systemd-container",
                "e2fsprogs",
                "xz-utils",
            ],
            Self::Ansible => &["ansible-core"],
            Self::OstreeRepository => &["ostree", "mount", "util-linux"],
            Self::OstreeSigning => &["gpg", "gpg-agent"],
            Self::Containers => &["buildah"],
            Self::Flatpak => &["flatpak"],
            Self::Source => &["skopeo", "squashfs-tools-ng", "xz-utils", "zstd", "bzip2", "coreutils"],
            Self::Disk => &["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "dosfstools", "mtools", "e2fsprogs"],
            Self::Media => &["xorriso", "mtools", "grub-pc-bin", "grub-efi-amd64-bin"],
            // busybox is for the test system of xtask/src/test_system.rs.
            Self::Vm => &["qemu-system-x86", "ovmf", "busybox-static"],
            Self::Bench => &["time", "nginx-light", "curl", "zstd", "util-linux", "diffutils", "rt-tests"],
            // The last three are for the tools that cargo builds.
            Self::Peers => &[
                "bmap-tools",
                "casync",
                "zsync",
                "swupdate",
                "cpio",
                "openssl",
                "libzstd-dev",
                "libssl-dev",
                "pkg-config",
            ],
            Self::Test => &[
                "minisign",
                "cpio",
                "dnsmasq-base",
                "iproute2",
                "gdisk",
                "fdisk",
                "e2fsprogs",
                "util-linux",
                "git",
                "grub-emu",
                "nginx-light",
                "chromium",
                "dosfstools",
                "exfatprogs",
                "mtools",
                // pip is for the store that xtask/src/test_tools.rs fetches.
                "python3-pip",
            ],
        }
    }
}

/// Makes sure that the packages for `needs` are installed.
///
/// # Errors
/// When something is missing and may not be installed; the error gives the command that would install it.
pub fn ensure_installed(needs: &[Need], assume_yes: bool) -> Result<()> {
    ensure!(
        Command::new("dpkg-query").arg("--version").output().is_ok_and(|output| output.status.success()),
        "this needs Debian or Ubuntu, and this host has no dpkg: build in a container (docs/ci/Containerfile)"
    );
    let wanted: BTreeSet<&str> = needs.iter().flat_map(|need| need.packages()).copied().collect();
    let missing: Vec<&str> = wanted.into_iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    eprintln!("Packages to install: {list}");
    let by_hand = format!("apt-get install --no-install-recommends {list}");
    ensure!(is_root(), "packages are installed as root: {}; or install them first: {by_hand}", as_root());
    if !assume_yes && !in_ci() && !confirmed()? {
        let unasked = if std::io::stdin().is_terminal() { "" } else { ", or give --yes (CI=true does the same)" };
        bail!("these packages are missing: {list}; install them with: {by_hand}{unasked}");
    }
    step("install packages", || {
        once_unlocked("apt-get update", apt().arg("update"))?;
        once_unlocked("apt-get install", apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing))
    })
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Messages are looked at.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

/// Runs apt-get, again and again while something else holds its locks: a fresh machine often installs its updates by
/// itself. apt's own `DPkg::Lock::Timeout` does not wait for the lock of the package lists.
fn once_unlocked(name: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let mut is_told = false;
    loop {
        match run(name, command) {
            Err(error) if is_locked(&format!("{error:#}")) && started.elapsed() < LOCK_PATIENCE => {
                if !std::mem::replace(&mut is_told, true) {
                    eprintln!(
                        "  another program installs packages: waiting for up to {} min",
                        LOCK_PATIENCE.as_secs() / 60
                    );
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            ended => return ended,
        }
    }
}

fn is_locked(message: &str) -> bool {
    message.contains("Could not get lock")
}

/// Whether this runs in continuous integration, where there is no person to ask.
#[must_use]
pub fn in_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

/// Whether this process may mount, make namespaces and install.
#[must_use]
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Returns the command line with which this command is carried out as root. `sudo` alone has another search path and
/// another home, so that it finds neither rustup's cargo nor what cargo installed.
#[must_use]
pub fn as_root() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).map(|argument| invocation::quoted(&argument)).collect();
    format!("sudo env \"PATH=$PATH\" \"HOME=$HOME\" {} {}", invocation::program(), arguments.join(" "))
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Install them now? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::{as_root, is_locked};

    #[test]
    fn a_lock_is_told_from_other_failures() {
        let lists = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 4711 (apt-get)";
        assert!(is_locked(lists) && is_locked(&lists.replace("apt/lists/lock", "dpkg/lock-frontend")));
        assert!(!is_locked("E: Unable to locate package nonesuch"));
    }

    #[test]
    fn the_advice_can_be_pasted() {
        assert!(as_root().starts_with("sudo env \"PATH=$PATH\" \"HOME=$HOME\" "));
    }
}
