//! Disks that lie: they answer that a range is zeroed, and keep what was there. And disks of another size than the one
//! that their content was made for.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use reflash::boot::disk_record::{self, DISK_MIB};
use reflash::boot::env::BootEnv;
use reflash::disk::raw::WholeDisk;
use reflash::disk::{Disk, DiskSearch, FindError, Which, disks, find_disk_by_partuuid};
use reflash::fetch::Directory;
use reflash::flash::target::{BlockTarget, CopyError, copy_blocks};
use reflash::jobs::mend;
use reflash::jobs::recovery::RecoveryError;
use reflash::sys::mount;

use crate::isolated::isolated;
use crate::support::attached::Attached;
use crate::support::{Faults, Fixture, MemoryTarget};

const BLOCK: u64 = 4096;
const CHUNK: u64 = 16 * 1024;

/// What a disk does when it is asked to zero, beside answering that it is done.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    /// Nothing. Zeros after a discard of eMMC are not to be relied on: <https://github.com/rauc/rauc/pull/1706>; a
    /// target without write-zeroes answered all the same: <https://github.com/spdk/spdk/issues/1634>.
    Nothing,
    /// It zeroes only whole blocks of its own, and leaves the edges.
    OwnBlocks,
    /// Something else is read there afterwards.
    Noise,
    /// Zeros are read until the next flush.
    UntilFlush,
    /// The command is carried out at the beginning of the disk, and not behind.
    OnlyInFront,
    /// The command fails, after part of the range was zeroed.
    Error,
}

struct LyingTarget {
    disk: MemoryTarget,
    lie: Lie,
    commands: Mutex<Vec<Range<u64>>>,
    until_flush: Mutex<Vec<Range<u64>>>,
}

impl LyingTarget {
    fn new(lie: Lie, disk: MemoryTarget) -> Self {
        Self { disk, lie, commands: Mutex::default(), until_flush: Mutex::default() }
    }

    fn commands(&self) -> usize {
        self.commands.lock().unwrap().len()
    }

    fn zero_for_true(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() { Ok(()) } else { self.disk.zero(range) }
    }
}

impl BlockTarget for LyingTarget {
    fn name(&self) -> &str {
        "lying"
    }

    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)?;
        let end = offset + buffer.len() as u64;
        for range in &*self.until_flush.lock().unwrap() {
            let (from, to) = (range.start.clamp(offset, end), range.end.clamp(offset, end));
            buffer[(from - offset) as usize..(to - offset) as usize].fill(0);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, content)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.commands.lock().unwrap().push(range.clone());
        let own = 2 * CHUNK;
        match self.lie {
            Lie::Nothing => Ok(()),
            Lie::OwnBlocks => self.zero_for_true(range.start.next_multiple_of(own)..range.end - range.end % own),
            Lie::Noise => self.disk.write_at(range.start, &vec![0x5a; (range.end - range.start) as usize]),
            Lie::UntilFlush => {
                self.until_flush.lock().unwrap().push(range);
                Ok(())
            }
            Lie::OnlyInFront => self.zero_for_true(range.start..range.end.min(self.size_bytes() / 2)),
            Lie::Error => {
                self.zero_for_true(range.start..range.start + BLOCK)?;
                Err(io::Error::from_raw_os_error(5))
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.until_flush.lock().unwrap().clear();
        self.disk.flush()
    }
}

/// An image with zeros in front, in the middle and behind, each several chunks.
fn image() -> Vec<u8> {
    let is_zero = |block: usize| (8..40).contains(&block) || (60..100).contains(&block) || block >= 120;
    (0..160_usize).flat_map(|block| vec![if is_zero(block) { 0 } else { 1 + (block % 200) as u8 }; 4096]).collect()
}

#[test]
fn zeros_are_written_where_the_disk_only_says_that_it_has_zeroed() {
    let fixture = Fixture::with(image(), |_| {});
    for lie in [Lie::Nothing, Lie::OwnBlocks, Lie::Noise, Lie::UntilFlush, Lie::OnlyInFront] {
        let target = LyingTarget::new(lie, MemoryTarget::new(vec![0x55; fixture.image.len() + CHUNK as usize]));
        fixture
            .recover(&Directory::new(fixture.tree()), &target, None)
            .unwrap_or_else(|error| panic!("{lie:?}: {error}"));
        let content = target.disk.content();
        assert!(content[..fixture.image.len()] == fixture.image, "{lie:?}");
        assert!(content[fixture.image.len()..].iter().all(|byte| *byte == 0x55), "{lie:?}: behind the image");
        // After the first lie that shows, the disk is not asked again. A lie in some places shows at the end.
        let expected = if lie == Lie::OnlyInFront { 4 } else { 1 };
        assert_eq!(target.commands(), expected, "{lie:?}");
    }
}

