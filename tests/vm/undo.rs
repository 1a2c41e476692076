//! A release that never comes up is taken back without a network, and one that was good gets a safe start instead.
//!
//! The system is the tiny one of `xtask/src/test_system.rs`; GRUB, recovery, releases and undo are the real ones.

use reflash::boot::grubenv::names;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, ask, expect};

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_boot_script_remembers_what_was_good_makes_a_safe_start_and_offers_an_undo() {
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
    expect(&vm, &["reason: menu"]);
    drop(vm);
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!(env.get(names::REQUEST), Some("undo"), "{env:?}");
}
