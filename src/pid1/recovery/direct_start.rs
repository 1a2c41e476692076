//! Start of the system without GRUB, where GRUB starts nothing but recovery any more, because the boot environment
//! cannot be written: a disk that has worn out can only be read, and the robot that it holds works all the same.
//!
//! The worker takes kernel and initramfs out of the system, and PID 1 starts them (kexec) once the worker has ended.
//! Nothing is counted: each restart comes back here by way of GRUB, and asks anew whether something can be stored.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::ending::NextState;
use super::setup::{Compared, Setup};
use crate::boot::direct::{Fragment, FragmentError, arguments};
use crate::chain::chain;
use crate::disk::Scheme;
use crate::disk::roles::Role;
use crate::jobs::recovery::RecoveryJob;
use crate::machine::drivers::{Loader, ModuleError};
use crate::pid1::link::{DIRECT_ARGUMENTS, DIRECT_DIRECTORY, DIRECT_INITRAMFS, DIRECT_KERNEL};
use crate::pid1::worker;
use crate::record::blackbox::AttemptOutcome;
use crate::sys::files;
use crate::sys::loopback::Loop;
use crate::sys::mount::{self, Mount, MountError};

/// Mount point of the system.
const SYSTEM: &str = "/system";
/// GRUB's fragment in the system, which names kernel and initramfs.
const FRAGMENT: &str = "boot/reflash.cfg";
/// Size of the longest fragment, bytes.
const MAX_FRAGMENT_BYTES: u64 = 64 * 1024;
/// Size of the largest kernel or initramfs, bytes: they are held in memory twice.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reason for which the system cannot be started without GRUB.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectStartError {
    #[error("the system cannot be mounted to start it")]
    Mount(#[from] MountError),
    #[error("the disk has no partition named {:?}", .0.name())]
    Partition(Role),
    #[error("the kernel modules could not be used")]
    Modules(#[from] ModuleError),
    #[error("the system partition cannot be shown as a loop device")]
    Loop(#[source] io::Error),
    #[error("cannot read {path} of the system")]
    Read { path: String, source: io::Error },
    #[error("cannot start the system by /{FRAGMENT}")]
    Fragment(#[from] FragmentError),
    #[error("cannot keep {path} in memory")]
    Keep { path: PathBuf, source: io::Error },
}

/// Starts the system of a robot on whose disk nothing can be stored, unless it is known to be damaged.
pub(super) fn of_unwritable(setup: &Setup, job: &RecoveryJob<'_>, why: &str) -> NextState {
    setup.journal.warn(&format!("nothing can be stored on this disk, so that nothing is mended or installed: {why}"));
    if setup.reason.is_requested() {
        return NextState::StartOver("what was asked for cannot be done on a disk that cannot be written".to_owned());
    }
    let sentence = match setup.compare(job) {
        Compared::Damaged => {
            return NextState::StartOver("the system is damaged, on a disk that cannot be written".to_owned());
        }
        Compared::Intact(..) => "the system is intact, on a disk that cannot be written",
        Compared::Unknown => "nothing is known of the system, on a disk that cannot be written",
    };
    start(setup, sentence)
}

/// Starts the system without GRUB; where that is not possible, what GRUB starts.
pub(super) fn start(setup: &Setup, why: &str) -> NextState {
    match prepare(setup) {
        Ok(()) => {
            worker::done();
            setup.finish(AttemptOutcome::Started);
            NextState::StartDirectly(format!("{why}: starting it without GRUB"))
        }
        Err(error) => NextState::StartOver(format!("{why}, and it cannot be started without GRUB: {}", chain(&error))),
    }
}

/// Puts kernel, initramfs and command line where PID 1 finds them.
fn prepare(setup: &Setup) -> Result<(), DirectStartError> {
    let layout = &setup.disk.layout;
    let partition = |role| layout.of_role(role).ok_or(DirectStartError::Partition(role));
    let role = setup.disk.state.system().role();
    let system = partition(role)?;
    let node = system.node.as_deref().ok_or(DirectStartError::Partition(role))?;
    // This process keeps others from writing to the partition, and so from mounting it.
    Loader::for_running_kernel()?.load("loop")?;
    let device = Loop::to_read(node).map_err(DirectStartError::Loop)?;
    Mount::device(device.path(), "ext4").read_only().no_load().data_only().on(SYSTEM)?;
    let root = Path::new(SYSTEM);
    let taken = (|| {
        let read = |source| DirectStartError::Read { path: FRAGMENT.to_owned(), source };
        let text = files::read_below(root, Path::new(FRAGMENT), MAX_FRAGMENT_BYTES).map_err(read)?;
        let fragment = Fragment::parse(&String::from_utf8_lossy(&text))?;
        let data = layout.of_role(Role::Data).map(|data| data.entry.partuuid.as_str());
        let own = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let line = arguments(&own, &fragment, &system.entry.partuuid, data, layout.scheme == Scheme::Gpt);
        let directory = Path::new(DIRECT_DIRECTORY);
        let keep = |path: &Path, source| DirectStartError::Keep { path: path.to_owned(), source };
        fs::create_dir_all(directory).map_err(|source| keep(directory, source))?;
        take(root, &fragment.kernel, &directory.join(DIRECT_KERNEL))?;
        take(root, &fragment.initramfs, &directory.join(DIRECT_INITRAMFS))?;
        let path = directory.join(DIRECT_ARGUMENTS);
        fs::write(&path, line).map_err(|source| keep(&path, source))
    })();
    if let Err(error) = mount::unmount(SYSTEM) {
        setup.journal.warn(&chain(&error));
    }
    taken
}

/// Copies a file of the system into memory.
fn take(root: &Path, path: &str, to: &Path) -> Result<(), DirectStartError> {
    let read = |source| DirectStartError::Read { path: path.to_owned(), source };
    let mut from = files::open_below(root, Path::new(path.trim_start_matches('/'))).map_err(read)?;
    let size_bytes = from.metadata().map_err(read)?.len();
    if size_bytes > MAX_FILE_BYTES {
        let text = format!("it has {size_bytes} bytes, more than {MAX_FILE_BYTES}");
        return Err(read(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    let copied = File::create(to).and_then(|mut file| io::copy(&mut from, &mut file));
    copied.map(drop).map_err(|source| DirectStartError::Keep { path: to.to_owned(), source })
}