#[test]
fn a_disk_that_keeps_no_zeros_at_all_is_named() {
    let fixture = Fixture::with(image(), |_| {});
    // A block of zeros that flips a bit with every write, however it is written.
    let faults = Faults { corrupt: vec![(70, u32::MAX)], ..Faults::default() };
    let target = LyingTarget::new(Lie::Nothing, MemoryTarget::faulty(vec![0x55; fixture.image.len()], faults));
    let error = fixture.recover(&Directory::new(fixture.tree()), &target, None).unwrap_err();
    assert!(matches!(&error, RecoveryError::ReadBack { ranges, .. } if ranges.contains("544")), "{error}");
}

#[test]
fn a_new_file_system_has_its_zeros_on_a_disk_that_lies() {
    for lie in [Lie::Nothing, Lie::OwnBlocks, Lie::Noise, Lie::UntilFlush, Lie::OnlyInFront] {
        let image: Vec<u8> = (0..5_u8).flat_map(|piece| vec![piece % 2 * 7; 1 << 20]).collect();
        let target = LyingTarget::new(lie, MemoryTarget::new(vec![0x55; 6 << 20]));
        copy_blocks(&image[..], &target, BLOCK).unwrap();
        let content = target.disk.content();
        assert!(content[BLOCK as usize..][..image.len()] == image, "{lie:?}");
        assert!(content[..BLOCK as usize].iter().all(|byte| *byte == 0x55), "{lie:?}");
    }
    let faults = Faults { corrupt: vec![(300, u32::MAX)], ..Faults::default() };
    let target = MemoryTarget::faulty(vec![0x55; 4 << 20], faults);
    let Err(CopyError::Write(error)) = copy_blocks(io::repeat(0).take(4 << 20), &target, 0) else {
        panic!("a disk that keeps no zeros is not noticed")
    };
    assert!(error.to_string().contains("at offset 1048576"), "{error}");
}

#[test]
fn a_command_that_fails_ends_the_write_and_claims_nothing() {
    // The device itself writes zeros where it has no command; what it reports beyond that is a fault.
    let fixture = Fixture::with(image(), |_| {});
    let target = LyingTarget::new(Lie::Error, MemoryTarget::new(vec![0x55; fixture.image.len()]));
    let error = fixture.recover(&Directory::new(fixture.tree()), &target, None).unwrap_err();
    assert!(matches!(error, RecoveryError::Write(_)), "{error}");
    assert!(target.disk.content()[..4096].iter().all(|byte| *byte == 0), "no superblock");
}

/// A disk image with the partitions of a robot, made by another tool. Loop devices are shared with everything that runs
/// on this machine, so the PARTUUID of the recovery partition is new.
fn robots_disk(file: &Path, bytes: u64) -> String {
    let random = RandomState::new().hash_one(0);
    let partuuid = format!("7b1c54e2-0003-4000-{:04x}-{:012x}", random >> 48, random & 0xffff_ffff_ffff);
    let table = format!(
        "label: gpt\nstart=2048, size=8192, name=state\nsize=8192, name=recovery, uuid={partuuid}\n\
         size=16384, name=system\nname=data\n"
    );
    fs::File::create(file).unwrap().set_len(bytes).unwrap();
    let mut tool = Command::new("sfdisk").arg("-q").arg(file).stdin(Stdio::piped()).spawn().unwrap();
    tool.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(tool.wait().unwrap().success());
    partuuid
}

fn resize(file: &Path, bytes: u64) {
    fs::File::options().write(true).open(file).unwrap().set_len(bytes).unwrap();
}

fn search() -> DiskSearch {
    DiskSearch::with(Which::WithLoop, None)
}

/// <https://github.com/canonical/core-base/issues/26>, <https://github.com/bottlerocket-os/bottlerocket/issues/333>: the
/// image of a disk is written to a larger one. The kernel keeps the table, and the rest of the disk is lost.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_table_of_a_smaller_disk_is_moved_to_the_end_of_a_larger_one_and_data_grows() {
    isolated("field::disks::the_table_of_a_smaller_disk_is_moved_to_the_end_of_a_larger_one_and_data_grows", || {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        for primary_lost in [false, true] {
            let partuuid = robots_disk(&file, 64 << 20);
            resize(&file, 160 << 20);
            if primary_lost {
                fs::File::options().write(true).open(&file).unwrap().write_all_at(&[0; 512], 512).unwrap();
            }
            let attached = Attached::new(&file, 512);
            let found = find_disk_by_partuuid(&partuuid, search()).unwrap();
            let before = found.layout.named("data").unwrap().entry.size_bytes;
            let disk = WholeDisk::open(attached.path()).unwrap();
            assert_eq!(mend::table::mend(&disk).unwrap().len(), usize::from(primary_lost));
            let gained = mend::table::grow(&disk, None).unwrap().unwrap();
            assert_eq!(mend::table::grow(&disk, None).unwrap(), None);
            let found = find_disk_by_partuuid(&partuuid, search()).unwrap();
            let data = found.layout.named("data").unwrap();
            assert!(gained >= 94 << 20 && data.entry.size_bytes == before + gained, "{gained} {data:?}");
            let verdict = Command::new("sgdisk").arg("-v").arg(&file).output().unwrap();
            let verdict = String::from_utf8_lossy(&verdict.stdout).into_owned();
            assert!(verdict.contains("No problems found"), "{verdict}");
        }
    });
}

