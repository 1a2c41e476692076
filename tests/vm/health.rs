//! A release whose application crashes is not called good, and is taken back; the report says why.
//!
//! The system is the demonstration's Debian: it takes its own systemd to start, restart and count.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use xtask::demo::BOOT_TIMEOUT;
use xtask::vm::RunningMachine;

use super::built;
use super::fallback::{Robot, ask, expect};

/// An application that crashes some seconds after each start and is restarted each time: systemd never calls it failed.
const CRASHING: &str = "[Unit]\nDescription=Application\n[Service]\nExecStart=/bin/sh -c 'sleep 3; exit 1'\nRestart=always\n\
     RestartSec=2\n[Install]\nWantedBy=multi-user.target\n";

/// An image, changed by `change`, which gets the deployment's root.
pub fn changed_image(from: &Path, change: impl FnOnce(&Path)) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("system.img");
    fs::copy(from, &image).unwrap();
    let at = directory.path().join("root");
    fs::create_dir(&at).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
    let output = Command::new("find").arg(at.join("ostree/deploy")).args(["-path", "*/deploy/*.0", "-prune"]).output();
    let found = String::from_utf8(output.unwrap().stdout).unwrap();
    change(Path::new(found.lines().next().expect("the image has a deployment")));
    run(Command::new("umount").arg(&at));
    File::open(&image).unwrap().sync_all().unwrap();
    fs::read(image).unwrap()
}

/// Puts an application's unit into the image, enabled.
fn with_application(root: &Path) {
    let units = root.join("usr/lib/systemd/system");
    fs::write(units.join("app.service"), CRASHING).unwrap();
    std::os::unix::fs::symlink("../app.service", units.join("multi-user.target.wants/app.service")).unwrap();
}

/// Waits for a good boot, then logs in.
pub fn good_boot(vm: &mut RunningMachine) {
    expect(vm, &["this boot is good"]);
    vm.type_text("\n").unwrap();
    vm.wait_for("login:", BOOT_TIMEOUT).unwrap();
    vm.type_text("root\n").unwrap();
    vm.wait_for("# ", BOOT_TIMEOUT).unwrap();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_release_whose_application_crashes_is_not_called_good_and_taken_back() {
    let first = fs::read(&built::demonstration_release().image).unwrap();
    let mut robot = Robot::with_image(first, "tries = 1\nsettle_s = 10\ngood_within_s = 150\n");
    let mut vm = robot.start("crashing");
    expect(&vm, &["starting it"]);
    good_boot(&mut vm);
    let healthy = ask(&mut vm, "reflash health; reflash status --json | grep -c '\"healthy\":true'");
    assert!(healthy.contains("this system is healthy") && healthy.contains("exit-0"), "{healthy}");

    robot.publish_image("2", changed_image(&built::demonstration_release().image, with_application));
    ask(&mut vm, "reflash request");
    vm.type_text("systemctl reboot\n").unwrap();
    expect(&vm, &["reason: requested", "2 is installed", "not good yet: app.service has crashed"]);
    let shown = expect(&vm, &["not healthy: app.service has crashed", "has not called itself good within 150 s"]);
    assert!(!shown.contains("this boot is good"), "{shown}");
    expect(&vm, &["reason: tries", "2 is taken back, since none of its starts was ever good", "1 is back after"]);
    good_boot(&mut vm);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("a start after it: not called good: app.service has crashed"), "{status}");
}
