//! No block that GRUB needs is the only one: GRUB's own code starts something useful whichever of them is lost.
//!
//! Kernels are stand-ins of a few hundred KiB, so that every single block can be lost in turn.

mod two_systems;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use reflash::boot::disk_map;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::release::layout::{Layout, PartitionSpec, Placed, Role, Scheme, Size};
use xtask::disk::{self, DiskParts};
use xtask::grub;
use xtask::grub_emulator::{Emulator, GrubOutcome, StartedKernel};
use xtask::initramfs::BuiltRecovery;
use xtask::paths::Paths;

const MIB: u64 = 1024 * 1024;
const DISK_BYTES: u64 = 192 * MIB;
const BLOCK: u64 = 4096;

/// A boot script of robots that were made before scripts had marks.
const UNMARKED_SCRIPT: &str = include_str!("fixtures/boot-script-without-marks.cfg");

/// Environments of a robot whose system is good, and of one whose recovery must start.
const HEALTHY: [(&str, &str); 3] = [(names::TRIES, "3"), (names::MAX_TRIES, "3"), (names::BOOT_OK, "1")];
const FAILING: [(&str, &str); 3] = [(names::TRIES, "0"), (names::MAX_TRIES, "3"), (names::BOOT_OK, "0")];

/// A robot's disk, and what GRUB may start from it.
struct Robot {
    _dir: tempfile::TempDir,
    disk: PathBuf,
    table: Scheme,
    placed: Vec<Placed>,
    emulator: Emulator,
    /// Checksums of kernel and initramfs.
    recovery: (u32, u32),
    system: (u32, u32),
    /// Place of the environment's block.
    environment: u64,
}

/// What was started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Started {
    System,
    Recovery { slot: String, reason: String },
}

fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    (0..bytes as u32).map(|at| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

fn crc_of(content: &[u8]) -> u32 {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(content)
}

fn layout(table: Scheme) -> Layout {
    let roles = [(Role::BiosBoot, 1), (Role::Esp, 34), (Role::State, 16), (Role::Recovery, 64), (Role::System, 16)];
    let roles = roles.into_iter().map(|(role, mib)| (role, Size::Mib(mib))).chain([(Role::Data, Size::Rest)]);
    let roles = roles.filter(|(role, _)| table == Scheme::Gpt || !matches!(role, Role::BiosBoot | Role::Esp));
    let partitions = roles.map(|(role, size)| PartitionSpec { name: role.name().to_owned(), role, size }).collect();
    Layout { table, partitions }
}

impl Robot {
    fn new(table: Scheme) -> Self {
        Self::with(&layout(table))
    }

    fn with(layout: &Layout) -> Self {
        let table = layout.table;
        let emulator = Emulator::new(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, content: &[u8]| {
            std::fs::write(path(name), content).unwrap();
            crc_of(content)
        };
        let recovery = (write("vmlinuz", &noise(300_000, 1)), write("initramfs.img", &noise(200_001, 2)));
        let mut grub = grub::build_in(&path("grub"), true).unwrap();
        let plain = std::fs::read_to_string(&grub.script).unwrap();
        write("slot.cfg", Emulator::without_pauses(&plain).as_bytes());
        grub.script = path("slot.cfg");
        write("robot.pub", b"no key");
        let parts = DiskParts {
            layout,
            disk_bytes: DISK_BYTES,
            block_bytes: 512,
            grub: &grub,
            recovery: &BuiltRecovery { vmlinuz: path("vmlinuz"), initramfs: path("initramfs.img") },
            config: "[machine]\n".to_owned(),
            keys: vec![path("robot.pub")],
            files: Vec::new(),
            environment: HEALTHY.to_vec(),
        };
        let disk = path("disk.img");
        disk::build(&Paths::of_checkout(), &parts, &disk, true).unwrap();

        std::fs::create_dir_all(path("system/boot")).unwrap();
        let system = (write("system/boot/vmlinuz", &noise(100_000, 3)), write("system/boot/initrd", &noise(5000, 4)));
        write(
            "system/boot/reflash.cfg",
            b"set system_linux=/boot/vmlinuz\nset system_initrd=/boot/initrd\nset system_args=ro\n",
        );
        let placed = layout.place(DISK_BYTES).unwrap();
        let mut robot = Self { _dir: dir, disk, table, placed, emulator, recovery, system, environment: 0 };
        let offset = robot.range(Role::System).start;
        let image = robot.disk.with_extension("system");
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(robot.disk.with_file_name("system"));
        assert!(mke2fs.arg(&image).arg("16m").status().unwrap().success());
        robot.file().write_all_at(&std::fs::read(image).unwrap(), offset).unwrap();
        robot.environment = robot.places(Role::State, "/grubenv")[0].start;
        robot
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.disk).unwrap()
    }

    fn range(&self, role: Role) -> Range<u64> {
        let place = self.placed.iter().find(|place| place.partition.role == role).unwrap();
        place.offset_bytes..place.offset_bytes + place.size_bytes
    }

    /// GRUB's name of a partition on its disk.
    fn name(&self, role: Role) -> String {
        let number = self.placed.iter().find(|place| place.partition.role == role).unwrap().number;
        format!("{}{number}", if self.table == Scheme::Gpt { "gpt" } else { "msdos" })
    }

    /// Where GRUB reads a file from.
    fn places(&self, role: Role, path: &str) -> Vec<Range<u64>> {
        let start = self.range(role).start;
        let found = grub::file_ranges(&self.disk, &format!("(loop0,{}){path}", self.name(role))).unwrap().unwrap();
        found.into_iter().map(|range| start + range.start..start + range.end).collect()
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        self.file().read_exact_at(&mut content, offset).unwrap();
        content
    }

    fn write(&self, offset: u64, content: &[u8]) {
        self.file().write_all_at(content, offset).unwrap();
    }

    /// Starts GRUB with these variables, and with `content` in place of what is at `offset`. Everything is as it was
    /// before afterwards.
    fn start_with(&self, variables: &[(&str, &str)], offset: u64, content: &[u8]) -> GrubOutcome {
        let mut env = GrubEnv::default();
        variables.iter().for_each(|(name, value)| env.set(name, value).unwrap());
        let environment = self.read(self.environment, 512);
        self.write(self.environment, &env.encode().unwrap());
        let before = self.read(offset, content.len());
        self.write(offset, content);
        let root = format!("hd0,{}", self.name(Role::Recovery));
        let ending = self.emulator.start(&[&self.disk], &root);
        self.write(offset, &before);
        self.write(self.environment, &environment);
        ending.unwrap_or_else(|error| panic!("{} bytes at {offset} are lost: {error:?}", content.len()))
    }

    /// What was started, which is as it was built.
    fn known(&self, ending: &GrubOutcome, why: &str) -> Started {
        let GrubOutcome::Started(kernel) = ending else { panic!("{why}: nothing was started") };
        let StartedKernel { kernel: sum, initramfs, .. } = kernel;
        let argument = |name: &str| kernel.argument(name).unwrap_or_else(|| panic!("{why}: {kernel:?}")).to_owned();
        if kernel.argument("reflash.system").is_some() {
            assert_eq!((*sum, *initramfs), self.system, "{why}: {kernel:?}");
            let partuuid = argument("reflash.data");
            assert!(partuuid.len() > 8 && argument("root").ends_with(&argument("reflash.system")), "{why}: {kernel:?}");
            return Started::System;
        }
        assert_eq!((*sum, *initramfs), self.recovery, "{why}: {kernel:?}");
        assert!(argument("reflash.recovery").len() > 8, "{why}: {kernel:?}");
        Started::Recovery { slot: argument("reflash.slot"), reason: argument("reflash.reason") }
    }

    /// Every piece of the disk that is in use outside the system and data, and that firmware does not read: sectors of
    /// the table, which share their first block with what firmware reads, and blocks of the file systems.
    fn pieces(&self) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        if self.table == Scheme::Gpt {
            pieces.extend((1..34).map(|sector| sector * 512..(sector + 1) * 512));
            pieces.push(disk_map::OFFSET_BYTES..disk_map::OFFSET_BYTES + BLOCK);
            pieces.extend((DISK_BYTES - 16 * BLOCK..DISK_BYTES).step_by(BLOCK as usize).map(|at| at..at + BLOCK));
        }
        // GRUB never reads the robot's copy of its boot code: a block of each file is enough.
        let copies: Vec<_> = self.boot_code_files().iter().flat_map(|path| self.places(Role::State, path)).collect();
        let is_sampled = |piece: &Range<u64>| {
            let within = copies.iter().find(|copy| copy.contains(&piece.start));
            within.is_none_or(|copy| piece.start < copy.start + BLOCK)
        };
        for role in [Role::State, Role::Recovery] {
            pieces.extend(self.range(role).step_by(BLOCK as usize).map(|at| at..at + BLOCK));
        }
        let is_used = |piece: &Range<u64>| {
            self.read(piece.start, (piece.end - piece.start) as usize).iter().any(|byte| *byte != 0)
        };
        pieces.into_iter().filter(is_used).filter(is_sampled).collect()
    }

    /// Files of the robot's copy of its boot code, by their paths on the state partition.
    fn boot_code_files(&self) -> Vec<String> {
        let device = format!("{}?offset={}", self.disk.display(), self.range(Role::State).start);
        let output = Command::new("debugfs").args(["-R", "ls -p /boot", &device]).output().unwrap();
        // A line of it is /inode/mode/uid/gid/name/size/.
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = names.lines().filter_map(|line| line.split('/').nth(5)).filter(|name| !name.starts_with('.'));
        let paths: Vec<_> = names.map(|name| format!("/boot/{name}")).collect();
        assert!(paths.len() > 2, "{paths:?}");
        paths
    }

    fn is_in(&self, piece: &Range<u64>, role: Role) -> bool {
        self.range(role).contains(&piece.start)
    }
}

