//! Factory provisioning: a machine whose disk is blank, or holds another system, becomes a robot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reflash::disk::table;
use reflash::release::layout::{Layout, Scheme};
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::paths::Paths;
use xtask::test_system::Behaviour;
use xtask::vm::{DiskBus, GuestFirmware, VirtualMachine};
use xtask::{bootstrap_files, disk};

use super::built::{bootstrap_files, demonstration_release, install_disk_tools, robot_parts};
use super::fallback::tiny_image;
use super::media::{Drive, assert_untouched, blank_disk, medium_for};
use crate::support::Fixture;
use crate::support::attached::{Attached, make_foreign};

/// A kind of machine that is provisioned.
struct Kind {
    name: &'static str,
    table: Scheme,
    firmware: GuestFirmware,
    bus: DiskBus,
    block_bytes: u32,
    drive: Drive,
    /// The disk is not blank.
    foreign: bool,
    /// The release comes from a server.
    online: bool,
}

fn layout(table: Scheme) -> Layout {
    let name = if table == Scheme::Gpt { "layout.toml" } else { "layout-mbr.toml" };
    disk::read_layout(&Paths::of_checkout().root.join("xtask/recipes").join(name)).unwrap()
}

/// A release of a tiny system that disks can be provisioned from.
fn release(table: Scheme) -> Fixture {
    install_disk_tools();
    Fixture::with(tiny_image("1", Behaviour::Good), |spec| {
        super::for_demo_robots(spec);
        spec.files = bootstrap_files().to_vec();
        spec.layout = Some(layout(table));
    })
}

/// A robot whose disk was blank, and what it was provisioned from.
struct Made {
    fixture: Fixture,
    medium: PathBuf,
    disk: PathBuf,
}

/// Provisions a machine from a medium, starts the system on its own disk, and checks that disk with other tools.
fn provision(kind: &Kind) -> Made {
    let name = |stage: &str| format!("provision-{}-{stage}", kind.name);
    let fixture = release(kind.table);
    let server = demo::serve_to_guests(&fixture.tree()).unwrap();
    let url = kind.online.then_some(server.1.as_str());
    let arm = kind.foreign.then_some("yes");
    // Two disks are present: the configuration chooses the larger one.
    let (medium, id) = medium_for(&fixture, arm, url, "[provision.disk]\nmin_gb = 4\n");
    let disk = blank_disk(&fixture, "disk.img");
    if kind.foreign {
        make_foreign(&disk, kind.block_bytes);
    }
    let bystander = fixture.dir.path().join("bystander.img");
    File::create(&bystander).unwrap().set_len(3 << 30).unwrap();
    let machine = |stage: &str, with_medium: bool| {
        let mut machine = VirtualMachine::robot(&name(stage), &disk);
        (machine.firmware, machine.bus, machine.block_bytes) = (kind.firmware, kind.bus, kind.block_bytes);
        if with_medium {
            machine.extra = kind.drive.arguments(&medium);
        }
        let bystander = format!("file={},if=virtio,format=raw", bystander.display());
        machine.extra.extend(["-drive".to_owned(), bystander]);
        machine
    };
    let mut robot = machine("medium", true).start().unwrap();
    robot.wait_for(&format!("started from the boot medium {id}"), BOOT_TIMEOUT).unwrap();
    let shown = robot.wait_for("provisioned with 1 ", FLASH_TIMEOUT).unwrap();
    assert_eq!(shown.contains("no network is needed"), !kind.online, "{shown}");
    // The medium is still there and does no harm. OVMF sees no SD card: then the medium starts again, and the agent has
    // to recognise the disk that it provisioned.
    let unseen = kind.bus == DiskBus::Sd && kind.firmware == GuestFirmware::Uefi;
    if unseen {
        robot.wait_for("was already provisioned from this medium", FLASH_TIMEOUT).unwrap();
    } else {
        robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
        robot.type_text("reflash status; echo 'don'e\n").unwrap();
        let shown = robot.wait_for("done", BOOT_TIMEOUT).unwrap();
        assert!(shown.contains("demo-robot 1 (serial 1)"), "{shown}");
        assert!(shown.contains("1: reason provision: installed 1 (serial 1)"), "{shown}");
    }
    robot.cut_power();
    assert_untouched(&bystander);
    check_disk(kind, &disk);
    let mut own = machine("own", false);
    if kind.bus == DiskBus::Sd {
        // SeaBIOS starts no SD card by itself either: its place is taken by a reader.
        own.bus = DiskBus::Usb;
    }
    let robot = own.start().unwrap();
    robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    Made { fixture, medium, disk }
}

/// Checks the disk with tools that know nothing of reflash.
fn check_disk(kind: &Kind, disk: &Path) {
    let device = Attached::new(disk, kind.block_bytes);
    device.assert_sound(&layout(kind.table));
    // No signature of the system before is left.
    let (_, signatures) = device.told("wipefs", &["--noheadings"]);
    let wanted = if kind.table == Scheme::Gpt { 3 } else { 1 };
    assert_eq!(signatures.lines().count(), wanted, "{signatures}");
}

