//! Factory reset: it is confirmed twice, and nothing else deletes the data.

use std::process::Command;

use reflash::boot::grubenv::names;
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::Robot;

/// Runs debugfs on the data partition. Returns what it prints.
fn data(robot: &Robot, options: &[&str], request: &str) -> String {
    let start = disk::partition_range(&robot.disk, "data").unwrap().start;
    let device = format!("{}?offset={start}", robot.disk.display());
    let output = Command::new("debugfs").args(options).args(["-R", request, &device]).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_data_is_deleted_only_after_two_confirmations_and_then_even_across_a_power_cut() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("reset");
    vm.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    vm.cut_power();
    let precious = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(precious.path(), "precious").unwrap();
    data(&robot, &["-w"], &format!("write {} precious", precious.path().display()));
    let has_data = |robot: &Robot| data(robot, &["-c"], "stat precious").contains("Type: regular");
    assert!(has_data(&robot));

    // From the menu: Esc, two entries down. Half a confirmation changes nothing.
    let mut vm = robot.start("reset");
    vm.wait_for("Esc: menu", BOOT_TIMEOUT).unwrap();
    vm.type_text("\x1b").unwrap();
    vm.wait_for("Factory reset: delete", BOOT_TIMEOUT).unwrap();
    vm.type_text("\x0e\x0e\r").unwrap();
    vm.wait_for("To go on type: reset", BOOT_TIMEOUT).unwrap();
    vm.type_text("reset\n").unwrap();
    vm.wait_for("now type: delete", BOOT_TIMEOUT).unwrap();
    vm.type_text("yes\n").unwrap();
    vm.wait_for("nothing was changed", BOOT_TIMEOUT).unwrap();
    vm.wait_for("tiny system 1 is up", BOOT_TIMEOUT).unwrap();

    // From the running system.
    vm.type_text("reflash request factory-reset && reboot -f\n").unwrap();
    vm.wait_for("To go on type: reset", BOOT_TIMEOUT).unwrap();
    vm.type_text("reset\n").unwrap();
    vm.wait_for("now type: delete", BOOT_TIMEOUT).unwrap();
    vm.cut_power();
    assert!(has_data(&robot));
    let mut vm = robot.start("reset");
    // The request was for one boot.
    vm.wait_for("tiny system 1 is up", BOOT_TIMEOUT).unwrap();
    vm.type_text("reflash request factory-reset && reboot -f\n").unwrap();
    vm.wait_for("To go on type: reset", BOOT_TIMEOUT).unwrap();
    vm.type_text("reset\n").unwrap();
    vm.wait_for("now type: delete", BOOT_TIMEOUT).unwrap();
    vm.type_text("delete\n").unwrap();
    vm.wait_for("factory reset done", FLASH_TIMEOUT).unwrap();
    vm.wait_for("tiny system 1 is up", BOOT_TIMEOUT).unwrap();
    vm.cut_power();
    assert!(!has_data(&robot));
    demo::check_system(&robot.disk, &robot.image()).unwrap();

    // A confirmed reset that a power cut interrupted goes on by itself.
    data(&robot, &["-w"], &format!("write {} precious", precious.path().display()));
    disk::change_environment(&robot.disk, &[(names::RESET, "1"), (names::RECOVERING, "1")]).unwrap();
    let mut vm = robot.start("reset");
    vm.wait_for("factory reset done", FLASH_TIMEOUT).unwrap();
    vm.wait_for("tiny system 1 is up", BOOT_TIMEOUT).unwrap();
    vm.cut_power();
    assert!(!has_data(&robot));
}

/// Who asks for a reset because data acts up has a disk that may not take it, and goes away after the confirmation.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_factory_reset_that_cannot_be_done_is_given_up_and_the_system_starts() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("reset-in-vain");
    vm.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    vm.cut_power();
    robot.spoil_on("recovery", "/templates/data.ext4.zst");
    let confirmed = [(names::RESET, "1"), (names::RECOVERING, "1")];
    disk::change_environment(&robot.disk, &confirmed).unwrap();
    for _ in 0..2 {
        let mut vm = robot.start("reset-in-vain");
        vm.wait_for("recovery cannot go on: the factory reset is not done", FLASH_TIMEOUT).unwrap();
        vm.cut_power();
    }
    let vm = robot.start("reset-in-vain");
    vm.wait_for("the factory reset is given up", FLASH_TIMEOUT).unwrap();
    vm.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
}
