//! Media that lie: USB drives with links, pipes and devices where a release should be, drives that stop answering, and
//! copies of a robot's disk.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reflash::boot::disk_record;
use reflash::boot::env::BootEnv;
use reflash::disk::identity::DiskIdentity;
use reflash::disk::{DiskSearch, FindError, Which, disks, find_disk_by_partuuid, wait_for_disk_by_partuuid};
use reflash::fetch::{Directory, FetchErrorKind, Mirrors, RetryPolicy, Source};
use reflash::sys::mount::{self, Mount};
use rustix::fs::{FileType, Mode};

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;
use crate::support::clock::FakeClock;
use crate::support::{Fixture, MemoryTarget};

/// How long a read of a drive may hang before the next source is asked; a long time for a test.
const STALL: Duration = Duration::from_millis(300);
/// No case here may take longer than that.
const SOON: Duration = Duration::from_secs(20);

fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
}

/// A release from a good source, when the drive, which is asked first, has this in the place of one of its files.
fn recover_with_drive(what: &str, make: &dyn Fn(&Path)) {
    let fixture = Fixture::new();
    for file in ["stable/manifest.json", "stable/manifest.json.minisig", "objects"] {
        let drive = tempfile::tempdir().unwrap();
        run("cp", &["-r", &format!("{}/.", fixture.tree().display()), drive.path().to_str().unwrap()]);
        let paths: Vec<PathBuf> = match file {
            "objects" => fs::read_dir(drive.path().join(file)).unwrap().map(|entry| entry.unwrap().path()).collect(),
            file => vec![drive.path().join(file)],
        };
        for path in paths {
            fs::remove_file(&path).unwrap();
            make(&path);
        }
        let sources: Vec<Box<dyn Source>> = vec![
            Box::new(Directory::new(drive.path()).with_stall_timeout(STALL)),
            Box::new(Directory::new(fixture.tree())),
        ];
        let mirrors = Mirrors::with_clock(sources, RetryPolicy::Rounds(3), FakeClock::new().shared());
        let target = MemoryTarget::new(vec![0; fixture.image.len()]);
        let began = Instant::now();
        fixture.recover(&mirrors, &target, None).unwrap_or_else(|error| panic!("{what} for {file}: {error:?}"));
        assert!(target.content() == fixture.image && began.elapsed() < SOON, "{what} for {file}");
    }
}

/// <https://github.com/fwupd/fwupd/issues/5258>: links that lead in a circle are followed until memory is full. Here they
/// also lead to what never ends, or never answers, and there are other things that are no files.
#[test]
fn what_is_no_file_on_a_drive_is_passed_over_and_the_next_source_used() {
    recover_with_drive("a link to the kernel's log", &|path| symlink("/proc/kmsg", path).unwrap());
    recover_with_drive("a link to a device", &|path| symlink("/dev/zero", path).unwrap());
    recover_with_drive("a link to itself", &|path| symlink(path.file_name().unwrap(), path).unwrap());
    recover_with_drive("a named pipe", &pipe);
    recover_with_drive("a directory", &|path| fs::create_dir(path).unwrap());
    recover_with_drive("a hole of a terabyte", &|path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap());
    recover_with_drive("an empty file", &|path| drop(fs::File::create(path).unwrap()));
}

/// The link may also be a directory on the way, or the drive's whole tree.
#[test]
fn a_link_on_the_way_is_not_followed_either() {
    let fixture = Fixture::new();
    let drive = tempfile::tempdir().unwrap();
    symlink(fixture.tree(), drive.path().join("reflash")).unwrap();
    let tree = Directory::on_medium(drive.path(), "reflash");
    assert_eq!(tree.get_small("stable/manifest.json", 1 << 20).unwrap_err().kind(), FetchErrorKind::Protocol);
    let drive = tempfile::tempdir().unwrap();
    symlink(fixture.tree().join("stable"), drive.path().join("stable")).unwrap();
    let tree = Directory::new(drive.path());
    assert_eq!(tree.get_small("stable/manifest.json", 1 << 20).unwrap_err().kind(), FetchErrorKind::Protocol);
    // A person may name a directory by a link, and hard links are files.
    symlink(fixture.tree(), drive.path().join("named")).unwrap();
    let tree = Directory::new(drive.path().join("named"));
    let hard = fixture.tree().join("stable/hard");
    fs::hard_link(fixture.tree().join("stable/manifest.json"), &hard).unwrap();
    assert_eq!(tree.get_small("stable/hard", 1 << 20).unwrap(), fs::read(&hard).unwrap());
}

/// A file system that answers nothing, as a drive that is failing or was pulled out: one in user space with no program
/// behind it. When this is dropped, whatever waits for it fails.
struct Silent {
    at: tempfile::TempDir,
    device: Option<fs::File>,
}

impl Silent {
    fn new() -> Self {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let at = tempfile::tempdir().unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        Mount::virtual_fs("fuse").data(options).on(at.path()).unwrap();
        Self { at, device: Some(device) }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        drop(self.device.take());
        let _ = mount::detach(self.at.path());
    }
}

