//! Starts of the system that stand still: nothing crashes, nothing hangs, and nobody is there.

use std::path::Path;
use std::process::Command;
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
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_system_in_emergency_mode_is_restarted_unless_a_person_is_logged_in_and_recovered_after_its_tries() {
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

/// What the machine's own `/etc` breaks is left out in a safe start, which says what it is and is never called good.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_safe_start_comes_up_whatever_the_machines_own_settings_are_and_is_not_called_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    built::copy_of_installed_disk(&path);
    let mut robot = VirtualMachine::robot("safe-before", &path).start().unwrap();
    log_in(&mut robot);
    let line = "UUID=0b3d5b5e-0000-4000-8000-00000000dead /mnt/gone ext4 defaults 0 2";
    robot.type_text(&format!("echo '{line}' >> /etc/fstab; echo own > /etc/own; sync; echo 'do'ne\n")).unwrap();
    robot.wait_for("done", BOOT_TIMEOUT).unwrap();
    robot.cut_power();
    // As GRUB would on the agent's request.
    set_kernel_arguments(&path, "reflash.safe=2");

    let mut robot = VirtualMachine::robot("safe", &path).start().unwrap();
    let notice = robot.wait_for("robot-demo0001 login:", BOOT_TIMEOUT).unwrap();
    assert!(notice.contains("SAFE START 2") && notice.contains("tried 2 h after"), "{notice}");
    robot.type_text("root\n").unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
    let mut answer = |command: &str| -> String {
        robot.type_text(&format!("{command}; echo 'exi't-$?\n")).unwrap();
        robot.wait_for("exit-", BOOT_TIMEOUT).unwrap() + &robot.wait_for("\n", BOOT_TIMEOUT).unwrap()
    };
    let good = answer("reflash good");
    assert!(good.contains("never called good") && good.contains("exit-1"), "{good}");
    let status = answer("reflash status");
    assert!(status.contains("SAFE START 2") && status.contains("has not called itself good"), "{status}");
    let own = answer("ls /etc/own; cat /run/reflash/data/etc-overlay/upper/own");
    assert!(own.contains("No such file") && own.contains("\nown\n"), "{own}");
    let network = answer("cat /run/systemd/network/*; grep -al '@reflash-watc[h]' /proc/[0-9]*/cmdline");
    assert!(network.contains("Type=ether") && network.contains("DHCP=yes"), "{network}");
    assert!(network.contains("/cmdline\n"), "the watch is gone: {network}");
    let units = answer("systemctl is-active reflash-good.service; cat /etc/issue.d/reflash-safe.issue");
    assert!(units.contains("inactive") && units.contains("SAFE START 2"), "{units}");
}

/// Adds arguments to the command line of every kernel that GRUB starts.
fn set_kernel_arguments(disk: &Path, arguments: &str) {
    let script = tempfile::NamedTempFile::new().unwrap();
    let text = format!("set consoles=\"console=tty0 console=ttyS0,115200 {arguments}\"\n");
    std::fs::write(script.path(), text).unwrap();
    let device = format!("{}?offset={}", disk.display(), disk::partition_range(disk, "recovery").unwrap().start);
    let request = format!("write {} /grub/local.cfg", script.path().display());
    assert!(Command::new("debugfs").args(["-w", "-R", &request, &device]).status().unwrap().success());
}
