//! State partitions that are damaged, full, or marked: each is used as it is or made anew, and the robot goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reflash::boot::env::LoadedEnv;
use reflash::fetch::Directory;
use reflash::jobs::floor::{self, Floor, FloorPlaces};
use reflash::jobs::mend::pieces::BootPieces;
use reflash::jobs::state::StatePartition;
use reflash::jobs::state::device::{StateDevice, StateFault};
use reflash::record::blackbox::{Attempt, BlackBox};
use reflash::record::journal::Journal;
use reflash::sys::mount::{self, Mount};

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;
use crate::support::{Fixture, MemoryTarget};

const BLOCK: usize = 4096;
/// No state partition may hold up a recovery for longer.
const SOON: Duration = Duration::from_secs(20);

/// A robot after its first recovery: its state partition on a loop device, and what it should hold.
struct Robot {
    fixture: Fixture,
    target: MemoryTarget,
    device: Attached,
    root: PathBuf,
    template: PathBuf,
    /// Content of the whole partition.
    intact: Vec<u8>,
    dir: tempfile::TempDir,
}

/// What was found on a state partition after it was opened.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    environment: bool,
    record: bool,
    floor: u64,
    attempts: usize,
    boot_code: bool,
}

const ALL: Found = Found { environment: true, record: true, floor: 7, attempts: 3, boot_code: true };

