//! Boot media: one image that starts from USB and from optical drives, on BIOS and on UEFI.

use std::fs::File;
use std::path::{Path, PathBuf};

use reflash::machine::media::MediaId;
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk;
use xtask::initramfs::Recovery;
use xtask::media::{self, Parts};
use xtask::paths::Paths;
use xtask::vm::{Firmware, Machine};

use crate::support::Fixture;

/// How a medium is put into a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    Stick,
    Optical,
}

impl Drive {
    /// QEMU's arguments; the firmware tries the medium first.
    pub fn arguments(self, medium: &Path) -> Vec<String> {
        let file = format!("file={},if=none,id=medium,format=raw,readonly=on", medium.display());
        let device = match self {
            Self::Stick => ["qemu-xhci,id=usb", "usb-storage,drive=medium,bus=usb.0,bootindex=0"],
            Self::Optical => ["ahci,id=optical", "ide-cd,drive=medium,bus=optical.0,bootindex=0"],
        };
        ["-drive", &file, "-device", device[0], "-device", device[1]].map(str::to_owned).to_vec()
    }
}

pub fn recovery() -> Recovery {
    let dist = Paths::of_checkout().dist();
    Recovery { vmlinuz: dist.join("vmlinuz"), initramfs: dist.join("initramfs.img") }
}

/// A medium for the release, which it carries.
pub fn medium(fixture: &Fixture, arm: Option<&str>) -> (PathBuf, MediaId) {
    medium_for(fixture, arm, None, "")
}

/// A medium for the release, which is on it or on the server at `url`; `more` configuration.
pub fn medium_for(fixture: &Fixture, arm: Option<&str>, url: Option<&str>, more: &str) -> (PathBuf, MediaId) {
    let out = fixture.dir.path().join("media.iso");
    let tree = fixture.tree();
    let parts = Parts {
        recovery: &recovery(),
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

/// A robot whose system is gone and that has no network is repaired from the medium.
fn repairs_from(drive: Drive, firmware: Firmware, name: &str) {
    let fixture = super::small_release();
    let (medium, id) = medium(&fixture, None);
    let config = demo::robot_config("http://10.0.2.2:1");
    let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
    let bystander = blank_disk(&fixture, "bystander.img");
    let mut machine = Machine::robot(name, &disk);
    machine.firmware = firmware;
    machine.extra = drive.arguments(&medium);
    machine.extra.extend(["-drive".into(), format!("file={},if=virtio,format=raw", bystander.display())]);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    robot.wait_for(&format!("started from the boot medium {id}"), BOOT_TIMEOUT).unwrap();
    let told = robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    assert!(told.contains("no network is needed"), "{told}");
    robot.cut_power();
    super::assert_system_is(&disk, &fixture);
    assert_untouched(&bystander);
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_robot_without_a_network_is_repaired_from_a_stick() {
    repairs_from(Drive::Stick, Firmware::Bios, "repair-stick-bios");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn full_a_robot_without_a_network_is_repaired_from_a_disc_on_uefi() {
    repairs_from(Drive::Optical, Firmware::Uefi, "repair-disc-uefi");
}

/// A machine without a robot's disk: the medium starts, is found, and nothing is written.
fn starts_from(drive: Drive, firmware: Firmware, name: &str) {
    let fixture = super::small_release();
    let (medium, id) = medium(&fixture, None);
    let disk = blank_disk(&fixture, "disk.img");
    let mut machine = Machine::robot(name, &disk);
    machine.firmware = firmware;
    machine.extra = drive.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    robot.wait_for(&format!("started from the boot medium {id}"), BOOT_TIMEOUT).unwrap();
    robot.wait_for("0 disks of this machine have the partitions of a robot", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    assert_untouched(&disk);
}

pub fn assert_untouched(disk: &Path) {
    let blocks = std::os::unix::fs::MetadataExt::blocks(&disk.metadata().unwrap());
    assert_eq!(blocks, 0, "something was written to {}", disk.display());
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn full_a_medium_starts_as_a_stick_on_bios() {
    starts_from(Drive::Stick, Firmware::Bios, "media-stick-bios");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn full_a_medium_starts_as_a_stick_on_uefi() {
    starts_from(Drive::Stick, Firmware::Uefi, "media-stick-uefi");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn full_a_medium_starts_as_a_disc_on_bios() {
    starts_from(Drive::Optical, Firmware::Bios, "media-disc-bios");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn full_a_medium_starts_as_a_disc_on_uefi() {
    starts_from(Drive::Optical, Firmware::Uefi, "media-disc-uefi");
}

#[test]
#[ignore = "needs the built recovery: cargo xtask test"]
fn the_same_inputs_make_the_same_medium() {
    let fixture = Fixture::new();
    let (first, id) = medium(&fixture, None);
    let bytes = std::fs::read(&first).unwrap();
    // File times, and whatever else a clock leaves behind.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let (second, again) = medium(&fixture, None);
    assert_eq!((id, bytes == std::fs::read(&second).unwrap()), (again, true));
    let (_, armed) = medium(&fixture, Some("yes"));
    assert_ne!(id, armed);
    let descriptor = &bytes[reflash::machine::media::DESCRIPTOR_OFFSET_BYTES as usize..]
        [..reflash::machine::media::DESCRIPTOR_BYTES];
    assert_eq!(MediaId::of_descriptor(descriptor), Some(id));
}
