//! Factory provisioning: a machine with a disk of zeros, or with somebody else's, becomes a robot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reflash::disk::table;
use reflash::release::layout::{Layout, Scheme};
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::paths::Paths;
use xtask::tiny::Behaviour;
use xtask::vm::{Bus, Firmware, Machine};
use xtask::{disk, grub, kit};

use super::fallback::tiny_image;
use super::media::{Drive, assert_untouched, blank_disk, medium_for, recovery};
use crate::support::Fixture;
use crate::support::attached::{Attached, make_foreign};

/// One kind of machine.
struct Kind {
    name: &'static str,
    table: Scheme,
    firmware: Firmware,
    bus: Bus,
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
    let paths = Paths::of_checkout();
    let files =
        kit::files(&paths, &grub::build(&paths, true).unwrap(), &recovery(), &paths.dist().join("kit")).unwrap();
    Fixture::with(tiny_image("1", Behaviour::Good), |spec| {
        super::for_demo_robots(spec);
        spec.files = files;
        spec.layout = Some(layout(table));
    })
}

/// A robot that was blank, and what it was made with.
struct Made {
    fixture: Fixture,
    medium: PathBuf,
    disk: PathBuf,
}

/// From the medium to the system on the machine's own disk, and what other tools say about that disk.
fn provision(kind: &Kind) -> Made {
    let name = |stage: &str| format!("provision-{}-{stage}", kind.name);
    let fixture = release(kind.table);
    let server = demo::serve_to_guests(&fixture.tree()).unwrap();
    let url = kind.online.then_some(server.1.as_str());
    let arm = kind.foreign.then_some("yes");
    // Two disks are present: the larger one is meant.
    let (medium, id) = medium_for(&fixture, arm, url, "[provision.disk]\nmin_gb = 4\n");
    let disk = blank_disk(&fixture, "disk.img");
    if kind.foreign {
        make_foreign(&disk, kind.block_bytes);
    }
    let bystander = fixture.dir.path().join("bystander.img");
    File::create(&bystander).unwrap().set_len(3 << 30).unwrap();
    let machine = |stage: &str, with_medium: bool| {
        let mut machine = Machine::robot(&name(stage), &disk);
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
    let told = robot.wait_for("provisioned with 1 ", FLASH_TIMEOUT).unwrap();
    assert_eq!(told.contains("no network is needed"), !kind.online, "{told}");
    // The medium is still there, and does no harm. OVMF sees no SD card, so that only the agent can know its own work.
    let unseen = kind.bus == Bus::Sd && kind.firmware == Firmware::Uefi;
    if unseen {
        robot.wait_for("was already provisioned from this medium", FLASH_TIMEOUT).unwrap();
    } else {
        robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
        robot.type_text("reflash status; echo 'don'e\n").unwrap();
        let told = robot.wait_for("done", BOOT_TIMEOUT).unwrap();
        assert!(told.contains("demo-robot 1 (serial 1)"), "{told}");
        assert!(told.contains("1: reason provision: installed 1 (serial 1)"), "{told}");
    }
    robot.cut_power();
    assert_untouched(&bystander);
    check_disk(kind, &disk);
    let mut own = machine("own", false);
    if kind.bus == Bus::Sd {
        // SeaBIOS starts no SD card by itself either: its place is taken by a reader.
        own.bus = Bus::Usb;
    }
    let robot = own.start().unwrap();
    robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    Made { fixture, medium, disk }
}

/// What tools that know nothing of reflash say.
fn check_disk(kind: &Kind, disk: &Path) {
    let device = Attached::new(disk, kind.block_bytes);
    device.assert_sound(&layout(kind.table));
    // No signature of the old owner shows through.
    let (_, signatures) = device.told("wipefs", &["--noheadings"]);
    let wanted = if kind.table == Scheme::Gpt { 3 } else { 1 };
    assert_eq!(signatures.lines().count(), wanted, "{signatures}");
}

const BLANK_BIOS: Kind = Kind {
    name: "gpt-bios",
    table: Scheme::Gpt,
    firmware: Firmware::Bios,
    bus: Bus::Virtio,
    block_bytes: 512,
    drive: Drive::Stick,
    foreign: false,
    online: false,
};

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn a_blank_disk_is_provisioned_from_a_stick_without_a_network() {
    provision(&BLANK_BIOS);
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_foreign_disk_is_provisioned_by_uefi_from_a_disc_and_a_server() {
    provision(&Kind {
        name: "gpt-uefi-4k",
        firmware: Firmware::Uefi,
        bus: Bus::Nvme,
        block_bytes: 4096,
        drive: Drive::Optical,
        foreign: true,
        online: true,
        ..BLANK_BIOS
    });
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_blank_disk_is_provisioned_by_network_boot_and_the_station_sees_it() {
    provision_by_network(Firmware::Bios, "provision-netboot-bios");
}

#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_blank_disk_is_provisioned_by_network_boot_under_uefi() {
    provision_by_network(Firmware::Uefi, "provision-netboot-uefi");
}

fn provision_by_network(firmware: Firmware, name: &str) {
    let fixture = release(Scheme::Gpt);
    let server = crate::station::serve(&fixture);
    let url = format!("http://10.0.2.2:{}", server.address.port());
    let out = fixture.dir.path().join("netboot");
    let config = format!("{}\n[report]\nurl = \"{url}/report\"\n", demo::robot_config(&url));
    let parts = xtask::media::Parts {
        recovery: &recovery(),
        config: Some(config.replace("{serial}", "{asset}")),
        keys: &[fixture.dir.path().join("keys/reflash.pub")],
        assets: Some("DEMO0001 left-arm\n".into()),
        release: None,
        arm: None,
        timeout_s: None,
    };
    xtask::media::netboot::build(&parts, &out).unwrap();
    let disk = blank_disk(&fixture, "disk.img");
    let mut machine = Machine::robot(name, &disk);
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

/// Nothing on an MBR tells what a partition is for.
#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_an_mbr_robot_is_repaired_from_the_medium_that_made_it() {
    let Made { fixture, medium, disk } = provision(&Kind { name: "mbr-repair", table: Scheme::Mbr, ..BLANK_BIOS });
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let table = table::read(&mut &file, 512).unwrap().unwrap();
    let system = table.partitions.iter().find(|entry| entry.number == 3).unwrap();
    file.write_all_at(&[0xff; 1 << 20], system.first_lba * 512).unwrap();
    let mut machine = Machine::robot("provision-mbr-repair", &disk);
    machine.extra = Drive::Stick.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("Provision this machine", BOOT_TIMEOUT).unwrap();
    robot.type_text("r").unwrap();
    let told = robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    assert!(told.contains("no network is needed"), "{told}");
    robot.cut_power();
    let mut repaired = vec![0; fixture.image.len()];
    file.read_exact_at(&mut repaired, system.first_lba * 512).unwrap();
    assert!(repaired == fixture.image);
}

/// As a factory does that writes whole disks: `cargo xtask disk`.
#[test]
#[ignore = "needs virtual machines: cargo xtask test"]
fn full_a_disk_image_for_large_blocks_becomes_a_robot() {
    let fixture = release(Scheme::Gpt);
    let (_server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
    let environment = disk::environment_without_system();
    let disk = super::disk_with_blocks_of(4096, &fixture, demo::robot_config(&url), Vec::new(), environment);
    let mut machine = Machine::robot("disk-4k", &disk);
    (machine.firmware, machine.bus, machine.block_bytes) = (Firmware::Uefi, Bus::Nvme, 4096);
    let mut robot = machine.start().unwrap();
    robot.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    robot.cut_power();
    Attached::new(&disk, 4096).assert_sound(&layout(Scheme::Gpt));
}

/// One story for each kind of machine; every combination of the rest once in twelve.
macro_rules! provision_every_kind {
    ($($name:ident: $table:ident, $firmware:ident, $bus:ident, $block_bytes:literal, $drive:ident, $disk:ident, $line:ident;)+) => {
        $(
            #[test]
            #[ignore = "needs virtual machines: cargo xtask test"]
            fn $name() {
                provision(&Kind {
                    name: stringify!($name),
                    table: Scheme::$table,
                    firmware: Firmware::$firmware,
                    bus: Bus::$bus,
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
    full_mbr_virtio: Mbr, Bios, Virtio, 512, Stick, foreign, online;
    full_mbr_ahci: Mbr, Bios, Ahci, 512, Optical, foreign, offline;
    full_mbr_nvme: Mbr, Bios, Nvme, 512, Stick, blank, offline;
    full_mbr_usb: Mbr, Bios, Usb, 512, Optical, blank, online;
    full_mbr_sd: Mbr, Bios, Sd, 512, Stick, foreign, offline;
    full_bios_ahci: Gpt, Bios, Ahci, 512, Optical, foreign, offline;
    full_bios_nvme: Gpt, Bios, Nvme, 512, Stick, blank, online;
    full_bios_usb: Gpt, Bios, Usb, 512, Optical, blank, offline;
    full_bios_sd: Gpt, Bios, Sd, 512, Stick, foreign, offline;
    full_uefi_virtio: Gpt, Uefi, Virtio, 512, Optical, foreign, online;
    full_uefi_ahci: Gpt, Uefi, Ahci, 512, Stick, blank, offline;
    full_uefi_nvme: Gpt, Uefi, Nvme, 512, Optical, blank, offline;
    full_uefi_usb: Gpt, Uefi, Usb, 512, Stick, foreign, online;
    full_uefi_virtio_4k: Gpt, Uefi, Virtio, 4096, Optical, foreign, offline;
    full_uefi_sd: Gpt, Uefi, Sd, 512, Stick, foreign, offline;
}

#[test]
#[ignore = "needs virtual machines and the release of the demonstration: cargo xtask test"]
fn full_a_whole_system_fills_its_data_partition_and_knows_its_name() {
    let paths = Paths::of_checkout();
    let dir = tempfile::tempdir().unwrap();
    let (medium, disk) = (dir.path().join("media.iso"), dir.path().join("disk.img"));
    let tree = paths.dist().join("release");
    let parts = xtask::media::Parts {
        recovery: &recovery(),
        config: Some(demo::robot_config("http://10.0.2.2:1").replace("{serial}", "{asset}")),
        keys: &[paths.work().join("keys/reflash.pub")],
        assets: Some("# by serial number\nDEMO0001 left-arm\nDEMO0002 right-arm\n".into()),
        release: Some((&tree, "stable")),
        arm: None,
        timeout_s: Some(3),
    };
    xtask::media::build(&paths, &parts, &medium, true).unwrap();
    File::create(&disk).unwrap().set_len(2200 << 30).unwrap();
    let mut machine = Machine::robot("provision-whole", &disk);
    machine.memory_mib = 1024;
    machine.extra = Drive::Stick.arguments(&medium);
    let mut robot = machine.start().unwrap();
    robot.wait_for("provisioned with 1.0.0 ", FLASH_TIMEOUT).unwrap();
    robot.wait_for("robot-left-arm login:", FLASH_TIMEOUT).unwrap();
    robot.type_text("root\n").unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
    robot
        .type_text("df --output=size -BG /var | tail -n1; cat /etc/machine-id; reflash verify; echo 'don'e\n")
        .unwrap();
    let told = robot.wait_for("\ndone", BOOT_TIMEOUT).unwrap();
    let gib = told.lines().find_map(|line| line.trim().strip_suffix('G')?.parse::<u64>().ok());
    // Of 2200 GiB ext4 keeps some for inodes.
    assert!(gib.is_some_and(|gib| gib > 2000), "{told}");
    assert!(told.contains("equals release 1.0.0"), "{told}");
}
