//! A drill: recovery is started once, writes nothing, and the system is back, whatever becomes of it.

use std::path::Path;

use reflash::boot::grubenv::names;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, ask, expect};

fn system_partition(disk: &Path) -> blake3::Hash {
    use std::os::unix::fs::FileExt;
    let range = disk::partition_range(disk, "system").unwrap();
    let mut content = vec![0; usize::try_from(range.end - range.start).unwrap()];
    std::fs::File::open(disk).unwrap().read_exact_at(&mut content, range.start).unwrap();
    blake3::hash(&content)
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_drill_shows_that_the_robot_could_recover_and_leaves_everything_as_it_was() {
    let mut robot = Robot::with_config(Behaviour::Good, GuestFirmware::Bios, 3, "drill_s = 90\n");
    let mut vm = robot.start("drill");
    expect(&vm, &["reason: tries", "starting it", "tiny system 1 is up"]);
    let before = system_partition(&robot.disk);
    let asked = ask(&mut vm, "reflash drill");
    assert!(asked.contains("the next boot is a drill"), "{asked}");
    vm.type_text("reboot -f\n").unwrap();
    let shown = expect(&vm, &["reason: requested", "a drill: nothing is written", "drill: content ok", "drill: undo"]);
    assert!(!shown.contains("[6/8]"), "{shown}");
    expect(&vm, &["the drill passed: starting the system", "tiny system 1 is up"]);
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("last drill: attempt 2") && status.contains("the drill passed"), "{status}");
    let env = ask(&mut vm, "reflash env");
    assert!(env.contains("reflash_tries=3") && !env.contains(names::REQUEST), "{env}");

    // Without a server: it says so, and the system is back in time.
    robot.stop_serving();
    ask(&mut vm, "reflash drill");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["a drill: nothing is written", "drill: manifest no"]);
    expect(&vm, &["the drill did not pass: starting the system", "tiny system 1 is up"]);

    // The power is cut in the middle: the next start is the system's.
    ask(&mut vm, "reflash drill");
    vm.type_text("reboot -f\n").unwrap();
    expect(&vm, &["a drill: nothing is written", "asking http://"]);
    vm.cut_power();
    let mut vm = robot.start("drill");
    let shown = expect(&vm, &["tiny system 1 is up"]);
    assert!(!shown.contains("Recovery, reason"), "{shown}");
    let status = ask(&mut vm, "reflash status");
    assert!(status.contains("was cut short") && status.contains("the drill did not pass"), "{status}");
    assert!(!ask(&mut vm, "reflash env").contains(names::REQUEST));
    vm.cut_power();
    assert_eq!(system_partition(&robot.disk), before);
}
