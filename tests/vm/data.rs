//! The installed system starts whatever became of its data partition.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::demo::BOOT_TIMEOUT;
use xtask::disk;
use xtask::vm::{RunningMachine, VirtualMachine};

use super::built;

/// A copy of a robot's disk on which the demonstration's system was good.
struct Copy {
    _directory: tempfile::TempDir,
    disk: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk.img");
        built::copy_of_installed_disk(&disk);
        Self { _directory: directory, disk }
    }

    /// Has a look at a partition as it is mounted on this machine.
    fn mounted<T>(&self, partition: &str, look: impl FnOnce(&Path) -> T) -> T {
        let at = tempfile::tempdir().unwrap();
        let start = disk::partition_range(&self.disk, partition).unwrap().start;
        let mount = |arguments: &[&str]| assert!(Command::new("mount").args(arguments).status().unwrap().success());
        mount(&["-o", &format!("loop,offset={start}"), self.disk.to_str().unwrap(), at.path().to_str().unwrap()]);
        let result = look(at.path());
        assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
        result
    }

    fn start(&self, name: &str) -> RunningMachine {
        VirtualMachine::robot(name, &self.disk).start().unwrap()
    }
}

fn log_in(robot: &mut RunningMachine, host: &str) {
    robot.wait_for(&format!("{host} login:"), BOOT_TIMEOUT).unwrap();
    robot.type_text("root\n").unwrap();
    robot.wait_for(&format!("root@{host}"), BOOT_TIMEOUT).unwrap();
    robot.wait_for("# ", BOOT_TIMEOUT).unwrap();
}

/// Runs a command in the robot's shell. Returns what it prints.
fn answer(robot: &mut RunningMachine, command: &str) -> String {
    robot.type_text(&format!("{command}; echo 'exi't-$?\n")).unwrap();
    robot.wait_for("exit-", BOOT_TIMEOUT).unwrap() + &robot.wait_for("\n", BOOT_TIMEOUT).unwrap()
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_zeroed_data_partition_does_not_keep_the_system_from_starting() {
    let copy = Copy::new();
    let range = disk::partition_range(&copy.disk, "data").unwrap();
    let file = File::options().write(true).open(&copy.disk).unwrap();
    let zeros = vec![0; 1 << 20];
    // Superblocks and their copies, and what lies around them.
    for start in (range.start..range.end).step_by(zeros.len()) {
        file.write_all_at(&zeros, start).unwrap();
    }
    let mut robot = copy.start("data-zeroed");
    let shown = robot.wait_for("GIVEN UP: the data partition cannot be read", BOOT_TIMEOUT).unwrap();
    assert!(!shown.contains("cannot be started"), "{shown}");
    log_in(&mut robot, "robot-demo0001");
    let written = answer(&mut robot, "touch /etc/x /var/lib/x /var/log/x");
    assert!(written.contains("exit-0"), "{written}");
    let record = answer(&mut robot, "cat /run/reflash/boot.json");
    assert!(record.contains("\"data\": \"lost\"") && record.contains("\"var\": \"memory\""), "{record}");
    let good = answer(&mut robot, "systemctl start reflash-good; reflash status");
    assert!(good.contains("this boot called itself good"), "{good}");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_data_partition_without_a_free_inode_does_not_keep_the_system_from_starting() {
    let copy = Copy::new();
    copy.mounted("data", |data| {
        let many = data.join("var/many");
        std::fs::create_dir_all(&many).unwrap();
        let made = (0..).take_while(|number| File::create(many.join(number.to_string())).is_ok()).count();
        assert!(made > 1000, "{made}");
    });
    let mut robot = copy.start("data-no-inode");
    robot.wait_for("GIVEN UP: the data partition is full: 0 inodes", BOOT_TIMEOUT).unwrap();
    log_in(&mut robot, "robot-demo0001");
    let record = answer(&mut robot, "cat /run/reflash/boot.json");
    assert!(record.contains("\"data\": \"writable\"") && record.contains("\"etc\": \"data\""), "{record}");
    let good = answer(&mut robot, "systemctl start reflash-good; reflash status");
    assert!(good.contains("this boot called itself good"), "{good}");
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_safe_start_has_nothing_of_an_etc_that_keeps_the_system_from_starting() {
    let copy = Copy::new();
    // What the machine's own /etc may hold, each of which keeps systemd or its logins from working.
    copy.mounted("data", |data| {
        let own = data.join("etc-overlay/upper");
        std::fs::create_dir_all(own.join("systemd/system")).unwrap();
        std::fs::write(own.join("ld.so.preload"), "/no/such/library.so\n").unwrap();
        std::fs::write(own.join("ld.so.cache"), "").unwrap();
        std::fs::write(own.join("fstab"), "UUID=00000000-0000-4000-8000-000000000000 /x ext4 defaults 0 2\n").unwrap();
        std::fs::write(own.join("passwd"), "").unwrap();
        std::fs::write(own.join("systemd/system.conf"), [0xff; 4096]).unwrap();
        for name in ["default.target", "getty.target", "serial-getty@ttyS0.service", "systemd-logind.service"] {
            std::os::unix::fs::symlink("/dev/null", own.join("systemd/system").join(name)).unwrap();
        }
        std::fs::write(data.join("var/kept"), "kept").unwrap();
    });
    copy.mounted("recovery", |recovery| {
        // GRUB's own way to a safe start sets the same argument.
        let local = "set consoles=\"$consoles reflash.safe=3\"\n";
        std::fs::write(recovery.join("grub/local.cfg"), local).unwrap();
    });
    let mut robot = copy.start("safe-start");
    let shown = robot.wait_for("SAFE START 3", BOOT_TIMEOUT).unwrap();
    assert!(!shown.contains("cannot be started"), "{shown}");
    robot.wait_for("can log in: root", BOOT_TIMEOUT).unwrap();
    log_in(&mut robot, "robot-demo0001");
    let state =
        answer(&mut robot, "cat /run/reflash/safe /run/reflash/data/var/kept; ls /var/kept; cat /etc/ld.so.preload");
    assert!(state.contains("\n3\nkept"), "{state}");
    assert_eq!(state.matches("No such file").count(), 2, "{state}");
    let written = answer(&mut robot, "touch /etc/x /var/lib/x; touch /run/reflash/data/x");
    assert_eq!(written.matches("Read-only file system").count(), 1, "{written}");
}
