//! The recovery renews itself: one recovery writes the other slot, the next start tries it, and one of the two starts
//! whatever is spoiled afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reflash::boot::grubenv::names;
use reflash::boot::slots::Slot;
use xtask::disk;
use xtask::initramfs::BuiltRecovery;
use xtask::test_system::Behaviour;
use xtask::vm::{GuestFirmware, RunningMachine};

use super::built::robot_parts;
use super::fallback::{Robot, ask, expect};

/// An uncompressed archive of one file, as the kernel takes it, also behind another one (Linux'
/// Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive_of(file: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let entry = |name: &str, mode: u32, content: &[u8]| {
        let mut entry = b"070701".to_vec();
        for field in [
            1,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap(),
            0,
            0,
            0,
            0,
            u32::try_from(name.len()).unwrap() + 1,
            0,
        ] {
            entry.extend(format!("{field:08x}").into_bytes());
        }
        entry.extend(name.as_bytes());
        // The name ends with a zero byte, and it and the content on four bytes.
        entry.resize((entry.len() + 1).next_multiple_of(4), 0);
        entry.extend(content);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    };
    [entry(file, mode, content), entry("TRAILER!!!", 0, b"")].concat()
}

/// The recovery of this checkout with another initramfs, which has one more file. Its files are written to `folder`.
fn another_recovery(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut initramfs = std::fs::read(&robot_parts().recovery.initramfs).unwrap();
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    initramfs.extend(archive_of("renewed", 0o100_644, b""));
    recovery_with(folder, &initramfs)
}

/// The recovery of this checkout with the given initramfs, and a boot script that is marked with it.
fn recovery_with(folder: &Path, initramfs: &[u8]) -> Vec<(String, PathBuf)> {
    let parts = robot_parts();
    let recovery = BuiltRecovery { initramfs: folder.join("initramfs.img"), ..parts.recovery.clone() };
    std::fs::write(&recovery.initramfs, initramfs).unwrap();
    disk::recovery_files(&parts.grub, &recovery).unwrap()
}

