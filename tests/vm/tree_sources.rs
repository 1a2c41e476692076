//! What a Dockerfile builds becomes a robot's system: from the Dockerfile of the manual to the boot.

use std::fs;
use std::path::Path;
use std::process::Command;

use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::host_packages::{Need, ensure_installed};
use xtask::image::{self, ImageOptions};
use xtask::paths::Paths;
use xtask::release::{self, Spec};
use xtask::vm::{RunningMachine, VirtualMachine};
use xtask::{disk, keygen};

use super::built;

/// Builds the example's Dockerfile as an archive beside it, on a base that stands for that of a registry. Without a
/// daemon, and with no more rights than a chroot needs.
fn build_container(example: &Path, base: &Path) {
    let buildah = |arguments: &[&str]| {
        let mut command = Command::new("buildah");
        let places = [("--root", "store"), ("--runroot", "run")];
        for (option, name) in places {
            command.arg(option).arg(example.join(name));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments).env("BUILDAH_ISOLATION", "chroot");
        let output = command.current_dir(example).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::rename(base, example.join("base.tar")).unwrap();
    fs::write(example.join("Base"), "FROM scratch\nADD base.tar /\n").unwrap();
    buildah(&["bud", "--tag", "base", "--file", "Base", "."]);
    fs::remove_file(example.join("base.tar")).unwrap();
    buildah(&["bud", "--tag", "robot", "--build-arg", "BASE=localhost/base", "."]);
    buildah(&["push", "robot", "oci-archive:robot.oci:1.0"]);
}

/// Runs a command in the robot's shell. Returns what it prints.
fn answer(robot: &mut RunningMachine, command: &str) -> String {
    robot.type_text(&format!("{command}; echo 'exi't-$?\n")).unwrap();
    robot.wait_for("exit-", BOOT_TIMEOUT).unwrap() + &robot.wait_for("\n", BOOT_TIMEOUT).unwrap()
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_what_the_dockerfile_of_the_manual_builds_starts_as_a_robots_system() {
    ensure_installed(&[Need::Image, Need::Source, Need::Containers], true).unwrap();
    let (paths, parts) = (Paths::of_checkout(), built::robot_parts());
    let directory = tempfile::tempdir_in(paths.work()).unwrap();
    let example = directory.path();
    for entry in fs::read_dir(paths.root.join("docs/examples/docker")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, example.join(path.file_name().unwrap())).unwrap();
    }
    let base = example.join("mmdebstrap.tar");
    let made = Command::new("mmdebstrap").args(["--quiet", "--variant=minbase", "bookworm"]).arg(&base).status();
    assert!(made.unwrap().success());
    build_container(example, &base);

    // The kernel for virtual machines, which is a tenth of the other, and a login without a password.
    let text = fs::read_to_string(example.join("robot.toml")).unwrap();
    let text = text
        .replace("linux-image-amd64", "linux-image-cloud-amd64")
        .replace("version = \"1.0.0\"\n", "version = \"1.0.0\"\ncommands = [\"passwd --delete root\"]\n");
    let text = text.replace("name = \"robot\"", "name = \"tree-source-test\"");
    fs::write(example.join("robot.toml"), text).unwrap();
    let image = example.join("system.img");
    let options = ImageOptions { assume_yes: true, ..ImageOptions::default() };
    let built = image::build(&paths, &example.join("robot.toml"), &image, &options).unwrap();
    let source = built.source.unwrap();
    assert!(source.digest.starts_with("sha256:") && source.name.starts_with("oci-archive:"), "{source:?}");

    let spec = Spec {
        product: demo::PRODUCT.into(),
        hardware: vec![demo::HARDWARE.into()],
        channel: "stable".into(),
        version: built.version,
        serial: None,
        image,
        ostree: Some((built.ostree_commit, built.ostree_ref)),
        files: Vec::new(),
        layout: Some(disk::read_layout(&paths.root.join("xtask/recipes/layout.toml")).unwrap()),
        chunk_bytes: None,
        level: release::DEFAULT_LEVEL,
        created_unix_s: None,
        allow: Vec::new(),
    };
    let tree = example.join("release");
    release::build(&spec, &keygen::load_secret(&parts.keys.secret).unwrap(), &tree).unwrap();
    let (_server, url) = demo::serve_to_guests(&tree).unwrap();
    let disk = example.join("disk.img");
    demo::robot_disk(&paths, parts, demo::robot_config(&url), &disk).unwrap();
    let mut robot = VirtualMachine::robot("tree-source", &disk).start().unwrap();
    robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    robot.wait_for("robot-demo0001 login:", BOOT_TIMEOUT).unwrap();
    robot.type_text("root\n").unwrap();
    robot.wait_for("root@robot-demo0001", BOOT_TIMEOUT).unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
    let started = answer(&mut robot, "systemctl is-active hello; journalctl -q -b -o cat -u hello");
    assert!(started.contains("hello from hello on Linux"), "{started}");
    let left = answer(&mut robot, "ls -A / /opt/hello /etc/hostname /usr/sbin/policy-rc.d; systemd-detect-virt -c");
    assert!(!left.contains("draft\n") && !left.contains(".dockerenv"), "{left}");
    assert!(left.matches("No such file").count() == 2 && left.contains("none"), "{left}");
    let good = answer(&mut robot, "systemctl start reflash-good; reflash status; systemctl --failed --no-legend");
    assert!(good.contains("called itself good") && !good.contains(" failed "), "{good}");
    robot.cut_power();
}