fn recovery(slot: &str, reason: &str) -> Started {
    Started::Recovery { slot: slot.to_owned(), reason: reason.to_owned() }
}

/// Loses every block in turn, and returns how often what was started, of robots with a good system and of others.
fn lose_every_block(robot: &Robot) -> [BTreeMap<Started, usize>; 2] {
    let slot_a: Vec<_> = ["vmlinuz", "initramfs.img", "grub.cfg"]
        .into_iter()
        .flat_map(|name| robot.places(Role::Recovery, &format!("/slots/a/{name}")))
        .collect();
    let pieces = robot.pieces();
    assert!(pieces.len() > 300, "{}", pieces.len());
    let mut counts = [BTreeMap::new(), BTreeMap::new()];
    for piece in pieces {
        let zeros = vec![0; (piece.end - piece.start) as usize];
        let why = format!("bytes {piece:?} of the disk are lost");
        let healthy = robot.known(&robot.start_with(&HEALTHY, piece.start, &zeros), &why);
        let failing = robot.known(&robot.start_with(&FAILING, piece.start, &zeros), &why);
        if robot.is_in(&piece, Role::Recovery) {
            assert_eq!(healthy, Started::System, "{why}");
            // Damage in one slot is answered by the other one, and no other damage is.
            let in_slot_a = slot_a.iter().any(|range| range.start < piece.end && piece.start < range.end);
            if in_slot_a {
                assert_eq!(failing, recovery("b", "tries"), "{why}");
            }
        }
        *counts[0].entry(healthy).or_default() += 1;
        *counts[1].entry(failing).or_default() += 1;
    }
    counts
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn whichever_block_of_a_gpt_disk_is_lost_grub_starts_something() {
    let robot = Robot::new(Scheme::Gpt);
    let [healthy, failing] = lose_every_block(&robot);
    eprintln!("healthy: {healthy:?}\nfailing: {failing:?}");
    // The table is lost: recovery by the map, whose agent mends it.
    assert!(healthy[&recovery("a", "env-unwritable")] >= 2);
    // The environment is lost.
    assert!(healthy[&recovery("a", "env-lost")] >= 1);
    assert!(
        failing[&recovery("a", "tries")] > failing[&recovery("b", "tries")] && failing[&recovery("b", "tries")] > 100
    );
    // Only without the file system of the recovery, and both slots with it, GRUB starts a system that used up its
    // tries.
    assert!((2..12).contains(&failing[&Started::System]), "{failing:?}");
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn whichever_block_of_an_mbr_disk_is_lost_grub_starts_something() {
    let [healthy, failing] = lose_every_block(&Robot::new(Scheme::Mbr));
    eprintln!("healthy: {healthy:?}\nfailing: {failing:?}");
    assert!(!healthy.contains_key(&recovery("a", "env-unwritable")) && failing[&recovery("b", "tries")] > 100);
    assert!((2..12).contains(&failing[&Started::System]), "{failing:?}");
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn scripts_and_kernels_that_are_garbage_are_passed_over() {
    let robot = Robot::new(Scheme::Gpt);
    let garbage: [&[u8]; 6] =
        [&[0; 4096], &[0xdb; 4096], &b"}\n".repeat(2048), &b"reboot\n".repeat(585), &[b' '; 4096], &noise(4096, 9)];
    for name in ["grub.cfg", "vmlinuz", "initramfs.img"] {
        let places = robot.places(Role::Recovery, &format!("/slots/a/{name}"));
        let starts = places.iter().map(|range| range.start / BLOCK * BLOCK..range.end);
        for at in starts.flat_map(|range| range.step_by(4 * BLOCK as usize)) {
            for (number, content) in garbage.iter().enumerate().take(if name == "grub.cfg" { 6 } else { 2 }) {
                let why = format!("garbage {number} at {at}, in {name}");
                let started = robot.known(&robot.start_with(&FAILING, at, content), &why);
                assert_eq!(started, recovery("b", "tries"), "{why}");
                let started = robot.known(&robot.start_with(&HEALTHY, at, content), &why);
                assert_eq!(started, Started::System, "{why}");
            }
        }
    }
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn without_a_table_the_disk_must_be_known_without_doubt() {
    let robot = Robot::new(Scheme::Gpt);
    robot.write(512, &[0; 512]);
    let by_map = recovery("a", "env-unwritable");
    // A firmware that says nothing of the disk that it started from.
    let ending = robot.emulator.start(&[&robot.disk], ",gpt4").unwrap();
    assert_eq!(robot.known(&ending, "one disk"), by_map);
    let copy = robot.disk.with_extension("copy");
    std::fs::copy(&robot.disk, &copy).unwrap();
    assert_eq!(robot.emulator.start(&[&copy, &robot.disk], ",gpt4").unwrap(), GrubOutcome::Restart);
    // One that does: the copy does not matter.
    let ending = robot.emulator.start(&[&copy, &robot.disk], "hd1,gpt4").unwrap();
    assert_eq!(robot.known(&ending, "a copy"), by_map);
    let GrubOutcome::Started(kernel) = ending else { unreachable!() };
    assert!(kernel.command_line.contains(" gpt ") && kernel.argument("reflash.recovery").is_some());
    // The recovery partition is lost too: the system is left. Without it, nothing is.
    let start = robot.range(Role::Recovery).start;
    let (table, superblock) = (robot.read(512, 512), robot.read(start, 4096));
    robot.write(start, &[0; 4096]);
    assert_eq!(robot.emulator.start(&[&robot.disk], "hd0,gpt4").unwrap(), GrubOutcome::Restart);
    robot.write(start, &superblock);
    robot.write(512, &table);
}

#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn a_slot_on_trial_and_slots_without_marks_are_used_as_before() {
    let robot = Robot::new(Scheme::Gpt);
    let with = |more: &[(&'static str, &'static str)]| [&FAILING[..], more].concat();
    let started = |variables: &[(&str, &str)]| robot.known(&robot.start_with(variables, 0, &[]), "whole");
    assert_eq!(started(&with(&[(names::SLOT, "b")])), recovery("b", "tries"));
    assert_eq!(started(&with(&[(names::TRIAL, "b")])), recovery("b", "tries"));
    assert_eq!(started(&with(&[(names::TRIAL, "b-tried")])), recovery("a", "tries"));
    // What is on trial has lost a block: the other one does the work, and the trial is still due.
    let kernel = robot.places(Role::Recovery, "/slots/b/vmlinuz")[0].start;
    let ending = robot.start_with(&with(&[(names::TRIAL, "b")]), kernel + 8192, &[0; 4096]);
    assert_eq!(robot.known(&ending, "on trial"), recovery("a", "tries"));
    // The slot in use was written before scripts had marks, the one on trial after that.
    unmark(&robot.disk, robot.range(Role::Recovery).start);
    assert_eq!(started(&with(&[(names::TRIAL, "b-tried")])), recovery("a", "tries"));
    assert_eq!(started(&FAILING), recovery("a", "tries"));
    assert_eq!(started(&HEALTHY), Started::System);
}

/// A damaged block of the environment has anything. What GRUB loads a second time, to see that a save was written, has
/// it too.
#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn no_content_of_the_environment_gets_an_argument_onto_a_kernels_command_line() {
    let robot = Robot::new(Scheme::Gpt);
    let loaded = [
        names::TRIES,
        names::MAX_TRIES,
        names::BOOT_OK,
        names::RECOVERING,
        names::TRIAL,
        names::WAS_GOOD,
        names::UNDO,
        names::SAFE,
        names::SLOT,
        names::REQUEST,
    ];
    for request in ["", "safe", "recovery", "evil=1", "safe evil=1"] {
        for base in [&HEALTHY[..], &FAILING] {
            let everywhere: Vec<_> = loaded.map(|name| (name, "1 evil=1")).to_vec();
            let one_by_one = loaded.iter().map(|name| [base, &[(*name, "1 evil=1")]].concat());
            for variables in one_by_one.chain([everywhere]) {
                let variables = [&variables[..], &[(names::NEXT_ENTRY, request)]].concat();
                match robot.start_with(&variables, 0, &[]) {
                    GrubOutcome::Started(kernel) => {
                        assert!(!kernel.command_line.contains("evil"), "{variables:?}: {}", kernel.command_line);
                    }
                    GrubOutcome::Restart => panic!("{variables:?}: nothing was started"),
                }
            }
        }
    }
}

/// <https://github.com/pbatard/rufus/issues/1507>: the first copy of the table is overwritten. An older recovery is not
/// the one that mends it, and where GRUB starts that one, it does so each time.
#[test]
#[ignore = "needs root: to install grub-emu; cargo xtask test --tier root"]
fn without_a_table_the_newer_recovery_is_started_unless_it_failed_its_trial() {
    let robot = Robot::new(Scheme::Gpt);
    let started = |variables: &[(&str, &str)]| robot.known(&robot.start_with(variables, 512, &[0; 512]), "no table");
    let by_map = |slot| recovery(slot, "env-unwritable");
    assert_eq!(started(&[]), by_map("a"));
    assert_eq!(started(&[(names::SLOT, "b")]), by_map("b"));
    assert_eq!(started(&[(names::SLOT, "b"), (names::TRIAL, "b-tried")]), by_map("a"));
    unmark(&robot.disk, robot.range(Role::Recovery).start);
    for variables in [&[][..], &[(names::SLOT, "a")], &[(names::SLOT, "a"), (names::TRIAL, "b")]] {
        assert_eq!(started(variables), by_map("b"), "{variables:?}");
    }
    assert_eq!(started(&[(names::SLOT, "a"), (names::TRIAL, "b-tried")]), by_map("a"));
    // The newer one has lost a block.
    let kernel = robot.places(Role::Recovery, "/slots/b/vmlinuz")[0].start;
    let before = robot.read(kernel + 8192, 4096);
    robot.write(kernel + 8192, &[0; 4096]);
    assert_eq!(started(&[(names::SLOT, "b")]), by_map("a"));
    // Nothing else is left.
    robot.write(kernel + 8192, &before);
    let device = format!("{}?offset={}", robot.disk.display(), robot.range(Role::Recovery).start);
    let mut debugfs = Command::new("debugfs");
    assert!(debugfs.args(["-w", "-R", "rm /slots/a/vmlinuz", &device]).status().unwrap().success());
    assert_eq!(started(&[(names::TRIAL, "b-tried")]), by_map("b"));
}

/// Gives slot a a boot script without marks.
fn unmark(disk: &Path, start: u64) {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), UNMARKED_SCRIPT).unwrap();
    let device = format!("{}?offset={start}", disk.display());
    for request in ["rm /slots/a/grub.cfg".to_owned(), format!("write {} /slots/a/grub.cfg", script.path().display())] {
        assert!(Command::new("debugfs").args(["-w", "-R", &request, &device]).status().unwrap().success());
    }
}
