//! Blocks of the data partition that are lost while the file system counts as clean: each costs at most what it held,
//! and is told.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use reflash::record::start::StartRecord;

use super::data::{Robot, WHOLE, forms, noise};
use crate::isolated::isolated;

const BLOCK: usize = 4096;
/// Large enough for a second superblock.
const SIZE: u64 = 192 << 20;
/// Blocks of the inodes that are in use, as mke2fs puts them.
const INODES: std::ops::Range<u64> = 41..49;
/// Files of the machine, beside those of every robot.
const FILES: [&str; 9] = [
    "etc-overlay/upper/hostname",
    "etc-overlay/upper/systemd/network/10-eth.network",
    "etc-overlay/upper/ssh/ssh_host_key",
    "var/lib/robot/calibration/left",
    "var/lib/robot/calibration/right",
    "var/lib/other/database",
    "var/home/pilot/.ssh/authorized_keys",
    "var/log/messages",
    "var/lib/deep/a/b/c/d/file",
];

/// A robot that has started twice, with the content of its data partition.
struct Kept {
    robot: Robot,
    intact: Vec<u8>,
}

impl Kept {
    fn new() -> Self {
        let robot = Robot::blank_of(SIZE, &[]).with_files();
        robot.on_data(|data| {
            for file in FILES {
                fs::create_dir_all(data.join(file).parent().unwrap()).unwrap();
                fs::write(data.join(file), file).unwrap();
            }
        });
        for _ in 0..2 {
            robot.start(|_, record| assert!(record.is_whole(), "{record:#?}"));
        }
        let intact = fs::read(robot.image()).unwrap();
        Self { robot, intact }
    }

    /// Damages blocks of the partition as it was, and starts the robot until two starts say the same. Returns the files
    /// that are not what they were, and the records.
    fn after(&self, blocks: &[u64], content: &[u8]) -> (BTreeSet<&'static str>, Vec<StartRecord>) {
        fs::write(self.robot.image(), &self.intact).unwrap();
        let image = fs::File::options().write(true).open(self.robot.image()).unwrap();
        blocks.iter().for_each(|block| image.write_all_at(content, block * BLOCK as u64).unwrap());
        drop(image);
        let mut records = Vec::new();
        let mut lost = BTreeSet::new();
        for _ in 0..3 {
            records.push(self.robot.start(|root, record| {
                let changed = |file: &&str| {
                    let path = file.replace("etc-overlay/upper", "etc");
                    fs::read(root.join(path)).ok().as_deref() != Some(file.as_bytes())
                };
                lost = FILES.into_iter().filter(changed).collect();
                fs::write(root.join("etc/new"), "x").unwrap_or_else(|error| panic!("{blocks:?}: {error}: {record:#?}"));
                fs::write(root.join("var/new"), "x").unwrap_or_else(|error| panic!("{blocks:?}: {error}: {record:#?}"));
                record.clone()
            }));
        }
        (lost, records)
    }

    /// Numbers that debugfs answers with.
    fn numbers(&self, request: &str) -> Vec<u64> {
        let image = self.robot.dir.path().join("copy");
        fs::write(&image, &self.intact).unwrap();
        let output = Command::new("debugfs").args(["-R", request]).arg(&image).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    /// Blocks of the tables of the first group, and of every directory.
    fn tables_and_directories(&self) -> (Vec<u64>, Vec<u64>) {
        let mut directories = BTreeSet::from(["/".to_owned(), "/lost+found".to_owned()]);
        for file in FILES {
            let parents = Path::new(file).ancestors().skip(1).filter(|one| *one != Path::new(""));
            directories.extend(parents.map(|one| format!("/{}", one.display())));
        }
        let blocks = directories.iter().flat_map(|path| self.numbers(&format!("blocks {path}")));
        // Descriptors, bitmaps, and the inodes that are in use.
        ([1, 9, 25].into_iter().chain(INODES).collect(), blocks.filter(|block| *block > 0).collect())
    }
}

/// Loses each `step`th of these blocks, one at a time.
fn lose_blocks(step: usize) {
    let kept = Kept::new();
    let (tables, directories) = kept.tables_and_directories();
    assert!(directories.len() > 15, "{directories:?}");
    for (number, block) in tables.iter().chain(&directories).enumerate().filter(|(number, _)| number % step == 0) {
        for content in [vec![0; BLOCK], noise(BLOCK)] {
            let (lost, records) = kept.after(&[*block], &content);
            let why = format!("block {block}: {lost:?}: {records:#?}");
            assert!(lost.is_empty() || INODES.contains(block) && lost.len() < FILES.len(), "{why}");
            assert!(lost.is_empty() || records.iter().any(|record| !record.lost.is_empty()), "{why}");
            assert!(records.last().unwrap().is_whole(), "{why}");
            // What keeps the machine from starting is repaired at once.
            assert!(number < tables.len() || forms(&records[0]) == WHOLE, "{why}");
        }
    }
}

/// <https://github.com/balena-os/meta-balena/issues/1945>: what to do when the check fails. Here it does not even begin,
/// since the file system was unmounted in order, or it destroys what could be repaired.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_lost_block_of_data_costs_what_it_held_and_is_told() {
    isolated("field::data_damage::a_lost_block_of_data_costs_what_it_held_and_is_told", || {
        lose_blocks(11);
        // One bit of the place of the inodes: e2fsck believes it.
        let kept = Kept::new();
        let mut table = kept.intact[BLOCK..2 * BLOCK].to_vec();
        table[8] ^= 4;
        let (lost, records) = kept.after(&[1], &table);
        assert!(lost.is_empty() && !records[0].lost.is_empty() && forms(&records[0]) == WHOLE, "{lost:?} {records:#?}");
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_every_lost_block_of_data_costs_what_it_held_and_is_told() {
    isolated("field::data_damage::full_every_lost_block_of_data_costs_what_it_held_and_is_told", || lose_blocks(1));
}
