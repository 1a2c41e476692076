//! The store on a real file system: one that is full, one that is read-only, and one whose robot was cut.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use reflash::chain::chain;
use reflash::jobs::update::UpdateStore;
use reflash::sys::loopback::Loop;
use reflash::sys::mount::{self, Mount};

use super::{Robot, Server, rebuilt};

fn unmounted(at: &Path) {
    mount::unmount(at).unwrap();
}

#[test]
#[ignore = "needs root: a file system in memory"]
fn a_data_partition_without_room_or_that_cannot_be_written_is_said() {
    let robot = Robot::new(rebuilt);
    let directory = robot.directory();
    let memory = |size: &str| Mount::virtual_fs("tmpfs").data(format!("size={size}")).on(&directory).unwrap();
    // The room that stays free for the robot, and next to nothing beside it.
    memory("66300k");
    let server = Server::new(&robot.fixture);
    let error = robot.stage(&server).err().unwrap();
    let text = chain(&error);
    assert!(error.is_retryable() && text.contains("64.0 MiB stay free for the robot"), "{text}");
    assert!(fs::metadata(directory.join("content")).unwrap().len() < 200_000, "the frames were not begun");
    unmounted(&directory);
    // Another program fills the file system later: what was reserved is there.
    memory("90m");
    let cut = Server::until(&robot.fixture, 300_000);
    robot.stage(&cut).err().unwrap();
    let mut filler = File::create(directory.join("filler")).unwrap();
    while filler.write_all(&[7; 65536]).is_ok() {}
    let error = robot.stage(&server).err().unwrap();
    assert!(error.is_retryable(), "{}", chain(&error));
    drop(filler);
    fs::remove_file(directory.join("filler")).unwrap();
    robot.stage(&server).unwrap();
    mount::remount_read_only(&directory).unwrap();
    assert_eq!(robot.apply().unwrap(), robot.fixture.image, "what is there is of use");
    let text = chain(&robot.stage(&server).err().unwrap());
    assert!(text.contains("Read-only file system") && text.contains("store"), "{text}");
    unmounted(&directory);
}

#[test]
#[ignore = "needs root: a file system on a loop device"]
fn the_data_partition_of_a_robot_that_was_cut_is_read_and_not_written() {
    let robot = Robot::new(rebuilt);
    let dir = tempfile::tempdir().unwrap();
    let (live, image, at) = (dir.path().join("live.img"), dir.path().join("cut.img"), dir.path().join("data"));
    File::create(&live).unwrap().set_len(200 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&live).status().unwrap();
    assert!(made.success());
    {
        let device = Loop::of(&live, 0..200 << 20, 512).unwrap();
        Mount::device(device.path(), "ext4").on(&at).unwrap();
    }
    robot.stage(&Server::new(&robot.fixture)).unwrap();
    let inside = at.join("var/lib/reflash/update");
    fs::create_dir_all(&inside).unwrap();
    for name in ["map", "content"] {
        fs::copy(robot.directory().join(name), inside.join(name)).unwrap();
    }
    Command::new("sync").arg("-f").arg(&at).status().unwrap();
    // A file that was deleted and is still open: a mount deletes it for good.
    let orphan = at.join("orphan");
    let mut open = File::create(&orphan).unwrap();
    open.write_all(&[1; 100_000]).unwrap();
    open.sync_all().unwrap();
    fs::remove_file(&orphan).unwrap();
    File::open(&at).unwrap().sync_all().unwrap();
    Command::new("sync").arg("-f").arg(&at).status().unwrap();
    // The robot is cut here.
    fs::copy(&live, &image).unwrap();
    drop(open);
    unmounted(&at);
    let before = fs::read(&image).unwrap();
    assert!(before[1024 + 0x60] & 4 != 0, "its journal is not empty");
    let store = UpdateStore::open_on_partition(&image, &at).unwrap();
    assert!(store.is_complete() && store.is_whole().unwrap());
    assert_eq!(store.release(&robot.fixture.keys).unwrap().id(), robot.offered().id());
    drop(store);
    unmounted(&at);
    assert!(fs::read(&image).unwrap() == before, "nothing of the data partition is written");
}
