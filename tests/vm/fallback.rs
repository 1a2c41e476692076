//! A robot whose system does not come up recovers by itself: each kind of damage has its own reason, and the system is
//! up at the end.
//!
//! The system is the tiny one of `xtask/src/test_system.rs`; GRUB, recovery and release are the real ones. Tests named
//! `full_` take minutes each: only `cargo xtask test --full` runs them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reflash::boot::grubenv::names;
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk;
use xtask::paths::Paths;
use xtask::serve::Server;
use xtask::test_system::{self, Behaviour};
use xtask::vm::{BadSector, DiskBus, GuestFirmware, RunningMachine, VirtualMachine};

use crate::support::Fixture;
use crate::support::server::{Act, TestServer, object, status};

/// A robot with a disk, a signed release of a tiny system that it follows, and a server of that release.
pub struct Robot {
    fixture: Fixture,
    pub disk: PathBuf,
    server: Option<Server>,
    firmware: GuestFirmware,
    starts: u32,
    worn_out: bool,
    bad_sector: Option<BadSector>,
}

/// The image of a tiny system.
pub fn tiny_image(version: &str, behaviour: Behaviour) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("image");
    let paths = Paths::of_checkout();
    let spec = test_system::TestSystem { version, behaviour, image_mib: test_system::MIN_MIB, padding_mib: 2 };
    test_system::build(&paths, &spec, &super::built::robot_parts().agent, &out).unwrap();
    std::fs::read(out).unwrap()
}

impl Robot {
    /// A robot with an empty system partition, and a release of a tiny system to recover from.
    pub fn new(behaviour: Behaviour, firmware: GuestFirmware, tries: u8) -> Self {
        Self::with_config(behaviour, firmware, tries, "")
    }

    /// The same with more keys of the section `[boot]`.
    pub fn with_config(behaviour: Behaviour, firmware: GuestFirmware, tries: u8, boot: &str) -> Self {
        let fixture = Fixture::with(tiny_image("1", behaviour), super::for_demo_robots);
        let (server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
        // The robot does not wait for its place in a fleet and gives up early, because the tests are long enough.
        let config = demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]");
        let config = format!("{config}[boot]\ntries = {tries}\nrecoveries = 2\noffline_s = 20\n{boot}");
        let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
        Self { fixture, disk, server: Some(server), firmware, starts: 0, worn_out: false, bad_sector: None }
    }

    /// A robot with two systems, both of them empty, and a release of a tiny system to recover from.
    pub fn with_two_systems(behaviour: Behaviour, firmware: GuestFirmware, tries: u8) -> Self {
        let fixture = Fixture::with(tiny_image("1", behaviour), super::for_demo_robots);
        let (server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
        let config = demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]");
        let config = format!("{config}[boot]\ntries = {tries}\nrecoveries = 2\noffline_s = 20\n");
        let environment = disk::environment_without_system();
        let disk = super::disk_with_layout("layout-two-systems.toml", &fixture, config, environment);
        Self { fixture, disk, server: Some(server), firmware, starts: 0, worn_out: false, bad_sector: None }
    }

    /// A robot with an empty system partition, and a release of this image to recover from.
    pub fn with_image(image: Vec<u8>, boot: &str) -> Self {
        let fixture = Fixture::with(image, super::for_demo_robots);
        let (server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
        let config = demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]");
        let disk =
            super::disk(&fixture, format!("{config}[boot]\n{boot}"), Vec::new(), disk::environment_without_system());
        Self {
            fixture,
            disk,
            server: Some(server),
            firmware: GuestFirmware::Bios,
            starts: 0,
            worn_out: false,
            bad_sector: None,
        }
    }

    /// Publishes a release of this image in place of the one before.
    pub fn publish_image(&mut self, version: &str, image: Vec<u8>) {
        self.fixture.publish(image, |spec| {
            super::for_demo_robots(spec);
            spec.version = version.into();
        });
    }

    /// Publishes another release in place of the first.
    pub fn publish(&mut self, version: &str, behaviour: Behaviour) {
        self.fixture.publish(tiny_image(version, behaviour), |spec| {
            super::for_demo_robots(spec);
            spec.version = version.into();
        });
    }