fn request(vm: &mut RunningMachine) {
    ask(vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_next_recovery_is_that_of_the_release_and_the_other_slot_starts_when_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("slots");
    expect(&vm, &["reason: tries", "recovery slot a", "tiny system 1 is up"]);

    robot.publish_with("2", another_recovery(folder.path()));
    request(&mut vm);
    expect(&vm, &["reason: requested", "recovery slot a", "the next recovery tries slot b"]);
    expect(&vm, &["tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: a; slot b is on trial"), "{status}");

    // The second request does not write the slot again.
    request(&mut vm);
    expect(&vm, &["reason: requested", "Trying the renewed recovery of slot b", "recovery slot b"]);
    let shown = expect(&vm, &["on trial until it has found a release", "2 is installed"]);
    assert!(!shown.contains("another recovery"), "{shown}");
    expect(&vm, &["tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: b\n"), "{status}");
    vm.cut_power();

    // The kernel of slot b cannot be started: the recovery of slot a is, and repairs slot b.
    robot.spoil_on("recovery", &format!("/{}/vmlinuz", Slot::B.folder()));
    disk::change_environment(&robot.disk, &[(names::NEXT_ENTRY, "recovery")]).unwrap();
    vm = robot.start("slots");
    expect(&vm, &["Recovery, reason: requested", "Trying slot a", "recovery slot a"]);
    expect(&vm, &["the next recovery tries slot b", "tiny system 2 is up"]);
    vm.cut_power();

    // The environment is lost, and with it the choice of the slot. So is the boot script of slot a, which is then tried
    // first.
    robot.spoil_on("recovery", &format!("/{}/grub.cfg", Slot::A.folder()));
    disk::write_environment(&robot.disk, &[0; 512]).unwrap();
    vm = robot.start("slots");
    expect(&vm, &["Recovery, reason: env-lost", "recovery slot b", "is intact: starting it", "tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: b\n"), "{status}");
    vm.cut_power();

    // No slot has a boot script any more; a release brings one back.
    for slot in [Slot::A, Slot::B] {
        robot.spoil_on("recovery", &format!("/{}/grub.cfg", slot.folder()));
    }
    vm = robot.start("slots");
    expect(&vm, &["No boot script can be read", "recovery slot b", "the next recovery tries slot a"]);
    expect(&vm, &["tiny system 2 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_renewed_recovery_that_panics_hangs_or_finds_no_network_gives_way_to_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("trial");
    expect(&vm, &["reason: tries", "recovery slot a", "tiny system 1 is up"]);

    // Its kernel panics, because it has no program to start. The recovery before it does what was requested.
    robot.publish_with("2", recovery_with(folder.path(), &archive_of("nothing", 0o100_644, b"")));
    request(&mut vm);
    expect(&vm, &["reason: requested", "recovery slot a", "the next recovery tries slot b", "tiny system 2 is up"]);
    request(&mut vm);
    expect(&vm, &["reason: requested", "Trying the renewed recovery of slot b", "Kernel panic"]);
    let shown = expect(&vm, &["reason: requested", "recovery slot a"]);
    assert!(!shown.contains("Trying"), "{shown}");
    expect(&vm, &["the recovery of 2 in slot b did not come up", "tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("recovery slot: a; the trial of slot b failed"), "{status}");
    // The new recovery is not tried again.
    request(&mut vm);
    let shown = expect(&vm, &["reason: requested", "recovery slot a", "did not come up", "tiny system 2 is up"]);
    assert!(!shown.contains("Trying"), "{shown}");

    // busybox as /init waits for ever: it stands for a kernel that hangs. The next release carries it.
    let hangs = archive_of("init", 0o100_755, &busybox);
    robot.publish_with("3", recovery_with(folder.path(), &hangs));
    request(&mut vm);
    expect(&vm, &["reason: requested", "recovery slot a", "the next recovery tries slot b", "tiny system 3 is up"]);
    vm.cut_power();
    // The system does not come up any more, and no watchdog or person ends the hang: only a power cut does.
    disk::change_environment(&robot.disk, &[(names::TRIES, "0")]).unwrap();
    vm = robot.start("trial");
    expect(&vm, &["reason: tries", "Trying the renewed recovery of slot b"]);
    assert!(vm.wait_for("recovery slot", Duration::from_secs(60)).is_err(), "it does not hang");
    vm.cut_power();
    vm = robot.start("trial");
    let shown = expect(&vm, &["reason: tries", "recovery slot a"]);
    assert!(!shown.contains("Trying"), "{shown}");
    expect(&vm, &["the recovery of 3 in slot b did not come up", "tiny system 3 is up"]);

    // The recovery of release 4 works, and the network does not.
    robot.publish_with("4", another_recovery(folder.path()));
    request(&mut vm);
    expect(&vm, &["reason: requested", "recovery slot a", "the next recovery tries slot b", "tiny system 4 is up"]);
    vm.cut_power();
    robot.stop_serving();
    // Damaged, with all that is kept for an undo, so that it cannot be given back without a server.
    robot.spoil_on("system", "/padding");
    let system = disk::partition_range(&robot.disk, "system").unwrap();
    let behind = system.start + robot.image().metadata().unwrap().len();
    let lost = vec![0; usize::try_from(system.end - behind).unwrap()];
    File::options().write(true).open(&robot.disk).unwrap().write_all_at(&lost, behind).unwrap();
    disk::change_environment(&robot.disk, &[(names::TRIES, "0")]).unwrap();
    vm = robot.start("trial");
    expect(&vm, &["reason: tries", "Trying the renewed recovery of slot b", "recovery slot b", "on trial"]);
    expect(&vm, &["of this recovery's trial: the one before it takes over", "reason: tries", "recovery slot a"]);
}
