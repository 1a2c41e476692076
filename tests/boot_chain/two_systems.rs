//! GRUB's own code chooses between two systems, counts, goes back and never loses its way.

use std::process::Command;

use reflash::boot::grubenv::{GrubEnv, names};
use reflash::boot::systems::SystemNumber;
use reflash::release::layout::{PartitionSpec, Role, Scheme, Size};
use xtask::grub_emulator::{GrubOutcome, StartedKernel};

use super::{DISK_BYTES, Robot, crc_of, layout, noise};

/// A robot's disk with two systems, which differ.
struct Pair {
    robot: Robot,
    /// Checksums of the kernel of each system.
    kernels: [u32; 2],
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Started {
    System(SystemNumber),
    Recovery(String),
}

impl Pair {
    fn new() -> Self {
        let mut layout = layout(Scheme::Gpt);
        let at = layout.partitions.iter().position(|partition| partition.role == Role::Data).unwrap();
        let second = PartitionSpec { name: "system2".to_owned(), role: Role::System2, size: Size::Mib(16) };
        layout.partitions.insert(at, second);
        let robot = Robot::with(&layout);
        assert!(robot.placed.iter().any(|place| (place.number, place.partition.role) == (7, Role::System2)));
        // The same tree with another kernel.
        let tree = robot.disk.with_file_name("system");
        let kernel = noise(100_000, 77);
        std::fs::write(tree.join("boot/vmlinuz"), &kernel).unwrap();
        let image = robot.disk.with_extension("system2");
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(&tree);
        assert!(mke2fs.arg(&image).arg("16m").status().unwrap().success());
        robot.write(robot.range(Role::System2).start, &std::fs::read(image).unwrap());
        let kernels = [robot.system.0, crc_of(&kernel)];
        Self { robot, kernels }
    }

    /// Starts GRUB with these variables: what it starts, and the variables afterwards.
    fn start(&self, variables: &[(&str, &str)]) -> (Started, GrubEnv) {
        let mut env = GrubEnv::default();
        variables.iter().for_each(|(name, value)| env.set(name, value).unwrap());
        self.start_from(&env)
    }

    fn start_from(&self, env: &GrubEnv) -> (Started, GrubEnv) {
        let robot = &self.robot;
        robot.write(robot.environment, &env.encode().unwrap());
        let ending = robot.emulator.start(&[&robot.disk], "hd0,gpt4").unwrap();
        let after = GrubEnv::parse(&robot.read(robot.environment, 512)).unwrap();
        let GrubOutcome::Started(kernel) = ending else { panic!("nothing is started: {env:?}") };
        (self.known(&kernel), after)
    }

    fn known(&self, kernel: &StartedKernel) -> Started {
        if let Some(reason) = kernel.argument("reflash.reason") {
            return Started::Recovery(reason.to_owned());
        }
        let at = self.kernels.iter().position(|known| *known == kernel.kernel);
        let number = [SystemNumber::First, SystemNumber::Second][at.unwrap_or_else(|| panic!("{kernel:?}"))];
        // The kernel gets the partition that it was read from.
        let partuuid = kernel.argument("reflash.system").unwrap();
        let mut sgdisk = Command::new("sgdisk");
        sgdisk.args(["-i", if at == Some(0) { "5" } else { "7" }]).arg(&self.robot.disk);
        let text = String::from_utf8(sgdisk.output().unwrap().stdout).unwrap().to_lowercase();
        assert!(text.contains(&format!("unique guid: {}", partuuid.to_lowercase())), "{partuuid}\n{text}");
        assert!(kernel.argument("root").is_some_and(|root| root.ends_with(partuuid)), "{kernel:?}");
        Started::System(number)
    }

    /// Blanks the superblock of a system, as a write that was cut leaves it.
    fn blank(&self, number: SystemNumber) {
        self.robot.write(self.robot.range(number.role()).start, &[0; 4096]);
    }
}

fn value<'a>(env: &'a GrubEnv, name: &str) -> &'a str {
    env.get(name).unwrap_or("")
}

const FIRST: Started = Started::System(SystemNumber::First);
const SECOND: Started = Started::System(SystemNumber::Second);

