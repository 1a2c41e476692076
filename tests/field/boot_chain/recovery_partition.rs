//! The recovery partition without one of its blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use reflash::jobs::floor;
use reflash::jobs::mend::MendError;
use reflash::jobs::mend::recovery_partition::{self, RecoveryPlace, Thoroughness};
use reflash::jobs::site_copy;
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::bootstrap_names::RECOVERY;
use reflash::sys::mount::{self, Mount};

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;

/// <https://github.com/coreos/fedora-coreos-tracker/issues/1149>: one lost block of the partition that GRUB reads, and
/// the machine stands at a prompt. The running system brings the superblock back where the file system has a second
/// one.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lost_superblock_comes_back_from_the_second_one() {
    isolated("field::boot_chain::recovery_partition::a_lost_superblock_comes_back_from_the_second_one", || {
        let directory = tempfile::tempdir().unwrap();
        let (image, at) = (directory.path().join("recovery"), directory.path().join("at"));
        fs::create_dir(&at).unwrap();
        for (groups, is_mended) in [("8192", true), ("32768", false)] {
            fs::write(&image, vec![0; 64 << 20]).unwrap();
            let tree = directory.path().join("tree/slots/a");
            fs::create_dir_all(&tree).unwrap();
            fs::write(tree.join("vmlinuz"), vec![7; 300_000]).unwrap();
            let tree = directory.path().join("tree").display().to_string();
            let path = image.to_str().unwrap();
            run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-g", groups, "-d", &tree, path]);
            fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&[0; 4096], 0).unwrap();
            let attached = Attached::new(&image, 512);
            let mounted = || Mount::device(attached.path(), "ext4").read_only().on(&at);
            mounted().unwrap_err();
            let mended = recovery_partition::repair(attached.path());
            if is_mended {
                mended.unwrap();
                mounted().unwrap();
                assert!(fs::read(at.join("slots/a/vmlinuz")).unwrap() == vec![7; 300_000]);
                assert!(matches!(
                    recovery_partition::repair(attached.path()),
                    Err(MendError::RecoveryPartition { .. })
                ));
                mount::unmount(&at).unwrap();
            } else {
                // A file system of one group has no second superblock: this is said, and nothing is made up.
                assert!(matches!(mended, Err(MendError::RecoveryPartition { .. })), "{mended:?}");
            }
        }
    });
}

const BLOCK: usize = 4096;
const CONFIG: &str = "[release]\nurls = ['http://a.example/r']\n[machine]\nproduct = 'demo'\n";
const KEY: &str = "untrusted comment: a key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

/// A robot's recovery partition on a loop device, with both slots filled, and its state partition as a directory.
struct Robot {
    device: Attached,
    at: PathBuf,
    state: StatePartition,
    /// Content of the whole partition.
    intact: Vec<u8>,
    /// Content of every file.
    files: BTreeMap<String, Vec<u8>>,
    /// Template of a recovery partition, as a release has it.
    template: Vec<u8>,
    directory: tempfile::TempDir,
}

/// A template, as the builder compresses it.
fn packed(content: &[u8]) -> Vec<u8> {
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.compress(content).unwrap()
}