    /// Publishes a good release that also carries these files.
    pub fn publish_with(&mut self, version: &str, files: Vec<(String, PathBuf)>) {
        self.fixture.publish(tiny_image(version, Behaviour::Good), |spec| {
            super::for_demo_robots(spec);
            spec.version = version.into();
            spec.files = files;
        });
    }

    /// Takes the robot's server away.
    pub fn stop_serving(&mut self) {
        self.server = None;
    }

    /// Switches the robot on.
    pub fn start(&mut self, name: &str) -> RunningMachine {
        self.start_with(name, &[])
    }

    /// Switches the robot on, with more arguments for QEMU.
    pub fn start_with(&mut self, name: &str, more: &[&str]) -> RunningMachine {
        self.starts += 1;
        let mut machine = VirtualMachine::robot(&format!("{name}-{}", self.starts), &self.disk);
        machine.firmware = self.firmware;
        machine.read_only = self.worn_out;
        machine.bad_sector = self.bad_sector;
        machine.extra.extend(more.iter().map(|word| (*word).to_owned()));
        machine.add_watchdog();
        machine.add_usb_ports();
        machine.start().unwrap()
    }

    /// Lets writes of the first sector of a partition fail, or not any more.
    pub fn refuse_writes_of(&mut self, partition: Option<&str>) {
        self.bad_sector = partition.map(|name| BadSector { number: self.offset(name) / 512, fails_writes: true });
    }

    /// Lets the disk refuse every write from now on.
    pub fn wear_out(&mut self) {
        self.worn_out = true;
    }

    /// Switches the robot on with its disk behind a USB bridge.
    pub fn start_from_usb(&mut self, name: &str) -> RunningMachine {
        self.starts += 1;
        let mut machine = VirtualMachine::robot(&format!("{name}-{}", self.starts), &self.disk);
        machine.bus = DiskBus::Usb;
        machine.start().unwrap()
    }

    /// The release tree.
    pub fn tree(&self) -> PathBuf {
        self.fixture.tree()
    }

    /// The image that was published last.
    pub fn image(&self) -> PathBuf {
        self.fixture.dir.path().join("system.img")
    }

    fn offset(&self, partition: &str) -> u64 {
        disk::partition_range(&self.disk, partition).unwrap().start
    }

    fn write(&self, offset: u64, content: &[u8]) {
        File::options().write(true).open(&self.disk).unwrap().write_all_at(content, offset).unwrap();
    }

    /// Spoils the beginning of a file of the system partition, where it lies.
    fn spoil(&self, path: &str) {
        self.spoil_on("system", path);
    }

    /// Spoils the beginning of a file of any partition, where it lies.
    pub fn spoil_on(&self, partition: &str, path: &str) {
        self.write(disk::file_offset(&self.disk, partition, path).unwrap(), &[0xdb; 8192]);
    }
}

/// Waits for texts in this order. Returns the text before the last one, with it.
pub fn expect(robot: &RunningMachine, texts: &[&str]) -> String {
    texts.iter().fold(String::new(), |_, text| robot.wait_for(text, FLASH_TIMEOUT).unwrap())
}

/// Runs a command in the shell of the tiny system. Returns what it prints.
pub fn ask(robot: &mut RunningMachine, command: &str) -> String {
    robot.type_text(&format!("{command}; echo 'exi't-$?\n")).unwrap();
    robot.wait_for("exit-", BOOT_TIMEOUT).unwrap() + &robot.wait_for("\n", BOOT_TIMEOUT).unwrap()
}

