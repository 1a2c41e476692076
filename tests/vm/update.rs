//! An update that is fetched while the system works: what it waits for, and that recovery needs no network for it.
//!
//! The system is the tiny one of `xtask/src/test_system.rs`; GRUB, recovery and releases are the real ones.

use reflash::boot::grubenv::names;
use reflash::boot::request::{RecoveryRequest, UpdatePermission};
use xtask::demo;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::{GuestFirmware, RunningMachine};

use super::fallback::{Robot, ask, expect};

/// What a real system has when it is up: its data, a name for the network card, and a place for programs.
pub const COME_UP: &str = "mkdir -p /d /etc/reflash/update.d; mount -t ext4 $(ls /dev/[sv]da6) /d; mkdir -p /d/var/lib; \
     ln -s /d/var /var; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2";

/// A robot on which release 1 works, and release 2 is published.
fn robot_with_an_offer(name: &str) -> (Robot, RunningMachine) {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start(name);
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    robot.publish("2", Behaviour::Good);
    ask(&mut vm, COME_UP);
    (robot, vm)
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn an_update_is_fetched_while_the_system_works_and_applied_without_a_network() {
    let (mut robot, mut vm) = robot_with_an_offer("update");
    let fetched = ask(&mut vm, "reflash update");
    assert!(fetched.contains("is fetched") && fetched.contains("exit-0"), "{fetched}");
    // A program of the robot says what it is doing.
    ask(
        &mut vm,
        "printf '#!/bin/sh\\necho wel''ding\\nexit 1\\n' >/etc/reflash/update.d/arm; chmod +x /etc/reflash/update.d/arm",
    );
    let held = ask(&mut vm, "reflash update --apply");
    assert!(held.contains("welding") && held.contains("exit-3"), "{held}");
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("update: 2 (serial 2) is fetched") && status.contains("welding"), "{status}");
    // It has finished; the servers are asked once more, and are gone from then on.
    vm.type_text("rm /etc/reflash/update.d/arm; reflash update --apply\n").unwrap();
    expect(&vm, &["the next start applies it"]);
    robot.stop_serving();
    let shown = expect(&vm, &["reason: requested", "no network is needed", "starting it"]);
    assert!(!shown.contains("[3/8] network"), "{shown}");
    expect(&vm, &["tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("reason requested: installed 2 (serial 2)"), "{status}");
    vm.cut_power();
    demo::check_system(&robot.disk, &robot.image()).unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_fetched_update_survives_cuts_and_a_robot_that_was_off_for_a_year_asks_first() {
    let (mut robot, mut vm) = robot_with_an_offer("update-cuts");
    // Cut while it is fetched: what is there stays there.
    vm.type_text("reflash update --json; reflash update --json >/dev/null\n").unwrap();
    expect(&vm, &["plan"]);
    vm.cut_power();
    vm = robot.start("update-cuts");
    expect(&vm, &["tiny system 1 is up"]);
    ask(&mut vm, COME_UP);
    vm.type_text("reflash update --apply\n").unwrap();
    expect(&vm, &["the next start applies it", "reason: requested", "[6/8] write"]);
    // Cut while it is written, without a server.
    robot.stop_serving();
    vm.cut_power();
    vm = robot.start("update-cuts");
    expect(&vm, &["reason: recovering", "no network is needed", "starting it", "tiny system 2 is up"]);
    ask(&mut vm, COME_UP);
    vm.cut_power();
    // A permission of a year ago: the system is intact and no server answers, so that it starts once more.
    let asked_unix_s = 1_760_000_000;
    let permission = UpdatePermission { serial: 9, digest: [7; 8], asked_unix_s, hours: 24 };
    let request = RecoveryRequest::Update(permission).to_string();
    disk::change_environment(&robot.disk, &[(names::NEXT_ENTRY, "recovery"), (names::REQUEST, &request)]).unwrap();
    vm = robot.start("update-cuts");
    expect(&vm, &["reason: requested", "which is enough for 24 h", "no release is available", "tiny system 2 is up"]);
    vm.cut_power();
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!(env.get(names::REQUEST), None, "{env:?}");
    demo::check_system(&robot.disk, &robot.image()).unwrap();
}