impl Robot {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("installed")).unwrap();
        let mut env = reflash::boot::grubenv::GrubEnv::default();
        env.set("reflash_tries", "0").unwrap();
        fs::write(tree.join("grubenv"), env.encode().unwrap()).unwrap();
        fs::write(tree.join("blackbox"), vec![0xff; reflash::record::blackbox::SIZE_BYTES as usize]).unwrap();
        fs::write(tree.join(floor::FILE), floor::new_file()).unwrap();
        let (image, template) = (dir.path().join("state.img"), dir.path().join("state.zst"));
        let (path, features) = (image.to_str().unwrap(), "^inline_data,metadata_csum_seed");
        let arguments =
            ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-d", tree.to_str().unwrap(), path, "12m"];
        run("mke2fs", &arguments);
        let content = fs::read(&image).unwrap();
        let mut encoder = zstd::stream::write::Encoder::new(File::create(&template).unwrap(), 1).unwrap();
        encoder.set_pledged_src_size(Some(content.len() as u64)).unwrap();
        encoder.write_all(&content).unwrap();
        encoder.finish().unwrap();
        let fixture = Fixture::new();
        let target = MemoryTarget::new(vec![0; fixture.image.len()]);
        let (device, root) = (Attached::new(&image, 512), dir.path().join("mounted"));
        let mut this = Self { fixture, target, device, root, template, intact: Vec::new(), dir };
        this.open();
        this.recover("intact");
        let state = this.state();
        state.boot_env().update(&[("reflash_boot_ok", Some("1")), ("mine", Some("kept"))]).unwrap();
        let mut open = BlackBox::open(&state.blackbox_path()).unwrap();
        for id in 1..=3 {
            open.record(&Attempt { id, ..Attempt::default() }).unwrap();
        }
        drop(open);
        assert!(this.floor().raise(7).failed.is_empty());
        boot_code().keep(&state).unwrap();
        mount::unmount(&this.root).unwrap();
        this.intact = fs::read(this.device.path()).unwrap();
        this
    }

    fn state_device(&self) -> StateDevice<'_> {
        StateDevice { partition: self.device.path(), root: &self.root, template: &self.template }
    }

    fn open(&self) {
        let began = Instant::now();
        self.state_device().open(&Journal::silent()).unwrap();
        assert!(began.elapsed() < SOON);
    }

    fn state(&self) -> StatePartition {
        StatePartition::new(&self.root)
    }

    fn floor(&self) -> Floor {
        Floor::open(FloorPlaces { state: Some(self.root.clone()), ..FloorPlaces::default() })
    }

    /// A recovery, which must be recorded.
    fn recover(&self, says: &str) {
        let source = Directory::new(self.fixture.tree());
        let report = self.fixture.recover(&source, &self.target, Some(&self.state())).unwrap();
        assert!(report.committed.unrecorded.is_none(), "{says}: {:?}", report.committed.unrecorded);
        assert!(self.state().installed(&self.fixture.keys).is_some());
    }

    fn found(&self) -> Found {
        let state = self.state();
        let env = match state.boot_env().load().unwrap() {
            LoadedEnv::Good(env) => env.get("mine").map(str::to_owned),
            LoadedEnv::Lost(_) => None,
        };
        assert!(env.is_none() || env.as_deref() == Some("kept"));
        let attempts = BlackBox::open(&state.blackbox_path()).map_or(0, |open| open.attempts().len());
        Found {
            environment: env.is_some(),
            record: state.installed(&self.fixture.keys).is_some(),
            floor: self.floor().record().serial,
            attempts,
            boot_code: BootPieces::read(&state) == Some(boot_code()),
        }
    }

    /// Writes the whole partition, with damage.
    fn write(&self, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut content = self.intact.clone();
        damage(&mut content);
        let mut file = File::options().write(true).open(self.device.path()).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
    }

    /// Opens a damaged partition, looks what is left, recovers, and looks whether that is there at the next start.
    fn goes_on(&self, says: &str) -> Found {
        self.open();
        let found = self.found();
        self.recover(says);
        mount::unmount(&self.root).unwrap();
        Mount::device(self.device.path(), "ext4").data_only().on(&self.root).unwrap();
        assert!(self.state().installed(&self.fixture.keys).is_some(), "{says}: lost at the next start");
        assert!(matches!(self.state().boot_env().load().unwrap(), LoadedEnv::Good(_)), "{says}");
        let good = reflash::cli::run(["good", "--state", self.root.to_str().unwrap()].iter().map(Into::into));
        assert_eq!(good, reflash::cli::answer::Exit::Done, "{says}");
        mount::unmount(&self.root).unwrap();
        found
    }

    /// Numbers of the blocks of the journal, that of its superblock first.
    fn journal_blocks(&self) -> Vec<usize> {
        let image = self.dir.path().join("journal.img");
        fs::write(&image, &self.intact).unwrap();
        let output = Command::new("debugfs").args(["-R", "blocks <8>"]).arg(&image).output().unwrap();
        let journal = String::from_utf8_lossy(&output.stdout).into_owned();
        journal.split_ascii_whitespace().filter_map(|block| block.parse().ok()).collect()
    }

    /// Numbers of the blocks that are in use, without most of the journal, which is empty.
    fn used_blocks(&self) -> Vec<usize> {
        let image = self.dir.path().join("copy.img");
        fs::write(&image, &self.intact).unwrap();
        let dump = |arguments: &[&str]| {
            let output = Command::new("dumpe2fs").args(arguments).arg(&image).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut free = BTreeSet::new();
        for line in dump(&[]).lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
            for range in line.split(", ").filter(|range| !range.is_empty()) {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                free.extend(first.parse::<usize>().unwrap()..=last.parse().unwrap());
            }
        }
        assert!(free.len() > 100, "dumpe2fs lists the free blocks");
        free.extend(self.journal_blocks().into_iter().skip(8));
        (0..self.intact.len() / BLOCK).filter(|block| !free.contains(block)).collect()
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.root);
    }
}

/// The robot's own copy of its boot code, which mends without a network.
fn boot_code() -> BootPieces {
    BootPieces::new(3, vec![("grub/boot.img".to_owned(), vec![1; 512]), ("grub/core.img".to_owned(), vec![2; 9000])])
}

/// Bytes that no program wrote.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..BLOCK).map(|_| next()).collect()
}