fn recover_from_every_kind_of_damage(firmware: GuestFirmware, name: &str) {
    let mut robot = Robot::new(Behaviour::Good, firmware, 3);
    let mut vm = robot.start(name);
    expect(&vm, &["reason: tries", "starting it", "tiny system 1 is up"]);

    // The kernel cannot be read: recovery without a key, and the report names what was damaged.
    vm.cut_power();
    robot.spoil("/boot/vmlinuz");
    vm = robot.start(name);
    let shown = expect(&vm, &["Recovery, reason: system-unreadable", "differs from the installed release at sectors"]);
    assert!(!shown.contains("network:"), "{shown}");
    expect(&vm, &["starting it", "tiny system 1 is up"]);

    // The file system is destroyed.
    vm.cut_power();
    robot.write(robot.offset("system"), &[0; 64 * 1024]);
    vm = robot.start(name);
    expect(&vm, &["Recovery, reason: system-unreadable", "starting it", "tiny system 1 is up"]);

    // The state partition is destroyed: nothing is known any more, and the robot comes back all the same.
    vm.cut_power();
    robot.write(robot.offset("state"), &[0xdb; 4 << 20]);
    vm = robot.start(name);
    expect(&vm, &["reason: env-lost", "was recreated", "starting it", "tiny system 1 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("reason env-lost: installed 1 (serial 1)"), "{status}");
    assert!(status.contains("a good boot followed"), "{status}");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_request_without_an_answer_starts_the_intact_system_again() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("unanswered");
    expect(&vm, &["starting it", "tiny system 1 is up"]);
    robot.stop_serving();
    ask(&mut vm, "reflash request");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["reason: requested", "asking http://", "no release is available", "tiny system 1 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("reason requested: started the intact system"), "{status}");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_blank_robot_is_recovered_and_comes_back_from_every_kind_of_damage_on_bios() {
    recover_from_every_kind_of_damage(GuestFirmware::Bios, "damage-bios");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_blank_robot_is_recovered_and_comes_back_from_every_kind_of_damage_on_uefi() {
    recover_from_every_kind_of_damage(GuestFirmware::Uefi, "damage-uefi");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_bad_release_is_tried_as_often_as_configured_and_then_the_robot_waits_for_a_better_one() {
    let mut robot = Robot::new(Behaviour::NeverGood, GuestFirmware::Bios, 2);
    let mut vm = robot.start("bad-release");
    expect(&vm, &["reason: tries", "starting it"]);
    let twice = ["does not call itself good", "does not call itself good"];
    expect(&vm, &twice);
    expect(&vm, &["reason: tries", "is installed"]);
    expect(&vm, &twice);
    expect(&vm, &["reason: tries", "parked: release 1 was installed 2 times", "still parked"]);
    // A restart does not get around this; a person who chooses recovery in the menu does.
    vm.cut_power();
    let mut vm = robot.start("bad-release");
    expect(&vm, &["reason: tries", "parked: release 1"]);
    vm.cut_power();
    let mut vm = robot.start("bad-release");
    vm.wait_for("Recover/Reflash", BOOT_TIMEOUT).unwrap();
    vm.type_text("r").unwrap();
    expect(&vm, &["reason: menu", "1 is installed", "does not call itself good"]);
    vm.cut_power();
    // A robot that is parked again finds the better release by itself.
    disk::change_environment(&robot.disk, &[(names::TRIES, "0"), (names::RECOVERIES, "1:2")]).unwrap();
    let vm = robot.start("bad-release");
    expect(&vm, &["parked: release 1", "still parked"]);
    robot.publish("2", Behaviour::Good);
    expect(&vm, &["2 is installed", "tiny system 2 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_panics_and_hangs_end_in_recovery_and_a_better_release() {
    let mut robot = Robot::new(Behaviour::Panic, GuestFirmware::Bios, 1);
    let vm = robot.start("panic");
    expect(&vm, &["reason: tries", "starting it", "tiny system 1 panics"]);
    robot.publish("2", Behaviour::Hang);
    expect(&vm, &["reason: tries", "2 is installed", "tiny system 2 hangs"]);
    robot.publish("3", Behaviour::Good);
    expect(&vm, &["reason: tries", "3 is installed", "tiny system 3 is up"]);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_no_damaged_environment_stops_a_robot_or_erases_its_system() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("environment");
    expect(&vm, &["tiny system 1 is up"]);
    vm.cut_power();
    // The directory names an inode that is not in use: the file can be neither read nor replaced.
    let device = format!("{}?offset={}", robot.disk.display(), robot.offset("state"));
    assert!(Command::new("debugfs").args(["-w", "-R", "clri /grubenv", &device]).status().unwrap().success());
    vm = robot.start("environment");
    expect(&vm, &["Recovery, reason: env-lost", "was made anew", "tiny system 1 is up"]);
    vm.cut_power();
    // From here on there is no server: the robot has to recover without a download.
    robot.stop_serving();
    let header = b"# GRUB Environment Block\n";
    let mut unknown = [b'#'; 512];
    unknown[..header.len() + 24].copy_from_slice(&[&header[..], b"x=1\nroot=hd9\nprefix=/no\n"].concat());
    let mut cut = [0; 512];
    cut[..header.len() + 14].copy_from_slice(&[&header[..], b"reflash_tries="].concat());
    let noise: Vec<u8> = (0..512_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    for (name, block) in [("zeros", &[0; 512][..]), ("noise", &noise), ("cut", &cut), ("unknown", &unknown)] {
        disk::write_environment(&robot.disk, block.try_into().unwrap()).unwrap();
        let mut vm = robot.start("environment");
        expect(&vm, &["Recovery, reason: env-lost", "is intact: starting it", "tiny system 1 is up"]);
        vm.cut_power();
        let env = disk::read_environment(&robot.disk).unwrap();
        assert_eq!((env.get(names::TRIES), env.get(names::BOOT_OK)), (Some("3"), Some("1")), "{name}");
    }
    // A full one, of a robot that used up its tries. Its intact system was good before: its surroundings are at fault.
    let full = format!("{}reflash_tries=0\nfiller={}\n", String::from_utf8_lossy(header), "x".repeat(463));
    disk::write_environment(&robot.disk, full.as_bytes().try_into().unwrap()).unwrap();
    let mut vm = robot.start("environment");
    expect(&vm, &["Recovery, reason: tries", "other programs: filler", "safe start 1", "tiny system 1 is up"]);
    vm.cut_power();
    assert_eq!(disk::read_environment(&robot.disk).unwrap().get("filler"), None);
    demo::check_system(&robot.disk, &robot.image()).unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_robot_whose_state_partition_is_full_recovers() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    // The partition is filled to the last block before anything is installed.
    let start = robot.offset("state");
    let filler = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(filler.path(), vec![0x55; 64 << 20]).unwrap();
    let device = format!("{}?offset={start}", robot.disk.display());
    let request = format!("write {} filler", filler.path().display());
    assert!(Command::new("debugfs").args(["-w", "-R", &request, &device]).status().unwrap().success());
    let mut vm = robot.start("full-state");
    expect(&vm, &["reason: tries", "starting it", "tiny system 1 is up"]);
    let status = ask(&mut vm, "reflash status; df /run; ls /");
    assert!(status.contains("installed 1 (serial 1)"), "{status}");
    vm.cut_power();
    demo::check_system(&robot.disk, &robot.image()).unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_stalled_download_is_ended_by_the_watchdog() {
    let fixture = Fixture::with(tiny_image("1", Behaviour::Good), super::for_demo_robots);
    let (tree, stalled) = (fixture.tree(), Arc::new(AtomicBool::new(true)));
    let stalls = Arc::clone(&stalled);
    let server = TestServer::start(move |request| {
        let path = request.target().trim_start_matches("/release/").to_owned();
        let Ok(content) = std::fs::read(tree.join(&path)) else { return status("404 Not Found") };
        // What the plan asks for by ranges is small.
        let of_a_pack = request.range().is_some() && content.len() > 1024 * 1024;
        if stalls.load(Ordering::SeqCst) && of_a_pack {
            // The head of a response, and then not one byte more, for longer than any time limit.
            let length = format!("Content-Length: {}", content.len());
            return vec![
                Act::Send(format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\n").into()),
                Act::Wait(Duration::from_secs(900)),
            ];
        }
        object(request, &content)
    });
    let url = format!("http://10.0.2.2:{}/release", server.address.port());
    let config =
        demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]") + "[watchdog]\nstall_s = 30\n";
    let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
    let mut machine = VirtualMachine::robot("stalled", &disk);
    machine.add_watchdog();
    let robot = machine.start().unwrap();
    // The driver is found beside the phases: the watchdog speaks up before or after the writing begins.
    expect(&robot, &["[6/8] write", "no progress for 3", "the watchdog resets the machine in 60 s"]);
    let silent = Instant::now();
    expect(&robot, &["Recover/Reflash"]);
    let reset_after = silent.elapsed();
    assert!(reset_after > Duration::from_secs(30) && reset_after < Duration::from_secs(120), "{reset_after:?}");
    // A download that goes well would be over before there is a watchdog to ask.
    expect(&robot, &["Recovery, reason: recovering", "the watchdog caused the last restart"]);
    stalled.store(false, Ordering::SeqCst);
    expect(&robot, &["tiny system 1 is up"]);
}
