//! Tests in virtual machines: the real GRUB, the real recovery kernel and initramfs, the real agent as PID 1.
//! Each test builds what it needs when nothing has built it before (`built.rs`). `cargo xtask test` runs them one after
//! the other.

mod accelerator;
mod applications;
mod boot_chain;
mod built;
mod by_hand;
mod cuts;
mod data;
mod deaths;
mod drill;
mod fallback;
mod floor;
mod health;
mod hostile;
mod late_disk;
mod media;
mod mend;
mod owners_disk;
mod provision;
mod reset;
mod slots;
mod standstill;
mod tree_sources;
mod two_systems;
mod undo;
mod unwritable;
mod update;
mod usb_drive;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reflash::boot::grubenv::names;
use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk::{self, DiskParts};
use xtask::paths::Paths;
use xtask::release::Spec;
use xtask::vm::{RunningMachine, VirtualMachine};

use crate::support::Fixture;
use crate::support::server::{TestServer, object, status};
use crate::support::tls::Authority;

/// A release of a small ext4 image with a few files, for robots of the demonstration's kind.
fn small_release() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    for number in 0..20_u32 {
        let content: Vec<u8> = (0..40_000_u32).map(|n| (n.wrapping_mul(number + 7) >> 5).to_le_bytes()[0]).collect();
        std::fs::write(tree.join(format!("etc/file{number}")), content).unwrap();
    }
    let image = dir.path().join("image");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg("16m").status();
    assert!(made.unwrap().success());
    Fixture::with(std::fs::read(image).unwrap(), for_demo_robots)
}

/// Makes a release fit the robots of the demonstration.
fn for_demo_robots(spec: &mut Spec) {
    spec.product = demo::PRODUCT.into();
    spec.hardware = vec![demo::HARDWARE.into()];
}

/// The disk of a robot for that release, with this configuration, files and boot environment.
fn disk(fixture: &Fixture, config: String, files: Vec<PathBuf>, environment: Vec<(&str, &str)>) -> PathBuf {
    disk_with_blocks_of(512, fixture, config, files, environment)
}

/// The same with this layout of `xtask/recipes`.
fn disk_with_layout(layout: &str, fixture: &Fixture, config: String, environment: Vec<(&str, &str)>) -> PathBuf {
    let (paths, robot) = (Paths::of_checkout(), built::robot_parts());
    let out = fixture.dir.path().join("disk.img");
    let parts = DiskParts {
        layout: &disk::read_layout(&paths.root.join("xtask/recipes").join(layout)).unwrap(),
        disk_bytes: disk::DEFAULT_BYTES,
        block_bytes: 512,
        grub: &robot.grub,
        recovery: &robot.recovery,
        config,
        keys: vec![fixture.dir.path().join("keys/reflash.pub")],
        files: Vec::new(),
        environment,
    };
    disk::build(&paths, &parts, &out, true).unwrap();
    out
}

fn disk_with_blocks_of(
    block_bytes: u32,
    fixture: &Fixture,
    config: String,
    files: Vec<PathBuf>,
    environment: Vec<(&str, &str)>,
) -> PathBuf {
    let (paths, robot) = (Paths::of_checkout(), built::robot_parts());
    let key = fixture.dir.path().join("keys/reflash.pub");
    let out = fixture.dir.path().join("disk.img");
    let parts = DiskParts {
        layout: &disk::read_layout(&paths.root.join("xtask/recipes/layout.toml")).unwrap(),
        disk_bytes: disk::DEFAULT_BYTES,
        block_bytes,
        grub: &robot.grub,
        recovery: &robot.recovery,
        config,
        keys: vec![key],
        files,
        environment,
    };
    disk::build(&paths, &parts, &out, true).unwrap();
    out
}