/// Damages every `step`th block in use, one at a time, by noise and by zeros.
fn damage_blocks(step: usize) {
    let robot = Robot::new();
    assert_eq!(robot.goes_on("intact"), ALL);
    let mut lost = 0;
    let blocks = robot.used_blocks();
    for (number, block) in blocks.iter().enumerate().filter(|(number, _)| number % step == 0) {
        for content in [noise(number as u64), vec![0; BLOCK]] {
            robot.write(|partition| partition[block * BLOCK..][..BLOCK].copy_from_slice(&content));
            let found = robot.goes_on(&format!("block {block}"));
            assert!([0, 7].contains(&found.floor) && found.attempts <= 3, "block {block}: {found:?}");
            lost += usize::from(found != ALL);
        }
    }
    let tried = blocks.len().div_ceil(step) * 2;
    eprintln!("{tried} partitions with one damaged block of {} in use: {lost} lost something", blocks.len());
    assert!(lost > 0 && lost < tried, "some blocks matter, and most of them cost nothing");
}

/// GRUB and every reader of a file do without it, and so does what was recorded.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lost_journal_costs_nothing_that_the_partition_holds() {
    isolated("field::state::a_lost_journal_costs_nothing_that_the_partition_holds", || {
        let robot = Robot::new();
        let journal = robot.journal_blocks();
        assert!(journal.len() > 8, "{journal:?}");
        for content in [noise(1), vec![0; BLOCK]] {
            robot.write(|partition| partition[journal[0] * BLOCK..][..BLOCK].copy_from_slice(&content));
            assert_eq!(robot.goes_on("the journal's superblock"), ALL);
        }
    });
}

/// A fault that is survived must not become one that is not, by a second one.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_damaged_template_is_not_written_over_a_partition_that_can_be_read() {
    isolated("field::state::a_damaged_template_is_not_written_over_a_partition_that_can_be_read", || {
        let robot = Robot::new();
        let whole = fs::read(&robot.template).unwrap();
        robot.write(|_| {});
        // An error that the kernel has recorded, as debugfs sets it.
        run("debugfs", &["-w", "-R", "ssv error_count 3", robot.device.path().to_str().unwrap()]);
        fs::write(&robot.template, &whole[..whole.len() / 2]).unwrap();
        robot.open();
        assert_eq!(robot.found(), ALL, "the old one is better than none");
        mount::unmount(&robot.root).unwrap();
        fs::write(&robot.template, &whole).unwrap();
        assert_eq!(robot.goes_on("with a whole template"), ALL);
    });
}

/// <https://github.com/balena-os/meta-balena/issues/1945>: what to do with a state partition that fsck cannot repair.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn any_damaged_block_costs_at_most_what_it_held() {
    isolated("field::state::any_damaged_block_costs_at_most_what_it_held", || damage_blocks(29));
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_every_damaged_block_costs_at_most_what_it_held() {
    isolated("field::state::full_every_damaged_block_costs_at_most_what_it_held", || damage_blocks(1));
}

/// <https://github.com/openbmc/openbmc/issues/1776> and the ones above: a file system that mounts and cannot be used.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_mounts_and_cannot_be_used_is_made_anew_with_what_can_be_read() {
    isolated("field::state::what_mounts_and_cannot_be_used_is_made_anew_with_what_can_be_read", || {
        let robot = Robot::new();
        let device = robot.device.path().to_str().unwrap().to_owned();
        let debugfs = |request: &str| run("debugfs", &["-w", "-R", request, &device]);
        let fault = |robot: &Robot| {
            Mount::device(robot.device.path(), "ext4").data_only().on(&robot.root).unwrap();
            let fault = robot.state_device().try_out();
            mount::unmount(&robot.root).unwrap();
            fault
        };
        robot.write(|_| {});
        assert!(fault(&robot).is_ok());
        assert_eq!(robot.goes_on("intact"), ALL);

        // The kernel saw a fault at an earlier time, which nothing has repaired.
        robot.write(|_| {});
        debugfs("ssv error_count 3");
        assert!(matches!(fault(&robot), Err(StateFault::Recorded(3))));
        assert_eq!(robot.goes_on("recorded errors"), ALL);
        assert!(fault(&robot).is_ok(), "made anew");

        // Both bitmaps: nothing new can be made.
        for bitmap in ["block_bitmap", "inode_bitmap"] {
            robot.write(|_| {});
            let output = Command::new("debugfs").args(["-R", "stats", &device]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let label = if bitmap == "block_bitmap" { "block bitmap at " } else { "inode bitmap at " };
            let place = text.split(label).nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next().unwrap();
            let block: usize = place.parse().unwrap();
            robot.write(|partition| partition[block * BLOCK..][..BLOCK].copy_from_slice(&noise(5)));
            assert!(fault(&robot).is_err(), "{bitmap}");
            assert_eq!(robot.goes_on(bitmap), ALL, "{bitmap}");
        }

        // The inode of a file, and of the directory of the record.
        for (inode, expected) in [
            ("grubenv", Found { environment: false, ..ALL }),
            ("blackbox", Found { attempts: 0, ..ALL }),
            ("floor", Found { floor: 0, ..ALL }),
            ("installed", Found { record: false, ..ALL }),
            ("boot", Found { boot_code: false, ..ALL }),
        ] {
            robot.write(|_| {});
            debugfs(&format!("clri {inode}"));
            assert_eq!(robot.goes_on(inode), expected, "{inode}");
        }

        // Nothing is left.
        for byte in [0, 0xff, 0xa5] {
            robot.write(|partition| partition.fill(byte));
            let nothing = Found { environment: false, record: false, floor: 0, attempts: 0, boot_code: false };
            assert_eq!(robot.goes_on("noise"), nothing);
        }
    });
}