/// <https://github.com/victronenergy/venus/issues/301>, <https://github.com/mvp/uhubctl/issues/649>: USB storage stops
/// answering, and whatever reads from it never comes back.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_drive_that_stops_answering_is_left_and_the_next_source_used() {
    isolated("field::media::a_drive_that_stops_answering_is_left_and_the_next_source_used", || {
        let fixture = Fixture::new();
        let silent = Silent::new();
        let drive = || Directory::new(silent.at.path()).with_stall_timeout(STALL);
        let began = Instant::now();
        let alone = drive();
        for _ in 0..20 {
            let error = alone.get_small("stable/manifest.json", 1 << 20).unwrap_err();
            assert!(error.kind() == FetchErrorKind::Stalled && error.is_retryable(), "{error}");
        }
        // Each attempt waits and leaves a thread behind, up to a number of them.
        assert!(began.elapsed() < STALL * 16, "{:?}", began.elapsed());
        let sources: Vec<Box<dyn Source>> = vec![Box::new(drive()), Box::new(Directory::new(fixture.tree()))];
        let mirrors = Mirrors::with_clock(sources, RetryPolicy::Rounds(3), FakeClock::new().shared());
        let target = MemoryTarget::new(vec![0; fixture.image.len()]);
        fixture.recover(&mirrors, &target, None).unwrap();
        assert!(target.content() == fixture.image && began.elapsed() < SOON);
    });
}

/// A link on a drive, with a file system that the kernel mounts: it leads nowhere.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_mount_for_data_follows_no_link_and_starts_nothing() {
    isolated("field::media::a_mount_for_data_follows_no_link_and_starts_nothing", || {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        let device = Attached::new(&image, 512);
        Mount::device(device.path(), "ext4").data_only().on(&at).unwrap();
        fs::write(at.join("file"), "x").unwrap();
        symlink("file", at.join("link")).unwrap();
        assert!(fs::read(at.join("file")).is_ok() && fs::read(at.join("link")).is_err());
        run("mknod", &[at.join("null").to_str().unwrap(), "c", "1", "3"]);
        assert!(fs::read(at.join("null")).is_err());
        let before = options_of(&at);
        assert!(["nosuid", "nodev", "noexec", "nosymfollow"].iter().all(|flag| before.contains(flag)), "{before}");
        // A remount must not take that away.
        mount::remount_writable(&at).unwrap();
        assert_eq!(options_of(&at), before);
        mount::unmount(&at).unwrap();
    });
}

/// <https://github.com/google/syzkaller/issues/599>, <https://github.com/apptainer/singularity/issues/180>: a file system
/// can have it in its superblock that the kernel panics at its first fault. On a drive of a stranger, and on a state
/// partition with a flipped bit, that would restart the robot each time it is looked at.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_drive_cannot_ask_for_a_panic_of_the_kernel() {
    isolated("field::media::a_drive_cannot_ask_for_a_panic_of_the_kernel", || {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-e", "panic", image.to_str().unwrap()]);
        let device = Attached::new(&image, 512);
        let mounts = [
            Mount::device(device.path(), "ext4").data_only().read_only().no_load(),
            Mount::device(device.path(), "ext4").data_only().read_only(),
            Mount::device(device.path(), "ext4").data_only(),
        ];
        for mount in mounts {
            mount.on(&at).unwrap();
            assert!(options_of(&at).contains("errors=continue"), "{}", options_of(&at));
            if !options_of(&at).starts_with("ro") {
                // A remount must not take that away.
                mount::remount_read_only(&at).unwrap();
                mount::remount_writable(&at).unwrap();
                assert!(options_of(&at).contains("errors=continue"), "{}", options_of(&at));
            }
            mount::unmount(&at).unwrap();
        }
    });
}

fn options_of(at: &Path) -> String {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = text.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
    line.split(' ').nth(3).unwrap().to_owned()
}

/// The PARTUUID of the recovery partition of [`robot_disk`].
fn partuuid() -> String {
    // Loop devices are shared with everything that runs on this machine, so the number must be new.
    let random = RandomState::new().hash_one(0);
    format!("7b1c54e2-0002-4000-{:04x}-{:012x}", random >> 48, random & 0xffff_ffff_ffff)
}

/// The image of a robot's disk, which remembers this disk.
fn robot_disk(image: &Path, partuuid: &str, remembers: Option<DiskIdentity>) {
    fs::File::create(image).unwrap().set_len(40 << 20).unwrap();
    let device = Attached::new(image, 512);
    let table = format!(
        "label: gpt\nsize=8MiB, name=state\nsize=8MiB, name=recovery, uuid={partuuid}\nsize=8MiB, name=system\n\
         size=8MiB, name=data\n"
    );
    let mut sfdisk = Command::new("sfdisk").args(["-q"]).arg(device.path()).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let _ = Command::new("partx").arg("--update").arg(device.path()).status();
    for (number, label) in [(1, "state"), (2, "recovery"), (4, "data")] {
        run("mkfs.ext4", &["-q", "-F", "-L", label, &device.node(number)]);
    }
    let at = tempfile::tempdir().unwrap();
    device.mount(1, at.path());
    let env = BootEnv::new(&at.path().join("grubenv"));
    env.update(&[("reflash_tries", Some("3"))]).unwrap();
    if let Some(identity) = remembers {
        disk_record::remember(&env, identity).unwrap();
    }
    mount::unmount(at.path()).unwrap();
}