fn recovery(reason: &str) -> Started {
    Started::Recovery(reason.to_owned())
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn the_environment_chooses_the_system_and_a_trial_goes_back_once() {
    let pair = Pair::new();
    let tries = (names::TRIES, "3");
    let second = (names::SYSTEM, "2");
    for (variables, expected, left) in [
        (&[tries][..], FIRST, "2"),
        (&[tries, second], SECOND, "2"),
        (&[tries, (names::SYSTEM, "1")], FIRST, "2"),
        (&[tries, (names::SYSTEM, "3")], FIRST, "2"),
        (&[tries, second, (names::BEFORE, "1")], SECOND, "2"),
        (&[tries, (names::BEFORE, "2")], FIRST, "2"),
        (&[(names::TRIES, "0"), second], recovery("tries"), "0"),
        (&[(names::TRIES, "0"), second, (names::BEFORE, "2")], recovery("tries"), "0"),
        (&[(names::TRIES, "0"), (names::BEFORE, "1")], recovery("tries"), "0"),
        (&[(names::TRIES, "0"), (names::BEFORE, "failed")], recovery("tries"), "0"),
        (&[second, (names::BEFORE, "1")], recovery("env-lost"), ""),
        (&[(names::TRIES, "0"), second, (names::BEFORE, "1"), (names::RECOVERING, "1")], recovery("recovering"), "0"),
        (&[tries, second, (names::NEXT_ENTRY, "recovery")], recovery("requested"), "3"),
        (&[(names::TRIES, "0"), second, (names::NEXT_ENTRY, "safe")], SECOND, "0"),
    ] {
        let (started, after) = pair.start(variables);
        assert_eq!((started, value(&after, names::TRIES)), (expected, left), "{variables:?}");
        let system = variables.iter().find(|(name, _)| *name == names::SYSTEM).map_or("", |(_, value)| value);
        assert_eq!(value(&after, names::SYSTEM), system, "{variables:?}");
    }
    // Both ways, and only once: what it comes back to gets all its tries, and is then followed by a recovery.
    for (from, to, system, before) in [(SECOND, FIRST, "2", "1"), (FIRST, SECOND, "1", "2")] {
        let on_trial = [(names::TRIES, "1"), (names::MAX_TRIES, "2"), (names::SYSTEM, system), (names::BEFORE, before)];
        let (started, mut env) = pair.start(&[&on_trial[..], &[(names::BOOT_OK, "0")]].concat());
        assert_eq!((started, value(&env, names::TRIES)), (from, "0"));
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (started, after) = pair.start_from(&env);
            let state = [names::TRIES, names::SYSTEM, names::BEFORE].map(|name| value(&after, name).to_owned());
            seen.push((started, state.join(" ")));
            env = after;
        }
        let failed = |left: &str| format!("{left} {before} failed");
        assert_eq!(seen, [(to.clone(), failed("1")), (to, failed("0")), (recovery("tries"), failed("0"))]);
    }
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn what_cannot_be_read_is_answered_by_the_other_system_or_a_recovery() {
    let pair = Pair::new();
    let second = [(names::TRIES, "3"), (names::MAX_TRIES, "3"), (names::SYSTEM, "2")];
    let on_trial = [&second[..], &[(names::BEFORE, "1")]].concat();
    pair.blank(SystemNumber::Second);
    // Nothing leads to the half that is being written.
    assert_eq!(pair.start(&[(names::TRIES, "3")]).0, FIRST);
    assert_eq!(pair.start(&second).0, recovery("system-unreadable"));
    let (started, after) = pair.start(&on_trial);
    assert_eq!((started, value(&after, names::BEFORE)), (FIRST, "failed"));
    assert_eq!((value(&after, names::TRIES), value(&after, names::SYSTEM)), ("2", "1"));
    // Without a recovery, the system that is left is started, whatever the environment says.
    let recovery_start = pair.robot.range(Role::Recovery).start;
    let superblock = pair.robot.read(recovery_start, 4096);
    pair.robot.write(recovery_start, &[0; 4096]);
    assert_eq!(pair.start(&second).0, FIRST);
    pair.robot.write(recovery_start, &superblock);
    pair.blank(SystemNumber::First);
    assert_eq!(pair.start(&on_trial).0, recovery("system-unreadable"));
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn without_a_recovery_the_system_that_is_named_is_started() {
    let pair = Pair::new();
    pair.robot.write(pair.robot.range(Role::Recovery).start, &[0; 4096]);
    assert_eq!(pair.start(&[(names::TRIES, "3")]).0, FIRST);
    assert_eq!(pair.start(&[(names::TRIES, "3"), (names::SYSTEM, "2")]).0, SECOND);
    pair.blank(SystemNumber::First);
    assert_eq!(pair.start(&[(names::TRIES, "3")]).0, SECOND, "the first one has nothing to start");
    // The table is lost too: the disk map has both.
    let pair = Pair::new();
    pair.robot.write(512, &[0; 512]);
    assert_eq!(pair.start(&[(names::TRIES, "3"), (names::SYSTEM, "2")]).0, recovery("env-unwritable"));
    assert_eq!(pair.robot.range(Role::System2).end, pair.robot.range(Role::Data).start);
    assert!(pair.robot.range(Role::Data).end < DISK_BYTES);
}
