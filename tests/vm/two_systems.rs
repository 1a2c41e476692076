//! Two systems: a release that panics, hangs, or is never good is gone back from by GRUB alone, and an undo is a
//! switch.

use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, ask, expect};
use super::update::COME_UP;

/// What GRUB says when it goes back.
const BACK: &str = "going back to the one before it";

/// Releases that do not come up, each with what it shows.
const BAD: [(&str, Behaviour, &str); 3] = [
    ("2", Behaviour::Panic, "tiny system 2 panics"),
    ("3", Behaviour::NeverGood, "does not call itself good"),
    ("4", Behaviour::Hang, "tiny system 4 hangs"),
];

fn bad_releases_are_gone_back_from(bad: &[(&str, Behaviour, &str)], firmware: GuestFirmware, name: &str) {
    let mut robot = Robot::with_two_systems(Behaviour::Good, firmware, 1);
    let mut vm = robot.start(name);
    expect(&vm, &["reason: tries", "two systems: GRUB starts number 1", "starting it", "tiny system 1 is up"]);
    for (version, behaviour, shown) in bad {
        robot.publish(version, *behaviour);
        ask(&mut vm, "reflash request");
        vm.type_text("reboot -f\n").unwrap();
        expect(&vm, &["reason: requested", &format!("{version} is installed"), shown, BACK]);
        // No recovery comes in between.
        let between = expect(&vm, &["tiny system 1 is up"]);
        assert!(!between.contains("Recovery, reason") && !between.contains("u: Undo"), "{between}");
        let status = ask(&mut vm, "reflash status");
        assert!(status.contains("system 1 of two, which GRUB starts"), "{status}");
        assert!(status.contains(&format!("refused releases, by serial: {}", refused(version))), "{status}");
        assert!(status.contains(&format!("release {version} (serial {version}), which was taken back")), "{status}");
    }
    robot.publish("5", Behaviour::Good);
    ask(&mut vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "5 is installed", "tiny system 5 is up"]);
    let status = ask(&mut vm, "reflash status; reflash verify");
    assert!(status.contains("system 2 of two, which GRUB starts") && status.contains("equals release 5"), "{status}");
    assert!(status.contains("leads back to 1 (serial 1); it is the other system"), "{status}");
    // Back without a network, and nothing is written.
    robot.stop_serving();
    ask(&mut vm, "reflash request undo");
    vm.type_text("reboot -f\n").unwrap();
    let shown = expect(&vm, &["reason: requested", "1 is back after", "tiny system 1 is up"]);
    assert!(!shown.contains("[6/8] write"), "{shown}");
    // The environment is lost: the system that was good last is the one that is active.
    vm.cut_power();
    xtask::disk::write_environment(&robot.disk, &[0; 512]).unwrap();
    vm = robot.start(name);
    expect(&vm, &["Recovery, reason: env-lost", "two systems: GRUB starts number 1", "is intact: starting it"]);
    expect(&vm, &["tiny system 1 is up"]);
    vm.cut_power();
}

fn refused(until: &str) -> String {
    (2..=until.parse().unwrap()).map(|serial: u64| serial.to_string()).collect::<Vec<_>>().join(", ")
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_bad_release_on_the_second_system_is_gone_back_from() {
    bad_releases_are_gone_back_from(&BAD[..1], GuestFirmware::Uefi, "two-systems");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_bad_releases_in_turns_are_gone_back_from_on_bios() {
    bad_releases_are_gone_back_from(&BAD, GuestFirmware::Bios, "two-systems-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_bad_releases_in_turns_are_gone_back_from_on_uefi() {
    bad_releases_are_gone_back_from(&BAD, GuestFirmware::Uefi, "two-systems-uefi");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_other_system_is_written_while_this_one_works_and_one_boot_starts_it() {
    let mut robot = Robot::with_two_systems(Behaviour::Good, GuestFirmware::Bios, 1);
    let mut vm = robot.start("beside");
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    robot.publish("2", Behaviour::Panic);
    ask(&mut vm, COME_UP);
    // Cut while it is written: this system goes on, and what was written stays.
    vm.type_text("reflash update\n").unwrap();
    expect(&vm, &["write"]);
    vm.cut_power();
    vm = robot.start("beside");
    let shown = expect(&vm, &["tiny system 1 is up"]);
    assert!(!shown.contains("Recovery, reason"), "{shown}");
    ask(&mut vm, COME_UP);
    let written = ask(&mut vm, "reflash update");
    assert!(written.contains("is written to the other system") && written.contains("exit-0"), "{written}");
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("system 1 of two, which GRUB starts"), "{status}");
    // The one boot, which fails, and the one back.
    vm.type_text("reflash update --apply\n").unwrap();
    let shown = expect(&vm, &["the next start is of it", "tiny system 2 panics", BACK, "tiny system 1 is up"]);
    assert!(!shown.contains("Recovery, reason"), "{shown}");
    ask(&mut vm, COME_UP);
    let refused = ask(&mut vm, "reflash update; reflash status");
    assert!(refused.contains("refused releases, by serial: 2"), "{refused}");
    // The next one is good, and needs one boot.
    robot.publish("3", Behaviour::Good);
    vm.type_text("reflash update --apply\n").unwrap();
    let shown = expect(&vm, &["the next start is of it", "tiny system 3 is up"]);
    assert!(!shown.contains("Recovery, reason"), "{shown}");
    ask(&mut vm, COME_UP);
    let status = ask(&mut vm, "reflash update; reflash status; reflash verify");
    assert!(status.contains("system 2 of two, which GRUB starts") && status.contains("equals release 3"), "{status}");
    assert!(status.contains("nothing is newer than 3 (serial 3)"), "{status}");
    vm.cut_power();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_is_given_a_second_system_and_loses_it_again() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("relayout");
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    ask(&mut vm, COME_UP);
    ask(&mut vm, "echo of the owner >/d/kept; sync");
    let asked = ask(&mut vm, "reflash request one-system");
    assert!(asked.contains("already") && asked.contains("exit-1"), "{asked}");
    let asked = ask(&mut vm, "reflash request two-systems");
    assert!(asked.contains("the next boot makes two systems") && asked.contains("exit-0"), "{asked}");
    robot.publish("2", Behaviour::Good);
    vm.type_text("sync; reboot -f\n").unwrap();
    let shown = expect(&vm, &["reason: requested", "the disk has two systems", "tiny system 1 is up"]);
    assert!(!shown.contains("network:"), "{shown}");
    ask(&mut vm, COME_UP);
    let status = ask(&mut vm, "reflash status; cat /d/kept");
    assert!(status.contains("system 1 of two, which GRUB starts") && status.contains("of the owner"), "{status}");
    vm.type_text("reflash update --apply\n").unwrap();
    expect(&vm, &["the next start is of it", "tiny system 2 is up"]);
    let asked = ask(&mut vm, "reflash request one-system");
    assert!(asked.contains("GRUB starts the second system") && asked.contains("exit-1"), "{asked}");
    ask(&mut vm, "reflash request undo");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "1 is back after", "tiny system 1 is up"]);
    ask(&mut vm, "reflash request one-system");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "the disk has one system", "tiny system 1 is up"]);
    ask(&mut vm, COME_UP);
    let status = ask(&mut vm, "reflash status; reflash verify; cat /d/kept");
    assert!(!status.contains("of two") && status.contains("equals release 1"), "{status}");
    assert!(status.contains("of the owner"), "{status}");
    vm.cut_power();
}
