//! A stick with a release on a robot that has no network, or no server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::tiny::Behaviour;
use xtask::vm::{Firmware, Running};

use super::fallback::{Robot, ask, expect};

/// What a person makes: a stick as it is bought, with FAT in its first partition, and the tree copied to it.
fn stick_with(tree: Option<&Path>, folder: &Path, name: &str) -> PathBuf {
    const MIB: u64 = 1 << 20;
    let image = folder.join(name);
    std::fs::File::create(&image).unwrap().set_len(128 * MIB).unwrap();
    let run = |command: &mut Command| assert!(command.output().unwrap().status.success(), "{command:?}");
    run(Command::new("sh").arg("-c").arg(format!("echo '2048,,c' | sfdisk --label dos {}", image.display())));
    let blocks = (127 * MIB / 1024).to_string();
    run(Command::new("mkfs.vfat").args(["-F", "32", "--offset", "2048"]).arg(&image).arg(blocks));
    let partition = format!("{}@@1M", image.display());
    if let Some(tree) = tree {
        run(Command::new("mmd").args(["-i", &partition, "::reflash"]));
        run(Command::new("mcopy").args(["-s", "-i", &partition]).arg(tree).arg("::reflash/release"));
    }
    image
}

fn request_reflash(vm: &mut Running) {
    ask(vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
}

fn pull_stick(vm: &Running) {
    vm.pull_stick().unwrap();
    // QEMU takes it away when the guest has let go of it.
    std::thread::sleep(Duration::from_secs(3));
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn a_robot_without_network_takes_the_release_from_a_stick() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, Firmware::Bios, 3);
    let mut vm = robot.start("stick");
    expect(&vm, &["reason: tries", "tiny system 1 is up"]);
    robot.publish("2", Behaviour::Good);
    let release = stick_with(Some(&robot.tree()), folder.path(), "release");
    vm.unplug_network().unwrap();
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested", "no link on"]);
    vm.plug_stick(&release).unwrap();
    expect(&vm, &["has a release: it is asked first", "release 2 (serial 2)", "tiny system 2 is up"]);
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_stick_with_an_older_release_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, Firmware::Bios, 3);
    let mut vm = robot.start("stick-old");
    expect(&vm, &["reason: tries", "tiny system 1 is up"]);
    let old = stick_with(Some(&robot.tree()), folder.path(), "old");
    robot.publish("2", Behaviour::Good);
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested", "tiny system 2 is up"]);

    vm.unplug_network().unwrap();
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested"]);
    vm.plug_stick(&old).unwrap();
    expect(&vm, &["older than the installed 2", "tiny system 2 is up"]);
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_stick_helps_where_the_server_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, Firmware::Uefi, 3);
    let release = stick_with(Some(&robot.tree()), folder.path(), "release");
    let empty = stick_with(None, folder.path(), "empty");
    robot.stop_serving();
    let vm = robot.start("stick-uefi");
    expect(&vm, &["reason: tries", "asking http://"]);
    vm.plug_stick(&empty).unwrap();
    expect(&vm, &["has no release, which would be in reflash/release/stable/manifest.json"]);
    pull_stick(&vm);
    vm.plug_stick(&release).unwrap();
    expect(&vm, &["has a release: it is asked first", "tiny system 1 is up"]);
}
