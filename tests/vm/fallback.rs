//! A system that does not come up ends in recovery by itself, each way with its own reason, and is up again at the end.

use std::path::PathBuf;

use xtask::demo::{self, FLASH_TIMEOUT};
use xtask::disk;
use xtask::serve::Server;
use xtask::tiny::{self, Behaviour};
use xtask::vm::{Machine, Running};

use crate::support::Fixture;

/// A signed release of a tiny system, its server and a robot's disk that follows it.
pub struct Robot {
    _fixture: Fixture,
    pub disk: PathBuf,
    _server: Server,
}

/// The image of a tiny system.
pub fn tiny_image(version: &str, behaviour: Behaviour) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("image");
    let paths = xtask::paths::Paths::of_checkout();
    let spec = tiny::Spec { version, behaviour, image_mib: tiny::MIN_MIB, padding_mib: 2 };
    tiny::build(&paths, &spec, &paths.dist().join("reflash"), &out).unwrap();
    std::fs::read(out).unwrap()
}

impl Robot {
    /// A robot with an empty system partition, and a release of a tiny system to recover from.
    pub fn new(behaviour: Behaviour) -> Self {
        let fixture = Fixture::with(tiny_image("1", behaviour), super::for_demo_robots);
        let (server, url) = demo::serve_to_guests(&fixture.tree()).unwrap();
        let disk = super::disk(&fixture, demo::robot_config(&url), Vec::new(), disk::environment_without_system());
        Self { _fixture: fixture, disk, _server: server }
    }

    pub fn machine(&self, name: &str) -> Machine {
        Machine::robot(name, &self.disk)
    }
}

/// Waits for texts in this order.
pub fn expect(robot: &Running, texts: &[&str]) {
    for text in texts {
        robot.wait_for(text, FLASH_TIMEOUT).unwrap();
    }
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_tiny_system_is_installed_and_starts() {
    let robot = Robot::new(Behaviour::Good);
    let mut vm = robot.machine("tiny").start().unwrap();
    expect(&vm, &["reason: tries", "starting it"]);
    expect(&vm, &["Start the system", "tiny system 1 is up"]);
    vm.cut_power();
    assert_eq!(demo::read_environment(&robot.disk).unwrap().get("reflash_tries"), Some("3"));
}
