//! The floor in the firmware of a real machine: efivarfs, with its mark against changes, and memory that is full.

use std::fs::File;
use std::os::unix::fs::FileExt;

use reflash::jobs::floor::{FILE, FloorRecord};
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::{GuestFirmware, RunningMachine};

use super::fallback::{Robot, ask, expect};

/// The variable of this program, as efivarfs shows it.
const VARIABLE: &str = "/sys/firmware/efi/efivars/ReflashFloor-6f3c1d52-0f0e-4c86-9d3a-7b1c5be1a9d4";

/// A digest of the variable. The tiny system mounts nothing by itself, and what the agent mounts nobody else sees.
fn digest(vm: &mut RunningMachine) -> String {
    ask(vm, "mount -t efivarfs efivarfs /sys/firmware/efi/efivars");
    let shown = ask(vm, &format!("wc -c <{VARIABLE}; md5sum <{VARIABLE}"));
    assert!(shown.contains("516\n") || shown.contains("516\r\n"), "four bytes of attributes and a record: {shown}");
    shown.split_ascii_whitespace().find(|word| word.len() == 32).unwrap().to_owned()
}

/// Serial in a copy of the floor that lies there on the disk.
fn kept(robot: &Robot, offset: u64) -> Option<u64> {
    let mut copy = vec![0; 4096];
    File::open(&robot.disk).unwrap().read_exact_at(&mut copy, offset).unwrap();
    FloorRecord::decode(&copy).map(|record| record.serial)
}

fn install(vm: &mut RunningMachine, version: &str) {
    ask(vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
    expect(vm, &["is installed", &format!("tiny system {version} is up")]);
}

/// <https://github.com/systemd/systemd/issues/2402>: efivarfs marks what it does not know as unchangeable.
/// <https://github.com/fwupd/fwupd/issues/5603>: memory of the firmware that is full.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_firmware_keeps_the_floor_and_its_full_memory_stops_nothing() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Uefi, 3);
    let mut vm = robot.start("floor-uefi");
    expect(&vm, &["tiny system 1 is up"]);
    let first = digest(&mut vm);
    ask(&mut vm, "reflash good");
    assert_eq!(digest(&mut vm), first, "a floor that does not rise is not written");
    // A change, against the mark of efivarfs.
    robot.publish("2", Behaviour::Good);
    install(&mut vm, "2");
    let second = digest(&mut vm);
    assert_ne!(second, first, "the floor rose");
    let block = disk::file_offset(&robot.disk, "recovery", &format!("/{FILE}")).unwrap();
    // Full: whatever the firmware answers, the boot is good, and the disk has the floor.
    let fill = "printf '\\007\\000\\000\\000' >/fill; head -c 4000 /dev/zero >>/fill; \
        for n in $(seq 99); do dd if=/fill of=/sys/firmware/efi/efivars/Fill$n-6f3c1d52-0f0e-4c86-9d3a-7b1c5be1a9d5 \
        bs=32768 count=1 || break; done 2>&1 | grep -v records; rm /fill";
    let full = ask(&mut vm, fill);
    assert!(full.contains("No space left") || full.contains("can't open"), "{full}");
    robot.publish("3", Behaviour::Good);
    install(&mut vm, "3");
    ask(&mut vm, "sync");
    assert_eq!(kept(&robot, block).max(kept(&robot, block + 4096)), Some(3));
    // State and the blocks of the recovery partition are lost together. The variable is all that is left.
    robot.stop_serving();
    let state = disk::partition_range(&robot.disk, "state").unwrap().start;
    let wipe = |offset: u64, blocks: u64| {
        format!("dd if=/dev/zero of=/dev/vda bs=4096 seek={} count={blocks} conv=notrunc", offset / 4096)
    };
    ask(&mut vm, &format!("{}; {}; sync", wipe(block, 2), wipe(state, 512)));
    vm.type_text("reboot -f\n").unwrap();
    // What is installed is not known any more, and no server says: the release that is kept is the one to trust.
    expect(&vm, &["the state partition was recreated", "2 (serial 2) is kept", "tiny system 2 is up"]);
    ask(&mut vm, "sync");
    assert!(kept(&robot, block) >= Some(2), "written again from the firmware");
}
