//! A block device that lies, as the kernel sees it: a loop device over a file of a FUSE server of our own, which
//! answers each command to zero or to discard with success and does nothing. (A network block device would do the same,
//! but the kernels of test machines are mostly built without it.)

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use reflash::fetch::Directory;
use reflash::flash::target::{BlockTarget, DeviceTarget};
use reflash::sys::mount::{self, Mount};

use crate::isolated::isolated;
use crate::support::Fixture;
use crate::support::attached::Attached;

// Operations of Linux' include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;
/// The file's node; the root is 1.
const NODE: u64 = 2;
/// Most bytes of one write.
const MAX_WRITE: u32 = 128 * 1024;
/// `ENOSYS`: the kernel does not ask again.
const UNKNOWN: i32 = -38;

/// The one file of the server, and the commands that it lied about.
struct LyingFile {
    content: Mutex<Vec<u8>>,
    lies: AtomicUsize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl LyingFile {
    /// `struct fuse_attr` of a node.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let size = if node == NODE { self.content.lock().unwrap().len() as u64 } else { 0 };
        let (mode, links): (u32, u32) = if node == NODE { (0o100_600, 1) } else { (0o40_700, 2) };
        let mut attr: Vec<u8> =
            [node, size, size / 512, 0, 0, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
        attr.extend([0, 0, 0, mode, links, 0, 0, 0, 4096, 0_u32].iter().flat_map(|field| field.to_le_bytes()));
        attr
    }

    /// Answers a request: an error number, or what follows the head of the answer. `None` where none is expected.
    fn answer(&self, request: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let (operation, node, body) = (u32_at(request, 4), u64_at(request, 16), &request[40..]);
        let place = |at: usize| usize::try_from(u64_at(body, at)).unwrap();
        Some(Ok(match operation {
            FORGET | BATCH_FORGET => return None,
            INIT => {
                // Version 7.31, no feature.
                let mut answer: Vec<u8> = [7, 31, u32_at(body, 8), 0, 0, MAX_WRITE, 1_u32]
                    .iter()
                    .flat_map(|field| field.to_le_bytes())
                    .collect();
                answer.resize(64, 0);
                answer
            }
            LOOKUP if body.starts_with(b"disk\0") => {
                let mut answer: Vec<u8> =
                    [NODE, 0, 60, 60, 0].iter().flat_map(|field: &u64| field.to_le_bytes()).collect();
                answer.extend(self.attributes(NODE));
                answer
            }
            LOOKUP => return Some(Err(-2)),
            GETATTR => [&60_u64.to_le_bytes()[..], &[0; 8], &self.attributes(node)].concat(),
            OPEN => vec![0; 16],
            READ => {
                let content = self.content.lock().unwrap();
                let (from, length) = (place(8).min(content.len()), u32_at(body, 16) as usize);
                content[from..(from + length).min(content.len())].to_vec()
            }
            WRITE => {
                let (from, length) = (place(8), u32_at(body, 16));
                self.content.lock().unwrap()[from..][..length as usize].copy_from_slice(&body[40..][..length as usize]);
                [length.to_le_bytes(), [0; 4]].concat()
            }
            FALLOCATE => {
                self.lies.fetch_add(1, Ordering::SeqCst);
                Vec::new()
            }
            STATFS => vec![0; 80],
            RELEASE | FSYNC | FLUSH => Vec::new(),
            _ => return Some(Err(UNKNOWN)),
        }))
    }

    /// Serves until the file system is unmounted.
    fn serve(&self, mut device: &File) {
        let mut buffer = vec![0; MAX_WRITE as usize + 8192];
        while let Ok(length @ 40..) = device.read(&mut buffer) {
            let request = &buffer[..length];
            let Some(answer) = self.answer(request) else { continue };
            let (error, body) = answer.map_or_else(|error| (error, Vec::new()), |body| (0, body));
            let length = u32::try_from(16 + body.len()).unwrap();
            let whole = [&length.to_le_bytes()[..], &error.to_le_bytes(), &request[8..16], &body].concat();
            // A request that was interrupted has nobody who waits for its answer.
            let _ = device.write(&whole);
        }
    }
}

/// <https://github.com/spdk/spdk/issues/1634>: a target without a command to zero answered all the same.
#[test]
#[ignore = "needs root: mounts a file system and attaches a loop device"]
fn a_block_device_that_only_says_that_it_has_zeroed_gets_zeros() {
    isolated("field::lying_device::a_block_device_that_only_says_that_it_has_zeroed_gets_zeros", || {
        let is_zero = |block: usize| (8..40).contains(&block) || (60..100).contains(&block) || block >= 200;
        let block = |number: usize| vec![if is_zero(number) { 0 } else { 1 + (number % 200) as u8 }; 4096];
        let fixture = Fixture::with((0..256).flat_map(block).collect(), |_| {});
        let file = Arc::new(LyingFile { content: Mutex::new(vec![0x55; 2 << 20]), lies: AtomicUsize::new(0) });
        let directory = tempfile::tempdir().unwrap();
        let device = Arc::new(OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap());
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        Mount::virtual_fs("fuse").data(options).on(directory.path()).unwrap();
        let (serving, served) = (Arc::clone(&file), Arc::clone(&device));
        std::thread::spawn(move || serving.serve(&served));
        {
            let attached = Attached::new(&directory.path().join("disk"), 512);
            let target = DeviceTarget::open(attached.path()).unwrap();
            // What the kernel says of such a disk: the command is there, and it succeeds.
            target.zero(0..1 << 20).unwrap();
            target.flush().unwrap();
            assert!(file.lies.load(Ordering::SeqCst) > 0, "this kernel does not pass the command on");
            assert!(file.content.lock().unwrap().iter().all(|byte| *byte == 0x55), "the disk keeps what it had");
            fixture.recover(&Directory::new(fixture.tree()), &target, None).unwrap();
        }
        let content = file.content.lock().unwrap();
        assert!(content[..fixture.image.len()] == fixture.image, "zeros were written where none were made");
        assert!(content[fixture.image.len()..].iter().all(|byte| *byte == 0x55), "behind the image");
        drop(content);
        mount::detach(Path::new(directory.path())).unwrap();
    });
}
