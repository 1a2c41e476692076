//! A disk that goes away with the reset of its bus and comes back late.

use std::time::Duration;

use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, expect};

/// <https://github.com/openzfs/zfs/issues/11663>, <https://github.com/lf-edge/eve/pull/4533>: a USB bridge that takes its
/// time after the reset, here longer than any timeout that the recovery once had.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_disk_that_comes_back_after_more_than_a_minute_is_recovered() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let vm = robot.start_from_usb("late-disk");
    expect(&vm, &["Recovery, reason: tries", "reason: tries"]);
    vm.pull_disk().unwrap();
    let shown = expect(&vm, &["waiting for the disk", "still waiting for the disk, after 60 s"]);
    assert!(!shown.contains("recovery slot"), "{shown}");
    expect(&vm, &["Disks present"]);
    std::thread::sleep(Duration::from_secs(20));
    vm.plug_disk(&robot.disk).unwrap();
    expect(&vm, &["recovery slot a", "is installed", "tiny system 1 is up"]);
}
