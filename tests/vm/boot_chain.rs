//! The boot chain has no prompt: a sample of lost blocks on real machines. `tests/boot_chain.rs` loses every block,
//! with GRUB as a program.

use std::fs::File;
use std::os::unix::fs::FileExt;

use reflash::boot::grubenv::names;
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::GuestFirmware;

use super::fallback::{Robot, expect};

/// A robot with an installed system, and the blocks that it loses.
struct Sample {
    robot: Robot,
    name: &'static str,
}

impl Sample {
    fn new(firmware: GuestFirmware, name: &'static str) -> Self {
        let robot = Robot::new(Behaviour::Good, firmware, 3);
        let system = std::fs::read(robot.image()).unwrap();
        let start = disk::partition_range(&robot.disk, "system").unwrap().start;
        File::options().write(true).open(&robot.disk).unwrap().write_all_at(&system, start).unwrap();
        Self { robot, name }
    }

    /// Starts the robot with so many zeros at `offset`, and waits for these texts. Then the bytes are there again.
    fn lose(&mut self, offset: u64, bytes: usize, variables: &[(&str, &str)], texts: &[&str]) {
        let healthy = [(names::TRIES, "3"), (names::MAX_TRIES, "3"), (names::BOOT_OK, "1"), (names::NEXT_ENTRY, "")];
        disk::change_environment(&self.robot.disk, &[&healthy[..], variables].concat()).unwrap();
        let file = File::options().read(true).write(true).open(&self.robot.disk).unwrap();
        let mut before = vec![0; bytes];
        file.read_exact_at(&mut before, offset).unwrap();
        assert!(before.iter().any(|byte| *byte != 0));
        file.write_all_at(&vec![0; bytes], offset).unwrap();
        let mut vm = self.robot.start(self.name);
        expect(&vm, texts);
        vm.cut_power();
        file.write_all_at(&before, offset).unwrap();
    }

    fn place(&self, path: &str) -> u64 {
        disk::file_offset(&self.robot.disk, "recovery", path).unwrap()
    }

    fn lose_blocks_of_the_recovery_partition(&mut self) {
        let up = "tiny system 1 is up";
        let start = disk::partition_range(&self.robot.disk, "recovery").unwrap().start;
        self.lose(start, 4096, &[], &["No recovery can be started. Starting the system.", up]);
        // This loader is for robots with older boot code.
        self.lose(self.place("/grub/grub.cfg"), 4096, &[], &["Start the system"]);
        self.lose(self.place("/slots/a/grub.cfg"), 4096, &[], &["Start the system", up]);
        let request = [(names::NEXT_ENTRY, "recovery")];
        // Not the beginning, which GRUB itself would miss.
        let (kernel, initramfs) = (self.place("/slots/a/vmlinuz"), self.place("/slots/a/initramfs.img"));
        for place in [kernel + 1024 * 1024, initramfs + 1024 * 1024] {
            self.lose(place, 4096, &request, &["The recovery of slot a is damaged. Trying slot b.", "recovery slot b"]);
        }
    }
}

/// Reports: <https://github.com/pbatard/rufus/issues/1507>, <https://github.com/coreos/grub/pull/33>,
/// <https://github.com/opencomputeproject/onie/issues/250>,
/// <https://github.com/coreos/fedora-coreos-tracker/issues/1149>.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_lost_block_of_the_boot_chain_is_no_prompt_on_bios() {
    let mut sample = Sample::new(GuestFirmware::Bios, "chain-bios");
    // The header of the table, and the first of its entries.
    for sector in [1, 2] {
        let by_map = ["The partition table of hd0 is damaged. Recovery", "reason: env-unwritable", "recovery slot a"];
        sample.lose(sector * 512, 512, &[], &by_map);
    }
    sample.lose_blocks_of_the_recovery_partition();
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_lost_block_of_the_boot_chain_is_no_prompt_on_uefi() {
    let mut sample = Sample::new(GuestFirmware::Uefi, "chain-uefi");
    // This firmware mends the table by itself.
    for sector in [1, 2] {
        sample.lose(sector * 512, 512, &[], &["tiny system 1 is up"]);
    }
    sample.lose_blocks_of_the_recovery_partition();
}
