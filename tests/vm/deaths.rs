//! The recovery's process is killed again and again, at any moment: PID 1 starts it again, and the robot ends as it
//! would have.
//!
//! SysRq's `i` is what kills: the kernel then sends SIGKILL to every process but PID 1.

use std::process::Command;
use std::time::{Duration, Instant};

use xtask::demo::{self, BOOT_TIMEOUT, FLASH_TIMEOUT};
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::{RunningMachine, VirtualMachine};

use super::fallback::tiny_image;
use crate::support::Fixture;

/// What GRUB gives the kernel beside what it needs. An emulated machine on a busy host now and then fails the kernel's
/// test of its timer, and stands still: of more than a hundred boots one did. Where the kernel stands for another
/// reason, its messages say where.
const SCRIPT: &str =
    "set consoles=\"console=tty0 console=ttyS0,115200 sysrq_always_enabled no_timer_check ignore_loglevel\"\n";
/// What PID 1 says of each death.
const DIED: &str = "the recovery's process died";

/// Kills the recovery's process until the release is installed, and then waits until the system is up. Returns the
/// number of deaths.
fn install_under_fire(robot: &mut RunningMachine, seed: &mut u64) -> u32 {
    let mut deaths = 0;
    let (installed, killed) = ("is installed after", DIED);
    // The first shot comes when there is something to hit.
    robot.wait_for("[1/8]", BOOT_TIMEOUT).unwrap();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < FLASH_TIMEOUT * 20, "not installed after {deaths} deaths in one recovery");
        // Four of five shots hit while the process starts, finds disk and network and plans; the fifth lets it get on.
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let most_ms = if (*seed >> 40).is_multiple_of(5) { 9_000 } else { 1_500 };
        let pause = Duration::from_millis(100 + (*seed >> 33) % most_ms);
        match robot.wait_for_any(&[installed], pause) {
            Ok(_) => break,
            Err(_) => robot.kill_processes().unwrap(),
        }
        match robot.wait_for_any(&[installed, killed], FLASH_TIMEOUT).unwrap().0 {
            0 => break,
            _ => deaths += 1,
        }
    }
    robot.wait_for("is up", BOOT_TIMEOUT).unwrap();
    deaths
}

/// Kills in one recovery after the other until there were so many deaths.
fn die_often(name: &str, wanted: u32, seed: &mut u64) {
    let mut fixture = Fixture::with(tiny_image("1", Behaviour::Good), super::for_demo_robots);
    let (_server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
    // Slow enough to be hit in every phase, and yet to get on between two deaths.
    let config = demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]");
    let config = format!("{config}[boot]\noffline_s = 20\n[network]\nmax_rate_kib_s = 2048\n");
    let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
    let script = fixture.dir.path().join("local.cfg");
    std::fs::write(&script, SCRIPT).unwrap();
    let device = format!("{}?offset={}", disk.display(), disk::partition_range(&disk, "recovery").unwrap().start);
    let request = format!("write {} /grub/local.cfg", script.display());
    assert!(Command::new("debugfs").args(["-w", "-R", &request, &device]).status().unwrap().success());
    let (mut deaths, mut round) = (0, 1);
    while deaths < wanted {
        let mut robot = VirtualMachine::robot(&format!("{name}-{round}"), &disk).start().unwrap();
        if round > 1 {
            robot.wait_for("Recover/Reflash", BOOT_TIMEOUT).unwrap();
            robot.type_text("r").unwrap();
        }
        deaths += install_under_fire(&mut robot, seed);
        robot.cut_power();
        super::assert_system_is(&disk, &fixture);
        round += 1;
        let version = round.to_string();
        fixture.publish(tiny_image(&version, Behaviour::Good), |spec| {
            super::for_demo_robots(spec);
            spec.version = version;
        });
    }
    eprintln!("{deaths} deaths in {} recoveries", round - 1);
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_recovery_whose_process_is_killed_at_any_moment_ends_well() {
    die_often("killed", 5, &mut 1);
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_thousand_deaths_end_well() {
    die_often("killed-often", 1000, &mut 2);
}