/// <https://github.com/home-assistant/operating-system/issues/2092>: a full partition that ends in a boot loop.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_full_or_a_marked_state_partition_keeps_what_it_has() {
    isolated("field::state::a_full_or_a_marked_state_partition_keeps_what_it_has", || {
        let robot = Robot::new();
        let fill = |what: &str, one: &dyn Fn(&Path) -> std::io::Result<()>| {
            robot.write(|_| {});
            robot.open();
            for number in 0.. {
                if let Err(error) = one(&robot.root.join(format!("{what}{number}"))) {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
            mount::unmount(&robot.root).unwrap();
            robot.open();
            assert_eq!(robot.found(), ALL, "full of {what}");
            // What is overwritten in place needs no room.
            assert!(robot.floor().raise(8).failed.is_empty() && robot.floor().record().serial == 8);
            let state = robot.state();
            state.boot_env().update(&[("reflash_tries", Some("2"))]).unwrap();
            let mut open = BlackBox::open(&state.blackbox_path()).unwrap();
            open.record(&Attempt { id: 4, ..Attempt::default() }).unwrap();
            drop(open);
            let source = Directory::new(robot.fixture.tree());
            robot.fixture.recover(&source, &robot.target, Some(&state)).unwrap();
            mount::unmount(&robot.root).unwrap();
        };
        fill("inodes", &|path| File::create_new(path).map(drop));
        fill("blocks", &|path| fs::write(path, vec![1; 256 * 1024]));

        robot.write(|_| {});
        robot.open();
        for file in ["grubenv", "blackbox", "floor", "installed/manifest.json", "installed/system.idx", "installed", ""]
        {
            run("chattr", &["+i", robot.root.join(file).to_str().unwrap()]);
        }
        mount::unmount(&robot.root).unwrap();
        assert_eq!(robot.goes_on("marked"), ALL);
    });
}

/// A device that refuses every write, as a card that is worn out does: the old content is used as it is.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn where_no_new_one_can_be_made_the_old_one_is_used() {
    isolated("field::state::where_no_new_one_can_be_made_the_old_one_is_used", || {
        let robot = Robot::new();
        robot.write(|_| {});
        run("debugfs", &["-w", "-R", "ssv error_count 3", robot.device.path().to_str().unwrap()]);
        let without = StateDevice { template: Path::new("/nowhere"), ..robot.state_device() };
        without.open(&Journal::silent()).unwrap();
        assert_eq!(robot.found(), ALL);
        mount::unmount(&robot.root).unwrap();
        let mut head = [0; 2048];
        let mut file = File::open(robot.device.path()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(&mut head).unwrap();
        assert_eq!(head[1080..1082], [0x53, 0xef], "it is still there");
    });
}
