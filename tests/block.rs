//! Disks against the real kernel and real partitioning tools, on loop devices.
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions with #[test], not in their helpers.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use reflash::disk::{DiskSearch, FindError, Scheme, Which, disks, find_disk_by_partuuid, wait_for_disk_by_partuuid};
use reflash::sys::block::{Access, AlignedBuf, BlockError, Caching, Device, in_use};
use reflash::sys::mount::{self, Mount};
use reflash::sys::own_mounts;

use crate::isolated::{isolated, run};

/// An image file attached to a loop device with partitions.
struct Loop {
    _image: tempfile::NamedTempFile,
    device: PathBuf,
}

impl Loop {
    fn with_table(mebibytes: u64, sector: u32, table: &str) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mebibytes << 20).unwrap();
        let device = Self::attach(image.path(), sector);
        let one = Self { _image: image, device };
        one.partition(table);
        one
    }

    fn attach(image: &Path, sector: u32) -> PathBuf {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--partscan", "--sector-size", &sector.to_string()])
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }

    fn partition(&self, table: &str) {
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", "--wipe=always", "--no-tell-kernel"])
            .arg(&self.device)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sfdisk (fdisk) must be installed");
        sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        run("blockdev", &["--rereadpt", self.device.to_str().unwrap()]);
        // Does nothing more, except on kernels that are built without partition tables.
        run("partx", &["--update", self.device.to_str().unwrap()]);
    }

    fn node(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.display()))
    }

    fn open(&self, access: Access, caching: Caching) -> Device {
        Device::open(&self.device, access, caching).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

const GPT: &str = "label: gpt\nstart=2048, size=2048, name=biosboot\nsize=4096, name=\"réseau\"\n";

fn kernel_partuuid(node: &Path) -> String {
    let output = Command::new("blkid").args(["-p", "-s", "PART_ENTRY_UUID", "-o", "value"]).arg(node).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn tables_of_every_kind_agree_with_other_tools_and_the_kernel() {
    isolated("block::tables_of_every_kind_agree_with_other_tools_and_the_kernel", || {
        let mbr = "label: dos\nlabel-id: 0x0eadBEEF\nstart=2048, size=2048, type=83\nsize=4096, type=c\n";
        for (sector, table, scheme) in
            [(512, GPT, Scheme::Gpt), (4096, GPT, Scheme::Gpt), (512, mbr, Scheme::Mbr), (4096, mbr, Scheme::Mbr)]
        {
            let one = Loop::with_table(128, sector, table);
            let disk = disks(Which::WithLoop).unwrap().into_iter().find(|disk| disk.path == one.device).unwrap();
            assert_eq!((disk.size_bytes, disk.logical_block_size), (128 << 20, sector));
            let layout = disk.layout().unwrap().unwrap();
            assert_eq!((layout.scheme, layout.partitions.len(), layout.damaged_copy), (scheme, 2, false));
            for partition in &layout.partitions {
                let node = partition.node.as_ref().expect("the kernel's device for the partition");
                assert_eq!(*node, one.node(partition.entry.number));
                assert_eq!(partition.entry.partuuid, kernel_partuuid(node), "sector {sector}");
                let device = Device::open(node, Access::Read, Caching::Buffered).unwrap();
                assert_eq!(device.size_bytes(), partition.entry.size_bytes);
            }
            if scheme == Scheme::Gpt {
                assert_eq!(layout.named("réseau").unwrap().entry.number, 2);
            } else {
                assert_eq!(layout.partitions[0].entry.partuuid, "0eadbeef-01");
            }
            assert!(disks(Which::Physical).unwrap().iter().all(|disk| disk.path != one.device));
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn exactly_one_disk_must_have_the_partition() {
    isolated("block::exactly_one_disk_must_have_the_partition", || {
        // Loop devices are shared with everything that runs on this machine, so the number must be new.
        let random = RandomState::new().hash_one(0);
        let wanted = &format!("7b1c54e2-0001-4000-{:04x}-{:012x}", random >> 48, random & 0xffff_ffff_ffff);
        let table = &format!("{GPT}size=2048, uuid={}\n", wanted.to_uppercase());
        let other = Loop::with_table(32, 512, "label: gpt\nsize=2048\n");
        let error = find_disk_by_partuuid(wanted, DiskSearch::with(Which::WithLoop, None)).unwrap_err();
        assert!(matches!(error, FindError::None { .. }));
        assert!(error.to_string().contains(&format!("{} (", other.device.display())), "{error}");

        let mut one = None;
        let found = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let search = DiskSearch::with(Which::WithLoop, None);
                wait_for_disk_by_partuuid(wanted, search, Duration::from_secs(20), |_| println!("waiting"))
            });
            std::thread::sleep(Duration::from_secs(1));
            one = Some(Loop::with_table(32, 512, table));
            waiting.join().unwrap()
        });
        let one = one.unwrap();
        let found = found.unwrap();
        assert_eq!((&found.disk.path, found.number), (&one.device, 3));
        assert_eq!(found.layout.number(3).unwrap().node, Some(one.node(3)));

        let copy = Loop::with_table(32, 512, table);
        let error = find_disk_by_partuuid(wanted, DiskSearch::with(Which::WithLoop, None)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, FindError::Several { .. }));
        assert!(text.contains(one.device.to_str().unwrap()) && text.contains(copy.device.to_str().unwrap()), "{text}");
        assert!(!text.contains(&format!("{} (", other.device.display())), "{text}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_block_device_is_written_past_the_cache_and_read_back() {
    isolated("block::a_block_device_is_written_past_the_cache_and_read_back", || {
        for sector in [512, 4096] {
            let one = Loop::with_table(64, sector, GPT);
            let device = one.open(Access::WriteExclusive, Caching::Direct);
            assert_eq!((device.caching(), device.alignment()), (Caching::Direct, sector));
            assert_eq!(device.logical_block_size(), sector);
            let mut buffer = AlignedBuf::zeroed(1 << 20);
            buffer.fill(0x5a);
            device.write_all_at(&buffer, 16 << 20).unwrap();
            device.zero_out(16 << 20, 8192).unwrap();
            device.sync().unwrap();
            device.drop_cache().unwrap();
            let mut back = AlignedBuf::zeroed(1 << 20);
            device.read_exact_at(&mut back, 16 << 20).unwrap();
            assert!(back[..8192].iter().all(|byte| *byte == 0) && back[8192..].iter().all(|byte| *byte == 0x5a));
            device.discard(17 << 20, 1 << 20).unwrap();
            let error = device.write_all_at(&buffer[..4096], 64 << 20).unwrap_err();
            assert!(matches!(error, BlockError::Transfer { offset, .. } if offset == 64 << 20), "{error}");
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_is_in_use_is_known() {
    isolated("block::what_is_in_use_is_known", || {
        let one = Loop::with_table(64, 512, "label: gpt\nstart=2048, size=65536, name=state\n");
        let node = one.node(1);
        assert_eq!(in_use(&one.device).unwrap(), None);
        run("mkfs.ext4", &["-q", node.to_str().unwrap()]);
        let target = tempfile::tempdir().unwrap();
        let mount = reflash::sys::mount::Mount::device(&node, "ext4").read_only().no_load();
        mount.on(target.path()).unwrap();
        for path in [&one.device, &node] {
            let usage = in_use(path).unwrap().unwrap();
            assert!(usage.contains(node.to_str().unwrap()) && usage.contains("mounted on"), "{usage}");
        }
        let error = Device::open(&node, Access::WriteExclusive, Caching::Direct).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        // A read-only mount without the journal leaves every byte as it was.
        assert!(std::fs::write(target.path().join("x"), "x").is_err());
        reflash::sys::mount::unmount(target.path()).unwrap();
        assert_eq!(in_use(&node).unwrap(), None);
        Device::open(&node, Access::WriteExclusive, Caching::Direct).unwrap();

        let error = reflash::sys::mount::Mount::device(&node, "vfat").on(target.path()).unwrap_err();
        assert!(error.to_string().contains(node.to_str().unwrap()), "{error}");
    });
}

/// Commands have mounts of their own, and the file system of the partition is one for all of them.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn two_commands_mount_one_partition_and_neither_is_in_the_way() {
    isolated("block::two_commands_mount_one_partition_and_neither_is_in_the_way", || {
        let one = Loop::with_table(64, 512, "label: gpt\nstart=2048, size=65536, name=state\n");
        let node = one.node(1);
        run("mkfs.ext4", &["-q", node.to_str().unwrap()]);
        let places: [tempfile::TempDir; 4] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [first, second, third, left] = places.each_ref().map(tempfile::TempDir::path);
        let (to_write, to_read) = (Mount::device(&node, "ext4"), Mount::device(&node, "ext4").read_only());
        let can_write = |at: &Path| std::fs::write(at.join("x"), "x").is_ok();
        to_read.on_shared(first).unwrap();
        to_write.on_shared(second).unwrap();
        assert!(can_write(second) && !can_write(first), "one that reads came first");
        to_read.on_shared(third).unwrap();
        assert!(can_write(second) && !can_write(third), "one that writes came first");
        for at in [first, second, third] {
            mount::unmount(at).unwrap();
        }
        // What a command that was ended has left, as one of before did, is in nobody's way.
        to_write.on(left).unwrap();
        own_mounts::begin(&[left.to_owned()]).unwrap();
        let here = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!here().contains(left.to_str().unwrap()));
        to_read.on_shared(first).unwrap();
        assert!(here().contains(first.to_str().unwrap()));
        let outside = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!outside.contains(first.to_str().unwrap()) && outside.contains(left.to_str().unwrap()));
        // A program that it starts belongs to the system, where it was started.
        let mut program = Command::new("sh");
        program.args(["-c", "pwd; cat /proc/self/mountinfo"]).current_dir("/");
        let seen = own_mounts::start_outside(&mut program).output().unwrap();
        let seen = String::from_utf8(seen.stdout).unwrap();
        assert!(seen.contains(left.to_str().unwrap()) && !seen.contains(first.to_str().unwrap()), "{seen}");
        // The list of mounts does not show it, and the kernel does.
        let mut unmount = Command::new("umount");
        assert!(own_mounts::start_outside(unmount.arg(left)).status().unwrap().success());
        assert!(in_use(&node).unwrap().unwrap().ends_with("is used by another program"));
        mount::unmount(first).unwrap();
        assert_eq!(in_use(&node).unwrap(), None);
    });
}