impl Robot {
    /// A robot whose file system has these features more or less.
    fn new(features: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut kernel = vec![7; 50_000];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        let mut initramfs = vec![9; 70_000];
        initramfs[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        let script = include_bytes!("../../../grub/slot.cfg").to_vec();
        let mut files = BTreeMap::new();
        for slot in ["a", "b"] {
            let contents = [("initramfs.img", &initramfs), ("vmlinuz", &kernel), ("grub.cfg", &script)];
            files.extend(contents.map(|(name, content)| (format!("slots/{slot}/{name}"), content.clone())));
        }
        for (name, content) in [
            ("reflash.toml", CONFIG.as_bytes()),
            ("asset", b"robot-7\n"),
            ("keys/one.pub", KEY.as_bytes()),
            ("keys/two.pub", KEY.as_bytes()),
            ("grub/grub.cfg", include_bytes!("../../../grub/grub.cfg")),
            ("grub/local.cfg", b"set serial_input=no\n"),
            ("templates/state.ext4.zst", &packed(&[5; 9000])),
            ("templates/data.ext4.zst", &packed(&[6; 5000])),
            ("provisioned/00112233-4455-8677-8899-aabbccddeeff", b""),
            (floor::FILE, &floor::new_file()),
        ] {
            files.insert(name.to_owned(), content.to_vec());
        }
        let tree = directory.path().join("tree");
        for (name, content) in &files {
            fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
            fs::write(tree.join(name), content).unwrap();
        }
        let image = directory.path().join("recovery");
        let (path, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
        run(
            "mke2fs",
            &["-q", "-t", "ext4", "-b", "4096", "-g", "1024", "-N", "128", "-O", features, "-d", tree, path, "16m"],
        );
        let intact = fs::read(&image).unwrap();
        fs::write(directory.path().join("copy"), &intact).unwrap();
        let (at, root) = (directory.path().join("at"), directory.path().join("state"));
        [&at, &root].into_iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let state = StatePartition::new(&root);
        let empty = directory.path().join("empty");
        run("mke2fs", &["-q", "-t", "ext4", "-b", "4096", "-g", "1024", empty.to_str().unwrap(), "12m"]);
        let template = packed(&fs::read(&empty).unwrap());
        let this = Self { device: Attached::new(&image, 512), at, state, intact, files, template, directory };
        this.write(|_| {});
        this.mount().unwrap();
        assert!(site_copy::keep(&this.state, &this.at).unwrap());
        mount::unmount(&this.at).unwrap();
        this
    }

    fn mount(&self) -> Result<(), impl std::fmt::Debug> {
        Mount::device(self.device.path(), "ext4").read_only().data_only().on(&self.at)
    }

    /// Writes the whole partition, with damage.
    fn write(&self, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut content = self.intact.clone();
        damage(&mut content);
        let mut file = fs::File::options().write(true).open(self.device.path()).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
    }

    /// Mends it as `reflash mend` does, and leaves it mounted for a look.
    fn mend(&self, with_network: bool) -> Result<(), MendError> {
        let is_mounted = self.mount().is_ok();
        let thoroughness = Thoroughness::Content;
        // The release has what was provisioned.
        let file = |name: &String| {
            let of_slot = name.strip_prefix("recovery/").map(|file| format!("slots/a/{file}"));
            let content = self.files.get(of_slot.as_ref().unwrap_or(name)).cloned();
            content.or_else(|| (name == RECOVERY).then(|| self.template.clone())).ok_or_else(|| name.clone())
        };
        let fetch = |names: &[String]| names.iter().map(file).collect();
        let fetch = with_network.then_some(&fetch as &recovery_partition::FetchFiles<'_>);
        let place = RecoveryPlace { device: self.device.path(), at: &self.at, state: &self.state, thoroughness, fetch };
        let mended = recovery_partition::mend(&place, is_mounted, &Journal::silent());
        if !is_mounted {
            let _ = self.mount();
        }
        mended
    }

    /// Names of the files that are not as they were.
    fn lost(&self) -> Vec<&str> {
        let is_lost =
            |(name, content): &(&String, &Vec<u8>)| fs::read(self.at.join(name)).ok().as_ref() != Some(*content);
        self.files.iter().filter(is_lost).map(|(name, _)| name.as_str()).collect()
    }

    /// Numbers of the blocks that are in use, without the journal.
    fn used_blocks(&self) -> Vec<usize> {
        let image = self.directory.path().join("copy");
        let output = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(&image).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut free = BTreeSet::new();
        for line in output("dumpe2fs", &[]).lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
            for range in line.split(", ").filter(|range| !range.is_empty()) {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                free.extend(first.parse::<usize>().unwrap()..=last.parse().unwrap());
            }
        }
        assert!(free.len() > 100, "dumpe2fs lists the free blocks");
        let journal = output("debugfs", &["-R", "blocks <8>"]);
        free.extend(journal.split_ascii_whitespace().skip(2).filter_map(|block| block.parse::<usize>().ok()));
        (0..self.intact.len() / BLOCK).filter(|block| !free.contains(block)).collect()
    }

    /// The block that holds the names of a directory, or the content of a file.
    fn block_of(&self, path: &str) -> usize {
        let output = Command::new("debugfs")
            .args(["-R", &format!("blocks {path}")])
            .arg(self.directory.path().join("copy"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.at);
    }
}

/// With and without checksums: without them the kernel does not see that a directory lost its block.
const FEATURES: [&str; 2] = ["^metadata_csum,^resize_inode", "metadata_csum,^resize_inode"];

/// <https://github.com/opencomputeproject/onie/issues/250>: a partition that mounts and has nothing to start from.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_directory_that_lost_its_names_gets_them_back() {
    isolated("field::boot_chain::recovery_partition::a_directory_that_lost_its_names_gets_them_back", || {
        for features in FEATURES {
            let robot = Robot::new(features);
            let directories = ["/", "/slots", "/slots/a", "/slots/b", "/grub", "/keys", "/templates", "/provisioned"];
            let at_the_first_start = fs::read(robot.directory.path().join("state/site.json")).unwrap();
            for directory in directories {
                for has_notes in [true, false] {
                    let block = robot.block_of(directory);
                    robot.write(|partition| partition[block * BLOCK..][..BLOCK].fill(0));
                    let notes = robot.directory.path().join("state/site.json");
                    if has_notes {
                        fs::write(&notes, &at_the_first_start).unwrap();
                    } else {
                        fs::remove_file(&notes).unwrap();
                    }
                    let mended = robot.mend(false);
                    let lost = robot.lost();
                    if has_notes {
                        mended.unwrap();
                        assert!(lost.is_empty(), "{features}, {directory}: {lost:?}");
                    } else {
                        // A robot that noted nothing yet: what starts is there, whatever else is.
                        let of_slots = lost.iter().filter(|name| name.starts_with("slots") || **name == "reflash.toml");
                        assert_eq!(of_slots.count(), 0, "{features}, {directory}: {lost:?} {mended:?}");
                    }
                    mount::unmount(&robot.at).unwrap();
                    if has_notes {
                        run("e2fsck", &["-f", "-n", robot.device.path().to_str().unwrap()]);
                    }
                }
            }
        }
    });
}

/// Damages every `step`th block in use, one at a time, by zeros and by what no program wrote.
fn damage_blocks(step: usize) {
    for features in FEATURES {
        let robot = Robot::new(features);
        let notes = robot.directory.path().join("state/site.json");
        let noted = fs::read(&notes).unwrap();
        let blocks = robot.used_blocks();
        let mut failed = 0;
        for block in blocks.iter().copied().step_by(step) {
            for byte in [0, 0xa5] {
                fs::write(&notes, &noted).unwrap();
                robot.write(|partition| partition[block * BLOCK..][..BLOCK].fill(byte));
                let mended = robot.mend(true);
                let lost = robot.lost();
                // Without the digests of its slots, a robot does not know that a kernel has a wrong block.
                let may_be_lost =
                    |name: &str| ["slots/", "provisioned/", floor::FILE].iter().any(|known| name.starts_with(known));
                let wrong: Vec<_> = lost.iter().filter(|name| !may_be_lost(name)).collect();
                assert!(wrong.is_empty(), "{features}, block {block}, {byte}: {wrong:?} {mended:?}");
                let is_slot = |slot: &str| !lost.iter().any(|name| name.starts_with(&format!("slots/{slot}")));
                assert!(is_slot("a") || is_slot("b"), "{features}, block {block}, {byte}: {lost:?} {mended:?}");
                failed += usize::from(mended.is_err());
                let _ = mount::unmount(&robot.at);
            }
        }
        eprintln!("{features}: {} blocks in use, each {step}th damaged; {failed} not mended", blocks.len());
        assert_eq!(failed, 0);
    }
}

/// <https://github.com/coreos/fedora-coreos-tracker/issues/1149>, for any block.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn any_damaged_block_leaves_a_recovery_to_start() {
    isolated("field::boot_chain::recovery_partition::any_damaged_block_leaves_a_recovery_to_start", || {
        damage_blocks(7)
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_every_damaged_block_leaves_a_recovery_to_start() {
    isolated("field::boot_chain::recovery_partition::full_every_damaged_block_leaves_a_recovery_to_start", || {
        damage_blocks(1);
    });
}

/// What is named while nothing can be done: no slot is left, and what there is once has no copy.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_cannot_be_mended_is_named() {
    isolated("field::boot_chain::recovery_partition::what_cannot_be_mended_is_named", || {
        let robot = Robot::new(FEATURES[0]);
        let device = robot.device.path().to_str().unwrap().to_owned();
        robot.write(|_| {});
        robot.mend(false).unwrap();
        assert_eq!(robot.lost(), [] as [&str; 0]);
        mount::unmount(&robot.at).unwrap();
        for slot in ["a", "b"] {
            run("debugfs", &["-w", "-R", &format!("rm slots/{slot}/vmlinuz"), &device]);
        }
        let error = robot.mend(false).unwrap_err().to_string();
        assert!(error.contains("no slot has all its files") && error.contains("slots/b/vmlinuz"), "{error}");
        mount::unmount(&robot.at).unwrap();

        robot.write(|_| {});
        fs::remove_file(robot.directory.path().join("state/site.json")).unwrap();
        let block = robot.block_of("/reflash.toml");
        robot.write(|partition| partition[block * BLOCK..][..BLOCK].fill(0xa5));
        let error = robot.mend(false).unwrap_err().to_string();
        assert!(error.contains("reflash.toml is damaged"), "{error}");
        assert!(Path::new(&robot.at).join("slots/a/vmlinuz").exists());
    });
}

/// No superblock is left, as after another `mkfs`, a dead flash or a cleared region: the kinds of
/// <https://github.com/pbatard/rufus/issues/1507>, for the partition that brings everything back.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_partition_of_which_nothing_is_left_is_made_anew() {
    isolated("field::boot_chain::recovery_partition::a_partition_of_which_nothing_is_left_is_made_anew", || {
        let robot = Robot::new(FEATURES[1]);
        let notes = robot.directory.path().join("state/site.json");
        let noted = fs::read(&notes).unwrap();
        let noise = |partition: &mut Vec<u8>| {
            partition.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 % 251) as u8);
        };
        type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
        let damages: [Damage<'_>; 4] = [
            &|partition| partition.fill(0),
            &|partition| partition.fill(0xff),
            &noise,
            // A file system of another kind, in whose place the old superblocks are gone.
            &|partition| {
                noise(partition);
                partition[510..512].copy_from_slice(&[0x55, 0xaa]);
            },
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            fs::write(&notes, &noted).unwrap();
            robot.write(damage);
            // Without a network nothing is written.
            let before = fs::read(robot.device.path()).unwrap();
            let error = robot.mend(false).unwrap_err().to_string();
            assert!(error.contains("no superblock left"), "{number}: {error}");
            assert!(fs::read(robot.device.path()).unwrap() == before);
            // Nor without the configuration.
            fs::remove_file(&notes).unwrap();
            let error = robot.mend(true).unwrap_err().to_string();
            assert!(error.contains("no copy of reflash.toml"), "{number}: {error}");
            assert!(fs::read(robot.device.path()).unwrap() == before);
            fs::write(&notes, &noted).unwrap();
            robot.mend(true).unwrap();
            let lost = robot.lost();
            // Media are only for one that is provisioned again.
            assert!(lost.iter().all(|name| name.starts_with("provisioned/")), "{number}: {lost:?}");
            mount::unmount(&robot.at).unwrap();
            run("e2fsck", &["-f", "-n", robot.device.path().to_str().unwrap()]);
            // And it is one like any other.
            robot.mend(false).unwrap();
            mount::unmount(&robot.at).unwrap();
        }
        // A cut before its end leaves what is made anew once more.
        robot.write(|partition| partition.fill(0));
        robot.mend(true).unwrap();
        mount::unmount(&robot.at).unwrap();
        let whole = fs::read(robot.device.path()).unwrap();
        for cut_at in [4096, 1 << 20, 6 << 20] {
            fs::write(&notes, &noted).unwrap();
            robot.write(|partition| {
                partition.fill(0);
                partition[..cut_at].copy_from_slice(&whole[..cut_at]);
            });
            robot.mend(true).unwrap();
            // What is in the place of the floor is for the next good boot.
            let may_be_lost = |name: &&str| name.starts_with("provisioned/") || *name == floor::FILE;
            assert!(robot.lost().iter().all(may_be_lost), "{cut_at}: {:?}", robot.lost());
            mount::unmount(&robot.at).unwrap();
        }
    });
}