fn assert_system_is(disk: &Path, fixture: &Fixture) {
    demo::check_system(disk, &fixture.dir.path().join("system.img")).unwrap();
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_robot_with_a_dead_clock_battery_recovers_over_https_by_itself() {
    let fixture = small_release();
    let authority = Authority::new();
    let tree = fixture.tree();
    // Valid from well after the build time of the agent: only the certificate shows what time it is.
    let validity = [(2027, 6, 1), (2027, 9, 1)];
    let server = TestServer::start_tls(authority.issue("10.0.2.2", validity), move |request| {
        let path = request.target().trim_start_matches("/release/").to_owned();
        match std::fs::read(tree.join(path)) {
            Ok(content) => object(request, &content),
            Err(_) => status("404 Not Found"),
        }
    });
    let ca = authority.file.path().to_owned();
    let config = format!(
        "{}\n[network]\nca_file = \"/recovery/{}\"\n",
        demo::robot_config(&format!("https://10.0.2.2:{}/release", server.address.port())),
        ca.file_name().unwrap().to_string_lossy()
    );
    let disk = disk(&fixture, config, vec![ca], disk::environment_without_system());
    let mut machine = VirtualMachine::robot("https-2001", &disk);
    machine.rtc = Some("2001-01-01T00:00:00".into());
    let mut robot = machine.start().unwrap();
    // No key is pressed: the environment has no tries left.
    robot.wait_for("reason: tries", BOOT_TIMEOUT).unwrap();
    robot.wait_for("hardware clock", BOOT_TIMEOUT).unwrap();
    robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    // The reboot: the environment has been written and the state partition left clean.
    robot.wait_for("Start the system", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    assert_system_is(&disk, &fixture);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_lost_environment_with_an_intact_system_needs_no_network() {
    let fixture = small_release();
    let (server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
    let disk = disk(&fixture, demo::robot_config(&url), Vec::new(), disk::environment_without_system());
    let mut robot = VirtualMachine::robot("env-lost-1", &disk).start().unwrap();
    robot.wait_for("starting it", FLASH_TIMEOUT).unwrap();
    robot.wait_for("Start the system", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    drop(server);
    // The block of grubenv is zeroed where it lies, as a dying sector would be.
    disk::write_environment(&disk, &[0; 512]).unwrap();
    let robot = VirtualMachine::robot("env-lost-2", &disk).start().unwrap();
    robot.wait_for("reason: env-lost", BOOT_TIMEOUT).unwrap();
    let screen = robot.wait_for("is intact: starting it", BOOT_TIMEOUT).unwrap();
    assert!(!screen.contains("network:"), "{screen}");
    robot.wait_for("Start the system", BOOT_TIMEOUT).unwrap();
    drop(robot);
    let env = disk::read_environment(&disk).unwrap();
    assert!(env.get(names::TRIES).is_some() && env.get(names::RECOVERING).is_none());
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_refused_release_is_named_on_the_screen_and_writes_nothing() {
    let fixture = Fixture::with(crate::support::sample_image(300, 3), |spec| {
        spec.product = demo::PRODUCT.into();
        spec.hardware = vec!["another machine".into()];
    });
    let (_server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
    let disk = disk(&fixture, demo::robot_config(&url), Vec::new(), disk::environment_without_system());
    let mut robot = VirtualMachine::robot("refused", &disk).start().unwrap();
    robot.wait_for("another machine", FLASH_TIMEOUT).unwrap();
    robot.wait_for("trying again in", Duration::from_secs(20)).unwrap();
    robot.cut_power();
    let range = disk::partition_range(&disk, "system").unwrap();
    let mut system = vec![1; 1 << 20];
    let file = std::fs::File::open(&disk).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut system, range.start).unwrap();
    assert!(system.iter().all(|byte| *byte == 0));
    assert!(disk::read_environment(&disk).unwrap().get(names::RECOVERING).is_none());
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn the_demonstration_reflashes_a_robot_whose_system_partition_is_empty() {
    built::run_demonstration();
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn an_installed_system_verifies_itself_requests_recovery_keeps_its_data_and_is_reset_when_it_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    built::copy_of_installed_disk(&disk);
    // No key is pressed, and there is no server any more.
    let mut robot = VirtualMachine::robot("installed", &disk).start().unwrap();
    log_in(&mut robot);
    let answer = |robot: &mut RunningMachine, command: &str| -> String {
        // Quoted so that neither the terminal's echo nor the shell's looks like the answer.
        robot.type_text(&format!("{command}; echo 'exi't-$?\n")).unwrap();
        robot.wait_for("exit-", BOOT_TIMEOUT).unwrap() + &robot.wait_for("\n", BOOT_TIMEOUT).unwrap()
    };
    let verified = answer(&mut robot, "reflash verify");
    assert!(verified.contains("equals release 1.0.0") && verified.contains("exit-0"), "{verified}");
    let status = answer(&mut robot, "reflash status");
    assert!(status.contains("demo-robot 1.0.0") && status.contains("called itself good"), "{status}");
    let refused = answer(&mut robot, "touch /usr/x");
    assert!(refused.contains("Read-only file system"), "{refused}");
    answer(&mut robot, "echo kept > /etc/kept; echo kept > /var/kept; cat /etc/machine-id > /var/id; sync");
    answer(&mut robot, "reflash request");
    robot.type_text("reboot\n").unwrap();
    robot.wait_for("reason: requested", BOOT_TIMEOUT).unwrap();
    // The server is gone, so the recovery keeps asking, and names the server.
    robot.wait_for("asking http://10.0.2.2", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    // The request was for one start: the next one is the system's, with all the data of the machine.
    let mut machine = VirtualMachine::robot("after-request", &disk);
    machine.add_watchdog();
    let mut robot = machine.start().unwrap();
    log_in(&mut robot);
    let kept = answer(&mut robot, "cat /etc/kept /var/kept; cmp /etc/machine-id /var/id && echo same-id");
    assert!(kept.matches("kept\n").count() == 2 && kept.contains("\nsame-id"), "{kept}");
    // The system hangs: PID 1 stops, and no longer feeds the watchdog that it armed.
    let armed = answer(&mut robot, "cat /sys/class/watchdog/watchdog0/state /sys/class/watchdog/watchdog0/timeout");
    assert!(armed.contains("\nactive\n30\n"), "{armed}");
    robot.type_text("kill -SEGV 1\n").unwrap();
    robot.wait_for("Start the system", BOOT_TIMEOUT).unwrap();
    robot.wait_for("robot-demo0001 login:", BOOT_TIMEOUT).unwrap();
}

fn log_in(robot: &mut RunningMachine) {
    robot.wait_for("robot-demo0001 login:", BOOT_TIMEOUT).unwrap();
    robot.type_text("root\n").unwrap();
    robot.wait_for("root@robot-demo0001", BOOT_TIMEOUT).unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
}
