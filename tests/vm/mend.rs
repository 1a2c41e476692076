//! The boot chain of a robot of today: a recovery brings the boot code of the release, which then starts the machine,
//! and mends what is damaged.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use reflash::jobs::provision::bootstrap::names;
use xtask::disk;
use xtask::grub;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::built::robot_parts;
use super::fallback::{Robot, ask, expect};

/// What GRUB of the release says before it does what the one of today does.
const GREETING: &str = "this is the boot code of the release";

/// The boot code of a release that is another one than that on the disk.
fn another_grub(folder: &Path) -> Vec<(String, PathBuf)> {
    let script = folder.join("first.cfg");
    let lines = [
        "serial --unit=0 --speed=115200",
        "terminal_output console serial",
        &format!("echo \"{GREETING}\""),
        "set root=hd0,gpt4",
        "set prefix=(hd0,gpt4)/grub",
    ];
    std::fs::write(&script, lines.join("\n") + "\n").unwrap();
    let (core, efi) = (folder.join("core.img"), folder.join("BOOTX64.EFI"));
    grub::mkimage_with_config("i386-pc", "biosdisk", &script, &core).unwrap();
    grub::mkimage_with_config("x86_64-efi", "efi_gop efifwsetup", &script, &efi).unwrap();
    let boot = robot_parts().grub.boot.clone();
    [(names::BOOT_IMAGE, boot), (names::CORE_GPT, core), (names::EFI, efi)]
        .map(|(name, path)| (name.into(), path))
        .into()
}

fn zero(disk: &Path, offset: u64, length: usize) {
    File::options().write(true).open(disk).unwrap().write_all_at(&vec![0; length], offset).unwrap();
}

fn a_robot_of_today_is_mended(firmware: GuestFirmware, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut robot = Robot::new(Behaviour::Good, firmware, 3);
    robot.publish_with("2", another_grub(folder.path()));
    // The header of the second copy of the table.
    let end = std::fs::metadata(&robot.disk).unwrap().len();
    zero(&robot.disk, end - 512, 512);
    let mut vm = robot.start(name);
    // UEFI of this kind writes a damaged table anew before it starts anything.
    let by_us = firmware == GuestFirmware::Bios;
    if by_us {
        expect(&vm, &["mended the backup copy of the GPT"]);
    }
    expect(&vm, &["mended: boot code for BIOS", "mended: EFI/BOOT/BOOTX64.EFI"]);
    // Firmware, the new boot code, the loader and the script of today.
    expect(&vm, &["starting it", GREETING, "tiny system 2 is up"]);
    let status = ask(&mut vm, "reflash status --json");
    assert!(status.contains("boot code for BIOS"), "{status}");
    assert_eq!(status.contains("backup copy of the GPT"), by_us, "{status}");
    vm.cut_power();
    let output = Command::new("sgdisk").arg("-v").arg(&robot.disk).output().unwrap();
    let verdict = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(verdict.contains("No problems found") && !verdict.contains("nvalid"), "{verdict}");

    // A block of the boot code that does not start this machine, and one of the second copy: the good boot mends both.
    let biosboot = disk::partition_range(&robot.disk, "biosboot").unwrap();
    let in_use = [biosboot.start, (biosboot.start + biosboot.end) / 2];
    if !by_us {
        in_use.iter().for_each(|start| zero(&robot.disk, start + 8192, 4096));
    }
    zero(&robot.disk, end - 512, 512);
    let mut vm = robot.start(name);
    expect(&vm, &[GREETING, "tiny system 2 is up"]);
    let answer = ask(&mut vm, "reflash mend");
    assert!(answer.contains("everything that firmware and GRUB read is whole"), "{answer}");
    let status = ask(&mut vm, "reflash status --json");
    let damage = if by_us { "backup copy of the GPT" } else { "boot code for BIOS" };
    assert!(status.matches(damage).count() > 1, "{status}");
    let output = Command::new("sgdisk").arg("-v").arg(&robot.disk).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("No problems found"));
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_of_today_gets_the_boot_code_of_the_release_and_starts_by_it_on_bios() {
    a_robot_of_today_is_mended(GuestFirmware::Bios, "mend-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_of_today_gets_the_boot_code_of_the_release_and_starts_by_it_on_uefi() {
    a_robot_of_today_is_mended(GuestFirmware::Uefi, "mend-uefi");
}
