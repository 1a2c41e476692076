//! What tests of virtual machines start from. The first test of a process that needs a part builds it; a part whose
//! inputs have not changed since an earlier process is used as it is. So any test may run alone, and in any order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use reflash::release::manifest::manifest_path;
use xtask::bootstrap_files;
use xtask::demo::{self, BuiltDemo, RobotParts};
use xtask::host_packages::{Need, ensure_installed};
use xtask::paths::Paths;

/// The agent, GRUB, the recovery and a key pair.
pub fn robot_parts() -> &'static RobotParts {
    static PARTS: LazyLock<RobotParts> = LazyLock::new(|| {
        let _guard = lock();
        ensure_installed(&[Need::Media], true).unwrap();
        demo::build_robot_parts(&Paths::of_checkout(), true).unwrap()
    });
    &PARTS
}

/// Installs the tools that look at disks and make USB drives, when they are missing.
pub fn install_disk_tools() {
    static DONE: LazyLock<()> = LazyLock::new(|| ensure_installed(&[Need::Test], true).unwrap());
    LazyLock::force(&DONE);
}

/// The files with which a release provisions disks: boot code, the recovery, and file systems to begin with.
pub fn bootstrap_files() -> &'static [(String, PathBuf)] {
    static FILES: LazyLock<Vec<(String, PathBuf)>> = LazyLock::new(|| {
        let parts = robot_parts();
        let _guard = lock();
        let paths = Paths::of_checkout();
        bootstrap_files::files(&paths, &parts.grub, &parts.recovery, &paths.dist().join("kit")).unwrap()
    });
    &FILES
}

/// The demonstration's system, Debian, and a release of it. The first build on a machine takes minutes, and needs root.
pub fn demonstration_release() -> &'static BuiltDemo {
    static BUILT: LazyLock<BuiltDemo> = LazyLock::new(|| {
        let _guard = lock();
        demo::build_all(&Paths::of_checkout(), true).unwrap()
    });
    &BUILT
}

/// Runs the demonstration, once per process, and keeps its disk for [`copy_of_installed_disk`].
pub fn run_demonstration() {
    static DONE: LazyLock<()> = LazyLock::new(|| {
        let kept = path_of_installed_disk();
        let _guard = lock();
        let paths = Paths::of_checkout();
        demo::run(&paths, true).unwrap();
        let new = kept.with_added_extension("new");
        copy_sparse(&paths.dist().join("disk.img"), &new);
        // Disks of earlier releases are of no more use.
        for entry in std::fs::read_dir(kept.parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            if path != new && path.extension().is_some_and(|extension| extension == "img") {
                std::fs::remove_file(path).unwrap();
            }
        }
        std::fs::rename(new, kept).unwrap();
    });
    LazyLock::force(&DONE);
}

/// Writes to `out` a disk on which the demonstration ended well with the release as it is now.
pub fn copy_of_installed_disk(out: &Path) {
    let kept = path_of_installed_disk();
    if !kept.exists() {
        run_demonstration();
    }
    copy_sparse(&kept, out);
}

/// The name has a digest of everything that decides what the demonstration leaves on the disk. The address of its
/// server is a new one every time and does not count.
fn path_of_installed_disk() -> PathBuf {
    let (built, paths) = (demonstration_release(), Paths::of_checkout());
    let mut inputs = blake3::Hasher::new();
    for path in [
        &built.release.join(manifest_path("stable")),
        &built.parts.recovery.initramfs,
        &built.parts.recovery.vmlinuz,
        &built.parts.grub.efi,
        &paths.root.join("xtask/recipes/layout.toml"),
    ] {
        inputs.update(blake3::hash(&std::fs::read(path).unwrap()).as_bytes());
    }
    inputs.update(demo::robot_config("").as_bytes());
    let directory = directory();
    directory.join(format!("installed-{}.img", inputs.finalize().to_hex()))
}

pub fn copy_sparse(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap().success());
}

/// Keeps other test processes of this checkout from building the same files at the same time.
fn lock() -> File {
    let file = File::create(directory().join("lock")).unwrap();
    file.lock().unwrap();
    file
}

fn directory() -> PathBuf {
    let directory = Paths::of_checkout().work().join("vm-tests");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
