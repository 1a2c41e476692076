//! A USB drive with a release, on a robot that has no network or no server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xtask::test_system::Behaviour;
use xtask::vm::{GuestFirmware, RunningMachine};

use super::built::install_disk_tools;
use super::fallback::{Robot, ask, expect};

/// Makes a USB drive as a person would: FAT in the first partition, as it is sold, and the tree copied to it.
fn usb_drive_with(tree: Option<&Path>, folder: &Path, name: &str) -> PathBuf {
    const MIB: u64 = 1 << 20;
    install_disk_tools();
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

fn request_reflash(vm: &mut RunningMachine) {
    ask(vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
}

fn pull_usb_drive(vm: &RunningMachine) {
    vm.pull_usb_drive().unwrap();
    // QEMU removes the drive when the guest has released it.
    std::thread::sleep(Duration::from_secs(3));
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_without_a_network_takes_the_release_from_a_usb_drive() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("usb-drive");
    expect(&vm, &["reason: tries", "tiny system 1 is up"]);
    robot.publish("2", Behaviour::Good);
    let release = usb_drive_with(Some(&robot.tree()), folder.path(), "release");
    vm.unplug_network().unwrap();
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested", "no link on"]);
    vm.plug_usb_drive(&release).unwrap();
    expect(&vm, &["has a release: it is asked first", "release 2 (serial 2)", "tiny system 2 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_usb_drive_with_an_older_release_does_not_stop_a_recovery() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("usb-drive-old");
    expect(&vm, &["reason: tries", "tiny system 1 is up"]);
    let old = usb_drive_with(Some(&robot.tree()), folder.path(), "old");
    robot.publish("2", Behaviour::Good);
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested", "tiny system 2 is up"]);

    vm.unplug_network().unwrap();
    request_reflash(&mut vm);
    expect(&vm, &["reason: requested"]);
    vm.plug_usb_drive(&old).unwrap();
    expect(&vm, &["older than the installed 2", "tiny system 2 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_usb_drive_replaces_a_server_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Uefi, 3);
    let release = usb_drive_with(Some(&robot.tree()), folder.path(), "release");
    let empty = usb_drive_with(None, folder.path(), "empty");
    robot.stop_serving();
    let vm = robot.start("usb-drive-uefi");
    expect(&vm, &["reason: tries", "asking http://"]);
    vm.plug_usb_drive(&empty).unwrap();
    expect(&vm, &["has no release, which would be in reflash/release/stable/manifest.json"]);
    pull_usb_drive(&vm);
    vm.plug_usb_drive(&release).unwrap();
    expect(&vm, &["has a release: it is asked first", "tiny system 1 is up"]);
}
