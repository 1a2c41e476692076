//! The recovery renews itself: the slot is written by one recovery and started by the next, and whatever is spoiled
//! afterwards, one of the two starts.

use std::path::{Path, PathBuf};

use reflash::grubenv::names;
use reflash::slots::{FILES, RELEASE_FOLDER, Slot};
use xtask::disk;
use xtask::paths::Paths;
use xtask::tiny::Behaviour;
use xtask::vm::{Firmware, Running};

use super::fallback::{Robot, ask, expect};

/// An uncompressed archive of one empty file, as the kernel takes it behind another one (Linux'
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive_of(file: &str) -> Vec<u8> {
    let entry = |name: &str, mode: u32| {
        let mut entry = b"070701".to_vec();
        for field in [1, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
            entry.extend(format!("{field:08x}").into_bytes());
        }
        entry.extend(name.as_bytes());
        // The name ends with a zero byte, and the entry on four bytes.
        entry.resize((entry.len() + 1).next_multiple_of(4), 0);
        entry
    };
    [entry(file, 0o100_644), entry("TRAILER!!!", 0)].concat()
}

/// The recovery of this checkout with another initramfs.
fn another_recovery(folder: &Path) -> Vec<(String, PathBuf)> {
    let dist = Paths::of_checkout().dist();
    let file = |name| match name {
        "grub.cfg" => dist.join("grub/slot.cfg"),
        "vmlinuz" => dist.join("vmlinuz"),
        _ => {
            let mut initramfs = std::fs::read(dist.join("initramfs.img")).unwrap();
            initramfs.resize(initramfs.len().next_multiple_of(4), 0);
            initramfs.extend(archive_of("renewed"));
            std::fs::write(folder.join(name), initramfs).unwrap();
            folder.join(name)
        }
    };
    FILES.map(|name| (format!("{RELEASE_FOLDER}/{name}"), file(name))).into()
}

fn request(vm: &mut Running) {
    ask(vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_the_next_recovery_is_the_one_of_the_release_and_the_other_slot_catches_its_fall() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, Firmware::Bios, 3);
    let mut vm = robot.start("slots");
    expect(&vm, &["reason: tries", "recovery slot a", "tiny system 1 is up"]);

    robot.publish_with("2", another_recovery(folder.path()));
    request(&mut vm);
    expect(&vm, &["reason: requested", "recovery slot a", "the next recovery starts from slot b"]);
    expect(&vm, &["tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: b"), "{status}");

    // Nothing is written a second time.
    request(&mut vm);
    let told = expect(&vm, &["reason: requested", "recovery slot b", "2 is installed"]);
    assert!(!told.contains("another recovery"), "{told}");
    expect(&vm, &["tiny system 2 is up"]);
    vm.cut_power();

    // Its kernel cannot be started: the other slot's is, and mends it.
    robot.spoil_on("recovery", &format!("/{}/vmlinuz", Slot::B.folder()));
    disk::change_environment(&robot.disk, &[(names::NEXT_ENTRY, "recovery")]).unwrap();
    vm = robot.start("slots");
    expect(&vm, &["Recovery, reason: requested", "Trying slot a", "recovery slot a"]);
    expect(&vm, &["the next recovery starts from slot b", "tiny system 2 is up"]);
    vm.cut_power();

    // The environment is lost, and with it the pointer, and the boot script it then begins with.
    robot.spoil_on("recovery", &format!("/{}/grub.cfg", Slot::A.folder()));
    disk::write_environment(&robot.disk, &[0; 512]).unwrap();
    vm = robot.start("slots");
    expect(&vm, &["Recovery, reason: env-lost", "recovery slot b", "is intact: starting it", "tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: b"), "{status}");
    vm.cut_power();

    // No script is left at all; a release brings one back.
    for slot in [Slot::A, Slot::B] {
        robot.spoil_on("recovery", &format!("/{}/grub.cfg", slot.folder()));
    }
    vm = robot.start("slots");
    expect(&vm, &["No boot script can be read", "recovery slot b", "the next recovery starts from slot a"]);
    expect(&vm, &["tiny system 2 is up"]);
}