/// <https://github.com/home-assistant/operating-system/pull/508>: the same with an MBR, which does not say how large its
/// disk was: the robot remembers it, and where it does not, or data did not reach to the end, room behind data stays.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn data_of_an_mbr_disk_grows_on_a_disk_larger_than_the_remembered_one() {
    isolated("field::disks::data_of_an_mbr_disk_grows_on_a_disk_larger_than_the_remembered_one", || {
        let directory = tempfile::tempdir().unwrap();
        let (file, at) = (directory.path().join("disk"), directory.path().join("mounted"));
        fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        // As a layout places them: the last MiB of the disk stays free.
        let table = "label: dos\nlabel-id: 0x0eadbeef\nstart=2048, size=8192, type=83\nsize=8192, type=83, bootable\n\
                     size=16384, type=83\nsize=94208, type=83\n";
        let mut tool = Command::new("sfdisk").arg("-q").arg(&file).stdin(Stdio::piped()).spawn().unwrap();
        tool.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(tool.wait().unwrap().success());
        {
            let attached = Attached::new(&file, 512);
            for (number, name) in [(1, "state"), (4, "data")] {
                let made =
                    Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", name, &attached.node(number)]).status();
                assert!(made.unwrap().success());
            }
            assert!(mend::table::grow(&WholeDisk::open(attached.path()).unwrap(), Some(64)).unwrap().is_none());
        }
        resize(&file, 160 << 20);
        let attached = Attached::new(&file, 512);
        let node = |number| PathBuf::from(attached.node(number));
        let size_of_data = || disk_of(&attached).layout().unwrap().unwrap().number(4).unwrap().entry.size_bytes;
        let before = size_of_data();
        let remember = |mib: Option<u64>| {
            attached.mount(1, &at);
            let env = BootEnv::new(&at.join("grubenv"));
            env.update(&[("reflash_tries", Some("0")), (DISK_MIB, None)]).unwrap();
            mib.map_or(Ok(()), |mib| disk_record::remember_size(&env, mib << 20)).unwrap();
            mount::unmount(&at).unwrap();
            let read = disk_record::read_disk_mib(&node(1), "mbr");
            assert_eq!(read, mib);
            read
        };
        {
            let disk = WholeDisk::open(attached.path()).unwrap();
            // A robot that does not remember, and one whose owner left room on a disk of 160 or 100 MiB.
            for left in [None, Some(160), Some(100)] {
                assert_eq!(mend::table::grow(&disk, remember(left)).unwrap(), None, "{left:?}");
            }
        }
        let remembered = remember(Some(64));
        let disk = WholeDisk::open(attached.path()).unwrap();
        assert_eq!(mend::table::grow(&disk, remembered).unwrap(), Some(96 << 20));
        assert_eq!(mend::table::grow(&disk, remembered).unwrap(), None);
        assert_eq!(size_of_data(), before + (96 << 20));
        disk.reread_partitions().unwrap();
        drop(disk);
        // Only a kernel that is built without partition tables needs that.
        let _ = Command::new("partx").arg("--update").arg(attached.path()).status();
        // The file system grows to the size of its device when the system starts.
        let kernel =
            disk_of(&attached).kernel_partitions().into_iter().find(|partition| partition.number == 4).unwrap();
        assert_eq!(kernel.size_bytes, before + (96 << 20));
        let checked = Command::new("e2fsck").args(["-f", "-n", &attached.node(4)]).status().unwrap();
        assert!(checked.success());
    });
}

fn disk_of(attached: &Attached) -> Disk {
    disks(Which::WithLoop).unwrap().into_iter().find(|disk| disk.path == attached.path()).unwrap()
}

/// <https://github.com/Quyzi/gpt/pull/78>: the image of a disk is written to a smaller one, or another reader of cards
/// shows less of it.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_disk_that_is_smaller_than_its_table_is_called_that() {
    isolated("field::disks::a_disk_that_is_smaller_than_its_table_is_called_that", || {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        let partuuid = robots_disk(&file, 64 << 20);
        resize(&file, 60 << 20);
        let attached = Attached::new(&file, 512);
        let error = find_disk_by_partuuid(&partuuid, search()).unwrap_err();
        let FindError::Smaller { size_bytes, needed_bytes, .. } = &error else { panic!("{error}") };
        assert_eq!((*size_bytes, *needed_bytes), (60 << 20, 64 << 20));
        assert!(error.to_string().contains("image of a larger disk"), "{error}");
        let disk = WholeDisk::open(attached.path()).unwrap();
        assert!(mend::table::grow(&disk, None).unwrap().is_none());
    });
}
