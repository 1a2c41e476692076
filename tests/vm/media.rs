//! Boot media: one image that starts from USB and from optical drives, on BIOS and on UEFI.

use std::fs::File;
use std::path::{Path, PathBuf};

use reflash::machine::media::{self as media_format, MediaId};
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk;
use xtask::media::{self, MediaParts};
use xtask::paths::Paths;
use xtask::vm::{GuestFirmware, VirtualMachine};

use super::built;
use crate::support::Fixture;

/// The drive from which a machine reads a boot medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    Usb,
    Optical,
}

impl Drive {
    /// The arguments for QEMU; the firmware tries the medium first.
    pub fn arguments(self, medium: &Path) -> Vec<String> {
        let file = format!("file={},if=none,id=medium,format=raw,readonly=on", medium.display());
        let device = match self {
            Self::Usb => ["qemu-xhci,id=usb", "usb-storage,drive=medium,bus=usb.0,bootindex=0"],
            Self::Optical => ["ahci,id=optical", "ide-cd,drive=medium,bus=optical.0,bootindex=0"],
        };
        ["-drive", &file, "-device", device[0], "-device", device[1]].map(str::to_owned).to_vec()
    }
}

/// A medium that carries the release.
pub fn medium(fixture: &Fixture, arm: Option<&str>) -> (PathBuf, MediaId) {
    medium_for(fixture, arm, None, "")
}

/// A medium for the release, which is on it or on the server at `url`. `more` is appended to the configuration.
pub fn medium_for(fixture: &Fixture, arm: Option<&str>, url: Option<&str>, more: &str) -> (PathBuf, MediaId) {
    let out = fixture.dir.path().join("media.iso");
    let tree = fixture.tree();
    let parts = MediaParts {
        recovery: &built::robot_parts().recovery,
        config: Some(format!(
            "[release]\nurls = [\"{}\"]\nspread_s = 0\n\n\
             [machine]\nproduct = \"{}\"\nhostname = \"robot-{{asset|serial}}\"\n{more}",
            url.unwrap_or("http://10.0.2.2:1"),
            xtask::demo::PRODUCT
        )),
        keys: &[fixture.dir.path().join("keys/reflash.pub")],
        assets: Some("DEMO0001 left-arm\n".into()),
        release: url.is_none().then_some((tree.as_path(), "stable")),
        arm,
        timeout_s: Some(3),
    };
    let id = media::build(&Paths::of_checkout(), &parts, &out, true).unwrap();
    (out, id)
}

/// A disk of zeros, sparse.
pub fn blank_disk(fixture: &Fixture, name: &str) -> PathBuf {
    let path = fixture.dir.path().join(name);
    File::create(&path).unwrap().set_len(4 << 30).unwrap();
    path
}

/// Starts a robot without a system and without a network from a medium, and checks that it is repaired.
fn repairs_from(drive: Drive, firmware: GuestFirmware, name: &str) {
    let fixture = super::small_release();
    let (medium, id) = medium(&fixture, None);
    let config = demo::robot_config("http://10.0.2.2:1");
    let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
    let bystander = blank_disk(&fixture, "bystander.img");
    let mut machine = VirtualMachine::robot(name, &disk);
    machine.firmware = firmware;
    machine.extra = drive.arguments(&medium);
    machine.extra.extend(["-drive".into(), format!("file={},if=virtio,format=raw", bystander.display())]);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    robot.wait_for(&format!("started from the boot medium {id}"), BOOT_TIMEOUT).unwrap();
    let shown = robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    assert!(shown.contains("no network is needed"), "{shown}");
    robot.cut_power();
    super::assert_system_is(&disk, &fixture);
    assert_untouched(&bystander);
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_robot_without_a_network_is_repaired_from_a_usb_drive() {
    repairs_from(Drive::Usb, GuestFirmware::Bios, "repair-usb-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_without_a_network_is_repaired_from_a_disc_on_uefi() {
    repairs_from(Drive::Optical, GuestFirmware::Uefi, "repair-disc-uefi");
}

/// Starts a machine without a robot's disk from a medium, which has to be found, and checks that nothing is written.
fn starts_from(drive: Drive, firmware: GuestFirmware, name: &str) {
    let fixture = super::small_release();
    let (medium, id) = medium(&fixture, None);
    let disk = blank_disk(&fixture, "disk.img");
    let mut machine = VirtualMachine::robot(name, &disk);
    machine.firmware = firmware;
    machine.extra = drive.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    robot.wait_for(&format!("started from the boot medium {id}"), BOOT_TIMEOUT).unwrap();
    robot.wait_for("no disk of this machine has the partitions of a robot", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    assert_untouched(&disk);
}

pub fn assert_untouched(disk: &Path) {
    let blocks = std::os::unix::fs::MetadataExt::blocks(&disk.metadata().unwrap());
    assert_eq!(blocks, 0, "something was written to {}", disk.display());
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_medium_starts_as_a_usb_drive_on_bios() {
    starts_from(Drive::Usb, GuestFirmware::Bios, "media-usb-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_medium_starts_as_a_usb_drive_on_uefi() {
    starts_from(Drive::Usb, GuestFirmware::Uefi, "media-usb-uefi");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_medium_starts_as_a_disc_on_bios() {
    starts_from(Drive::Optical, GuestFirmware::Bios, "media-disc-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_medium_starts_as_a_disc_on_uefi() {
    starts_from(Drive::Optical, GuestFirmware::Uefi, "media-disc-uefi");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_same_inputs_make_the_same_medium() {
    let fixture = Fixture::new();
    let (first, id) = medium(&fixture, None);
    let bytes = std::fs::read(&first).unwrap();
    // File times, and everything else that a clock may leave behind, would differ.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let (second, again) = medium(&fixture, None);
    assert_eq!((id, bytes == std::fs::read(&second).unwrap()), (again, true));
    let (_, armed) = medium(&fixture, Some("yes"));
    assert_ne!(id, armed);
    let start = usize::try_from(media_format::DESCRIPTOR_OFFSET_BYTES).unwrap();
    let descriptor = &bytes[start..][..media_format::DESCRIPTOR_BYTES];
    assert_eq!(MediaId::of_descriptor(descriptor), Some(id));
}
