//! A release that never comes up is taken back without a network, and one that was good gets a safe start instead.
//!
//! The system is the tiny one of `xtask/src/test_system.rs`; GRUB, recovery, releases and undo are the real ones.

use reflash::boot::grubenv::names;
use xtask::demo;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::{GuestFirmware, RunningMachine};

use super::fallback::{Robot, ask, expect};

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_boot_script_remembers_what_was_good_makes_a_safe_start_and_offers_an_undo() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("script");
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    let known = ask(&mut vm, "cat /proc/cmdline; reflash env");
    assert!(!known.contains("reflash.safe="), "{known}");
    vm.cut_power();

    // A safe start counts nothing, and comes once.
    disk::change_environment(&robot.disk, &[(names::NEXT_ENTRY, "safe"), (names::SAFE, "12")]).unwrap();
    vm = robot.start("script");
    expect(&vm, &["Safe start 12 of the system", "tiny system 1 is up"]);
    let seen = ask(&mut vm, "cat /proc/cmdline");
    assert!(seen.contains(" reflash.safe=12"), "{seen}");
    vm.cut_power();
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!(env.get(names::NEXT_ENTRY).unwrap_or_default(), "", "{env:?}");

    // What is not a number stays off the command line.
    let hostile = [(names::NEXT_ENTRY, "safe"), (names::SAFE, "1 panic=0"), (names::UNDO, "1 x")];
    disk::change_environment(&robot.disk, &hostile).unwrap();
    vm = robot.start("script");
    let shown = expect(&vm, &["Safe start 1 of the system", "tiny system 1 is up"]);
    assert!(!shown.contains("u: Undo"), "{shown}");
    let seen = ask(&mut vm, "cat /proc/cmdline");
    assert!(seen.contains(" reflash.safe=1") && !seen.contains("panic=0"), "{seen}");
    vm.cut_power();

    // The next start counts, and keeps that this release was good; the menu offers the undo.
    disk::change_environment(&robot.disk, &[(names::UNDO, "7"), (names::BOOT_OK, "1")]).unwrap();
    let vm = robot.start("script");
    expect(&vm, &["u: Undo, back to release 7", "tiny system 1 is up"]);
    drop(vm);
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!(env.get(names::WAS_GOOD), Some("1"), "{env:?}");
    let vm = robot.start("script");
    expect(&vm, &["u: Undo, back to release 7"]);
    let mut vm = vm;
    vm.type_text("u").unwrap();
    // Nothing is kept, so the agent says why there is no undo, starts the system, and takes the offer away.
    expect(
        &vm,
        &["reason: menu", "no undo: no release before this one", "is intact: starting it", "tiny system 1 is up"],
    );
    drop(vm);
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!((env.get(names::REQUEST), env.get(names::UNDO)), (None, None), "{env:?}");
}

/// A robot on which release 1 was good, and release 2 was installed since. Its last output is that 2 is being started.
/// The image of release 1 is in `first.img` beside that of release 2.
fn updated(name: &str, second: Behaviour, tries: u8) -> (Robot, RunningMachine) {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, tries);
    let mut vm = robot.start(name);
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    std::fs::copy(robot.image(), robot.image().with_file_name("first.img")).unwrap();
    robot.publish("2", second);
    ask(&mut vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "was good before", "2 is installed"]);
    (robot, vm)
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_release_that_never_comes_up_is_taken_back_without_a_network_whatever_is_cut() {
    let (mut robot, mut vm) = updated("never-up", Behaviour::Panic, 1);
    robot.stop_serving();
    expect(&vm, &["tiny system 2 panics"]);
    let first = "undo: 2 is taken back, since none of its starts was ever good; going back to 1 (serial 1)";
    let shown = expect(&vm, &["reason: tries", "was never good; 1 (serial 1) is kept", first, "[6/8] write"]);
    assert!(!shown.contains("network:"), "{shown}");
    // In the middle of it.
    vm.cut_power();
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!(env.get(names::REQUEST), Some("undo:2"), "{env:?}");
    vm = robot.start("never-up");
    let again = "undo: 2 is taken back, since an undo of it was cut short; going back to 1 (serial 1)";
    let shown = expect(&vm, &["reason: recovering", again, "1 is back after", "tiny system 1 is up"]);
    assert!(!shown.contains("network:"), "{shown}");
    let status = ask(&mut vm, "reflash status");
    for text in [
        "1 (serial 1), channel stable",
        "a boot of it called itself good",
        "refused releases, by serial: 2",
        "instead of release 2 (serial 2), which was taken back",
    ] {
        assert!(status.contains(text), "{text}: {status}");
    }
    vm.cut_power();
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!((env.get(names::TRIES), env.get(names::GOOD)), (Some("1"), Some("1")), "{env:?}");
    assert_eq!((env.get(names::REQUEST), env.get(names::UNDO)), (None, None), "{env:?}");
    demo::check_system(&robot.disk, &robot.image().with_file_name("first.img")).unwrap();
}

