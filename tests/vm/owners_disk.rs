//! Disks that their owner has changed: partitions made anew by hand, and copies of the whole disk beside it.

use std::process::Command;

use reflash::boot::grubenv::names;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, expect};

/// `fdisk` and `sfdisk` make a partition without a name: who lets data grow by hand deletes it and makes it anew.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_data_partition_without_its_name_keeps_no_robot_from_recovering() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("nameless-data");
    expect(&vm, &["tiny system 1 is up"]);
    vm.cut_power();
    let disk = robot.disk.to_str().unwrap();
    let listed = Command::new("sfdisk").args(["--dump", disk]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed.lines().find(|line| line.contains("name=\"data\"")).expect("a data partition");
    let number = line.split(" : ").next().unwrap().trim_end().strip_prefix(disk).unwrap();
    let renamed = Command::new("sfdisk").args(["--part-label", disk, number, ""]).output().unwrap();
    assert!(renamed.status.success(), "{renamed:?}");
    robot.spoil_on("system", "/padding");
    disk::change_environment(&robot.disk, &[(names::TRIES, "0")]).unwrap();
    let vm = robot.start("nameless-data");
    expect(&vm, &["reason: tries", "has no partition named \"data\"", "1 is installed", "tiny system 1 is up"]);
}

/// Firmware starts from whichever of two disks it finds first, and GRUB counts on that one, while recovery and system
/// take the one that the robot remembers.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_clone_that_firmware_prefers_does_not_keep_the_robot_in_recovery() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("clone");
    expect(&vm, &["tiny system 1 is up"]);
    vm.cut_power();
    let clone = robot.disk.with_file_name("clone.img");
    std::fs::copy(&robot.disk, &clone).unwrap();
    disk::change_environment(&clone, &[(names::TRIES, "0")]).unwrap();
    let drive = format!("file={},if=none,id=clone,format=raw,cache=unsafe", clone.display());
    let device = "virtio-blk-pci,drive=clone,serial=clone0,bootindex=0";
    let vm = robot.start_with("clone", &["-drive", &drive, "-device", device]);
    expect(&vm, &["not the disk of this robot", "GRUB was loaded from a copy of this disk", "tiny system 1 is up"]);
}
