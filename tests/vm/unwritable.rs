//! A disk that can only be read, as flash memory that has worn out: nothing can be counted, stored or mended, and the
//! robot works all the same.

use reflash::boot::grubenv::names;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, ask, expect};

/// <https://github.com/beagleboard/beaglebone-blue/issues/40>, <https://github.com/friendlyarm/linux-3.4.y/issues/15>: an
/// eMMC or card that takes no write any more.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_whose_disk_can_only_be_read_works_without_grubs_counts() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("unwritable");
    expect(&vm, &["tiny system 1 is up"]);
    vm.cut_power();
    drop(vm);
    // Died while a start was being counted: the count can be neither raised nor taken down any more.
    disk::change_environment(&robot.disk, &[(names::TRIES, "1"), (names::BOOT_OK, "0")]).unwrap();
    robot.stop_serving();
    robot.wear_out();
    let mut vm = robot.start("unwritable");
    let shown = expect(&vm, &["Recovery, reason: env-unwritable", "starting it without GRUB"]);
    assert!(shown.contains("nothing can be stored on this disk"), "{shown}");
    assert!(shown.contains("the system is intact, on a disk that cannot be written"), "{shown}");
    expect(&vm, &["tiny system 1 is up"]);
    let line = ask(&mut vm, "cat /proc/cmdline; ls /run/reflash; cat /run/reflash/boot.json");
    assert!(line.contains("reflash.system=") && !line.contains("reflash.reason"), "{line}");
    assert!(line.contains("could not be recorded"), "{line}");
}
