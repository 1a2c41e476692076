//! Starts of the system that stand still: nothing crashes, nothing hangs, and nobody is there.

use std::time::Duration;

use reflash::boot::grubenv::names;
use xtask::demo::BOOT_TIMEOUT;
use xtask::disk;
use xtask::vm::VirtualMachine;

use super::{built, log_in};

/// Time that a start has here for calling itself good, seconds: longer than emergency mode takes to come up.
const GOOD_WITHIN_S: u32 = 90;
/// Longest time from power-on until the start is restarted: the boot, the limit, and the way down.
const RESTART_TIMEOUT: Duration = Duration::from_secs(480);

/// A line of /etc/fstab that names a disk which is not there: <https://github.com/Start9Labs/start-technologies/issues/3923>
/// and <https://github.com/RPi-Distro/raspi-config/issues/279>. systemd goes to emergency mode and stays there.
#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_system_in_emergency_mode_is_restarted_unless_a_person_is_logged_in_and_recovered_after_its_tries() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    built::copy_of_installed_disk(&path);
    let mut robot = VirtualMachine::robot("standstill", &path).start().unwrap();
    log_in(&mut robot);
    let line = "UUID=0b3d5b5e-0000-4000-8000-00000000dead /mnt/gone ext4 defaults,x-systemd.device-timeout=5s 0 2";
    for command in [
        format!("echo '{line}' >> /etc/fstab; mkdir -p /etc/reflash"),
        format!("printf '[boot]\\ngood_within_s = {GOOD_WITHIN_S}\\n' > /etc/reflash/reflash.toml"),
        "reflash env set reflash_tries=2; sync; echo 'do'ne".to_owned(),
    ] {
        robot.type_text(&format!("{command}\n")).unwrap();
    }
    robot.wait_for("done", BOOT_TIMEOUT).unwrap();
    robot.cut_power();

    // A person is there, in emergency mode, and holds the restart.
    let mut robot = VirtualMachine::robot("standstill-held", &path).start().unwrap();
    robot.wait_for("Press Enter for maintenance", BOOT_TIMEOUT).unwrap();
    robot.type_text("\n").unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
    let held = robot.wait_for("holds the restart", RESTART_TIMEOUT).unwrap();
    assert!(!held.contains("restarting in 60 s"), "{held}");
    robot.cut_power();
    assert_eq!(disk::read_environment(&path).unwrap().get(names::TRIES), Some("1"));

    // Nobody is there: the start is restarted, which was the last try.
    let robot = VirtualMachine::robot("standstill-alone", &path).start().unwrap();
    robot.wait_for("Press Enter for maintenance", BOOT_TIMEOUT).unwrap();
    let why = robot.wait_for("restarting in 60 s", RESTART_TIMEOUT).unwrap();
    assert!(why.contains(&format!("has not called itself good within {GOOD_WITHIN_S} s")), "{why}");
    robot.wait_for("Recovery, reason: tries", RESTART_TIMEOUT).unwrap();
}