fn identity_of(device: &Attached) -> DiskIdentity {
    disks(Which::WithLoop).unwrap().into_iter().find(|disk| disk.path == device.path()).unwrap().identity()
}

fn search() -> DiskSearch {
    DiskSearch::with(Which::WithLoop, Some(disk_record::read))
}

/// The disk that is found, within some time, as both roles of PID 1 find it.
fn found(partuuid: &str) -> reflash::disk::FoundDisk {
    let limit = Duration::from_secs(20);
    wait_for_disk_by_partuuid(partuuid, search(), limit, |_| ()).unwrap()
}

/// <https://github.com/raspberrypi-ui/piclone/issues/11>, <https://github.com/billw2/rpi-clone/pull/101>: a copy of the
/// disk, or of its table, is attached, and the system starts from the wrong one, or not at all.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_copy_of_the_robots_disk_is_passed_over_whichever_answers_first() {
    isolated("field::media::a_copy_of_the_robots_disk_is_passed_over_whichever_answers_first", || {
        let dir = tempfile::tempdir().unwrap();
        let (image, uuid) = (dir.path().join("own"), partuuid());
        let stranger = DiskIdentity::of(Some("another"), Some("/sys/devices/pci0000:00/usb1/1-1/block/sdx"));
        // What a loop device remembers of itself: it has no serial number, and all have one port.
        robot_disk(&image, &uuid, None);
        let itself = identity_of(&Attached::new(&image, 512));
        let copy = dir.path().join("copy");
        for (remembers, copy_remembers) in
            [(Some(itself), Some(stranger)), (None, Some(stranger)), (Some(itself), None)]
        {
            robot_disk(&image, &uuid, remembers);
            robot_disk(&copy, &uuid, copy_remembers);
            for own_first in [true, false] {
                let (first, second) = if own_first { (&image, &copy) } else { (&copy, &image) };
                let first = Attached::new(first, 512);
                let (found, second) = std::thread::scope(|scope| {
                    let searching = scope.spawn(|| found(&uuid));
                    // A disk that answers later than its copy.
                    std::thread::sleep(Duration::from_millis(if own_first { 0 } else { 1500 }));
                    let second = Attached::new(second, 512);
                    (searching.join().unwrap(), second)
                });
                let own = if own_first { &first } else { &second };
                // Without a memory of its own, the first of two fixed disks is taken at once.
                if own_first || remembers.is_some() && copy_remembers.is_some() {
                    assert_eq!(found.disk.path, own.path(), "{remembers:?} {copy_remembers:?} {own_first}");
                }
            }
        }
    });
}

/// 34 sectors are enough to copy a table; the PARTUUID is in every user's /proc/cmdline.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_copied_table_alone_neither_stops_the_search_nor_is_taken() {
    isolated("field::media::a_copied_table_alone_neither_stops_the_search_nor_is_taken", || {
        let dir = tempfile::tempdir().unwrap();
        let (image, uuid) = (dir.path().join("own"), partuuid());
        robot_disk(&image, &uuid, None);
        let content = fs::read(&image).unwrap();
        for size in [1 << 20, content.len()] {
            let fake = dir.path().join("fake");
            fs::write(&fake, &content[..34 * 512]).unwrap();
            fs::File::options().write(true).open(&fake).unwrap().set_len(size as u64).unwrap();
            let (_fake, own) = (Attached::new(&fake, 512), Attached::new(&image, 512));
            let found = found(&uuid);
            assert_eq!((found.disk.path.as_path(), found.passed_over.len()), (own.path(), 1), "{size}");
            let by_hand = find_disk_by_partuuid(&uuid, search()).unwrap();
            assert_eq!(by_hand.disk.path, own.path());
        }
        // Two that are the same in all respects: none is touched. Of a running system, the one that is mounted.
        let twin = dir.path().join("twin");
        fs::copy(&image, &twin).unwrap();
        let (own, _twin) = (Attached::new(&image, 512), Attached::new(&twin, 512));
        let error = find_disk_by_partuuid(&uuid, search()).unwrap_err();
        assert!(matches!(error, FindError::Several { .. }), "{error}");
        let at = tempfile::tempdir().unwrap();
        own.mount(4, at.path());
        let by_hand = find_disk_by_partuuid(&uuid, search()).unwrap();
        assert_eq!((by_hand.disk.path.as_path(), by_hand.passed_over.len()), (own.path(), 1));
        mount::unmount(at.path()).unwrap();
    });
}