/// Otherwise every build would make another release, and another disk for the tests that start from one.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_same_inputs_make_the_same_file_systems_of_blank_disks() {
    let parts = robot_parts();
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str| -> Vec<Vec<u8>> {
        let out = directory.path().join(name);
        let files = bootstrap_files::files(&Paths::of_checkout(), &parts.grub, &parts.recovery, &out).unwrap();
        files.iter().map(|(_, path)| std::fs::read(path).unwrap()).collect()
    };
    let first = make("first");
    // File times, and everything else that a clock may leave behind, would differ.
    std::thread::sleep(Duration::from_millis(2100));
    assert!(first == make("second"));
}

const BLANK_BIOS: Kind = Kind {
    name: "gpt-bios",
    table: Scheme::Gpt,
    firmware: GuestFirmware::Bios,
    bus: DiskBus::Virtio,
    block_bytes: 512,
    drive: Drive::Usb,
    foreign: false,
    online: false,
};

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_blank_disk_is_provisioned_from_a_usb_drive_without_a_network() {
    provision(&BLANK_BIOS);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_foreign_disk_is_provisioned_by_uefi_from_a_disc_and_a_server() {
    provision(&Kind {
        name: "gpt-uefi-4k",
        firmware: GuestFirmware::Uefi,
        bus: DiskBus::Nvme,
        block_bytes: 4096,
        drive: Drive::Optical,
        foreign: true,
        online: true,
        ..BLANK_BIOS
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_blank_disk_is_provisioned_by_network_boot_and_the_station_sees_it() {
    provision_by_network(GuestFirmware::Bios, "provision-netboot-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_blank_disk_is_provisioned_by_network_boot_under_uefi() {
    provision_by_network(GuestFirmware::Uefi, "provision-netboot-uefi");
}

fn provision_by_network(firmware: GuestFirmware, name: &str) {
    let fixture = release(Scheme::Gpt);
    let server = crate::station::serve(&fixture);
    let url = format!("http://10.0.2.2:{}", server.address.port());
    let out = fixture.dir.path().join("netboot");
    let config = format!("{}\n[report]\nurl = \"{url}/report\"\n", demo::robot_config(&url));
    let parts = xtask::media::MediaParts {
        recovery: &robot_parts().recovery,
        config: Some(config.replace("{serial}", "{asset}")),
        keys: &[fixture.dir.path().join("keys/reflash.pub")],
        assets: Some("DEMO0001 left-arm\n".into()),
        release: None,
        arm: None,
        timeout_s: None,
    };
    xtask::media::netboot::build(&parts, &out).unwrap();
    let disk = blank_disk(&fixture, "disk.img");
    let mut machine = VirtualMachine::robot(name, &disk);
    machine.firmware = firmware;
    machine.netboot = Some(out);
    let mut robot = machine.start().unwrap();
    robot.wait_for("provisioned with 1 ", FLASH_TIMEOUT).unwrap();
    robot.cut_power();
    let (_, station) = crate::station::http(server.address, "GET", "/station.json", b"");
    assert!(station.contains("robot-left-arm") && station.contains("provisioned"), "{station}");
    machine.netboot = None;
    machine.name += "-own";
    let robot = machine.start().unwrap();
    robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
}

/// Nothing on an MBR disk records what a partition is for.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_mbr_robot_is_repaired_from_the_medium_that_made_it() {
    let Made { fixture, medium, disk } = provision(&Kind { name: "mbr-repair", table: Scheme::Mbr, ..BLANK_BIOS });
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let table = table::read(&mut &file, 512).unwrap().unwrap();
    let system = table.partitions.iter().find(|entry| entry.number == 3).unwrap();
    file.write_all_at(&[0xff; 1 << 20], system.first_lba * 512).unwrap();
    let mut machine = VirtualMachine::robot("provision-mbr-repair", &disk);
    machine.extra = Drive::Usb.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    let shown = robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    assert!(shown.contains("no network is needed"), "{shown}");
    robot.cut_power();
    let mut repaired = vec![0; fixture.image.len()];
    file.read_exact_at(&mut repaired, system.first_lba * 512).unwrap();
    assert!(repaired == fixture.image);
}

/// The image is that of `cargo xtask disk`, for factories that write whole disks.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_disk_image_for_large_blocks_becomes_a_robot() {
    let fixture = release(Scheme::Gpt);
    let (_server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
    let environment = disk::environment_without_system();
    let disk = super::disk_with_blocks_of(4096, &fixture, demo::robot_config(&url), Vec::new(), environment);
    let mut machine = VirtualMachine::robot("disk-4k", &disk);
    (machine.firmware, machine.bus, machine.block_bytes) = (GuestFirmware::Uefi, DiskBus::Nvme, 4096);
    let mut robot = machine.start().unwrap();
    robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    robot.cut_power();
    Attached::new(&disk, 4096).assert_sound(&layout(Scheme::Gpt));
}

/// Makes one test for each scheme, firmware and bus; block size, drive, disk and release source are spread over them.
macro_rules! provision_every_kind {
    ($($name:ident: $table:ident, $firmware:ident, $bus:ident, $block_bytes:literal, $drive:ident, $disk:ident, $line:ident;)+) => {
        $(
            #[test]
            #[ignore = "takes long: cargo xtask test --full"]
            fn $name() {
                provision(&Kind {
                    name: stringify!($name),
                    table: Scheme::$table,
                    firmware: GuestFirmware::$firmware,
                    bus: DiskBus::$bus,
                    block_bytes: $block_bytes,
                    drive: Drive::$drive,
                    foreign: stringify!($disk) == "foreign",
                    online: stringify!($line) == "online",
                });
            }
        )+
    };
}

provision_every_kind! {
    full_an_mbr_disk_on_virtio_is_provisioned: Mbr, Bios, Virtio, 512, Usb, foreign, online;
    full_an_mbr_disk_on_ahci_is_provisioned: Mbr, Bios, Ahci, 512, Optical, foreign, offline;
    full_an_mbr_disk_on_nvme_is_provisioned: Mbr, Bios, Nvme, 512, Usb, blank, offline;
    full_an_mbr_disk_on_usb_is_provisioned: Mbr, Bios, Usb, 512, Optical, blank, online;
    full_an_mbr_disk_on_sd_is_provisioned: Mbr, Bios, Sd, 512, Usb, foreign, offline;
    full_a_gpt_disk_on_ahci_is_provisioned_under_bios: Gpt, Bios, Ahci, 512, Optical, foreign, offline;
    full_a_gpt_disk_on_nvme_is_provisioned_under_bios: Gpt, Bios, Nvme, 512, Usb, blank, online;
    full_a_gpt_disk_on_usb_is_provisioned_under_bios: Gpt, Bios, Usb, 512, Optical, blank, offline;
    full_a_gpt_disk_on_sd_is_provisioned_under_bios: Gpt, Bios, Sd, 512, Usb, foreign, offline;
    full_a_gpt_disk_on_virtio_is_provisioned_under_uefi: Gpt, Uefi, Virtio, 512, Optical, foreign, online;
    full_a_gpt_disk_on_ahci_is_provisioned_under_uefi: Gpt, Uefi, Ahci, 512, Usb, blank, offline;
    full_a_gpt_disk_on_nvme_is_provisioned_under_uefi: Gpt, Uefi, Nvme, 512, Optical, blank, offline;
    full_a_gpt_disk_on_usb_is_provisioned_under_uefi: Gpt, Uefi, Usb, 512, Usb, foreign, online;
    full_a_gpt_disk_on_virtio_4k_is_provisioned_under_uefi: Gpt, Uefi, Virtio, 4096, Optical, foreign, offline;
    full_a_gpt_disk_on_sd_is_provisioned_under_uefi: Gpt, Uefi, Sd, 512, Usb, foreign, offline;
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_whole_system_fills_its_data_partition_and_knows_its_name() {
    let paths = Paths::of_checkout();
    let dir = tempfile::tempdir().unwrap();
    let (medium, disk) = (dir.path().join("media.iso"), dir.path().join("disk.img"));
    let built = demonstration_release();
    let parts = xtask::media::MediaParts {
        recovery: &robot_parts().recovery,
        config: Some(demo::robot_config("http://10.0.2.2:1").replace("{serial}", "{asset}")),
        keys: std::slice::from_ref(&built.parts.keys.public),
        assets: Some("# by serial number\nDEMO0001 left-arm\nDEMO0002 right-arm\n".into()),
        release: Some((&built.release, "stable")),
        arm: None,
        timeout_s: Some(3),
    };
    xtask::media::build(&paths, &parts, &medium, true).unwrap();
    File::create(&disk).unwrap().set_len(2200 << 30).unwrap();
    let mut machine = VirtualMachine::robot("provision-whole", &disk);
    machine.memory_mib = 1024;
    machine.extra = Drive::Usb.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("provisioned with 1.0.0 ", FLASH_TIMEOUT).unwrap();
    robot.wait_for("robot-left-arm login:", FLASH_TIMEOUT).unwrap();
    robot.type_text("root\n").unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
    robot
        .type_text("df --output=size -BG /var | tail -n1; cat /etc/machine-id; reflash verify; echo 'don'e\n")
        .unwrap();
    let shown = robot.wait_for("\ndone", BOOT_TIMEOUT).unwrap();
    let gib = shown.lines().find_map(|line| line.trim().strip_suffix('G')?.parse::<u64>().ok());
    // Of 2200 GiB ext4 keeps some for inodes.
    assert!(gib.is_some_and(|gib| gib > 2000), "{shown}");
    assert!(shown.contains("equals release 1.0.0"), "{shown}");
}