/// A drive that hung answers after a restart, and everything that the undo needs lies on it.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_undo_that_fails_by_the_disk_is_tried_again_after_a_restart_without_a_network() {
    let (mut robot, mut vm) = updated("failing-disk", Behaviour::Panic, 1);
    robot.stop_serving();
    expect(&vm, &["tiny system 2 panics"]);
    vm.cut_power();
    robot.refuse_writes_of(Some("system"));
    // As often as `boot.recoveries` says; after that what is intact is tried again, and it all begins anew.
    for _ in 0..2 {
        vm = robot.start("failing-disk");
        expect(&vm, &["1 (serial 1) is kept", "going back to 1 (serial 1)", "the undo failed"]);
        expect(&vm, &["recovery cannot go on", "restarting in 10 minutes"]);
        vm.cut_power();
        let env = disk::read_environment(&robot.disk).unwrap();
        assert_eq!(env.get(names::REQUEST), Some("undo:2"), "{env:?}");
    }
    vm = robot.start("failing-disk");
    let shown = expect(&vm, &["the undo failed", "2 is intact: starting it"]);
    assert!(!shown.contains("restarting in"), "{shown}");
    vm.cut_power();
    robot.refuse_writes_of(None);
    let vm = robot.start("failing-disk");
    expect(&vm, &["1 is back after", "tiny system 1 is up"]);
    demo::check_system(&robot.disk, &robot.image().with_file_name("first.img")).unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_release_that_was_good_once_gets_a_safe_start_and_is_not_taken_back() {
    let (mut robot, mut vm) = updated("good-once", Behaviour::GoodOnce, 1);
    expect(&vm, &["tiny system 2 is up"]);
    vm.type_text("reboot -f\n").unwrap();
    // The server still has it, and nothing newer.
    expect(&vm, &["tiny system 2 panics from now on", "reason: tries", "was good before"]);
    expect(&vm, &["there is no newer release", "safe start 1", "Safe start 1 of the system"]);
    expect(&vm, &["tiny system 2 is up in a safe start"]);
    let status = ask(&mut vm, "reflash status; cat /proc/cmdline");
    assert!(status.contains("safe starts since the last good boot: 1"), "{status}");
    assert!(status.contains(" reflash.safe=1") && !status.contains("taken back"), "{status}");
    // Without a server too. Another safe start so soon would show nothing new: the robot first asks for an hour.
    robot.stop_serving();
    vm.type_text("reboot -f\n").unwrap();
    let rests = "no release is available; the system is started once more in 60 minutes";
    expect(&vm, &["tiny system 2 panics from now on", "reason: tries", rests]);
    vm.cut_power();
    // Hours later it is clear that its surroundings are not at fault.
    disk::change_environment(&robot.disk, &[(names::SAFE, "3")]).unwrap();
    let vm = robot.start("good-once");
    expect(&vm, &["reason: tries", "and 3 safe starts changed nothing"]);
    expect(&vm, &["1 is back after", "tiny system 1 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_person_takes_a_release_back_and_asks_for_it_again() {
    let (mut robot, mut vm) = updated("by-request", Behaviour::Good, 2);
    expect(&vm, &["u: Undo, back to release 1", "tiny system 2 is up"]);
    let asked = ask(&mut vm, "reflash status; reflash request undo");
    assert!(asked.contains("leads back to 1 (serial 1)"), "{asked}");
    assert!(asked.contains("the next boot goes back to 1 (serial 1)"), "{asked}");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "2 is taken back, since that was asked for", "1 is back after"]);
    expect(&vm, &["tiny system 1 is up"]);
    let asked = ask(&mut vm, "reflash request undo");
    assert!(asked.contains("no undo is possible") && asked.contains("exit-1"), "{asked}");
    // What was taken back is not chosen again by itself.
    let asked = ask(&mut vm, "reflash request");
    assert!(asked.contains("goes to recovery"), "{asked}");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "the release is refused", "1 is intact: starting it", "tiny system 1 is up"]);
    ask(&mut vm, "reflash request reflash --serial 2");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["2 is installed", "u: Undo, back to release 1"]);
    // And by the menu.
    vm.type_text("u").unwrap();
    expect(&vm, &["reason: menu", "2 is taken back, since that was asked for", "tiny system 1 is up"]);
    vm.cut_power();
    robot.stop_serving();
}
