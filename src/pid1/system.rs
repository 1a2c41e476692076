//! PID 1 of the system's own initramfs: it mounts the system read-only, puts the machine's own state over it, and
//! becomes systemd. A worker does all of that but the last step, since every disk and USB drive that is plugged in is
//! looked at on the way: PID 1 outlives whatever one of them holds.
//!
//! The system partition is never written. What the machine owns lies on the data partition: `/var` whole, and of
//! `/etc` what differs from the image, as an overlay, so that a new image brings its own defaults along.

pub mod disk_wait;
mod hostname;
mod leave;
mod messages;
mod safe_network;

use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::boot::{disk_record, this_boot};
use crate::chain::chain;
use crate::disk::{self, DiskSearch, FindError, ReadRecord, Which};
use crate::machine::drivers::{Coldplug, Loader, ModuleError};
use crate::pid1::boot_watch;
use crate::pid1::link::{Handover, WORKER, WorkPart};
use crate::pid1::supervisor::deaths::{Deaths, WorkerLife};
use crate::pid1::supervisor::each_report;
use crate::pid1::worker;
use crate::sys::init;
use crate::sys::mount::{self, Mount, MountError};
use crate::sys::power;
use crate::sys::process::{self, ProcessEnding};
use crate::sys::{block, ext4};
use messages::{log, say};

/// Mount point of the system partition, which becomes `/`.
const ROOT: &str = "/sysroot";
/// Mount point of the data partition until its parts are in place.
const DATA: &str = "/data";
/// Program that the system starts with.
const INIT: &str = "/sbin/init";
/// OSTree's program in the image that goes from the partition's root to the deployment that `ostree=` names.
const PREPARE_ROOT: &str = "/usr/lib/ostree/ostree-prepare-root";
/// Program in the image that checks the data partition.
const FSCK: &str = "/usr/sbin/e2fsck";

/// Processes that may die before the system counts as one that does not start: enough to leave out a part of which two
/// die, and one more of chance.
const MAX_WORKERS: u32 = 4;
/// Exit code of the process that put the file systems together.
const PREPARED: i32 = 0;
/// Exit code of the process that could not, and has said why.
const FAILED: i32 = 3;
/// Time a person has to read why the system did not start. GRUB has counted this try.
const READING_TIME: Duration = Duration::from_secs(20);

/// Error that keeps the system from being started.
#[derive(Debug, thiserror::Error)]
pub enum SysrootError {
    /// GRUB did not name a partition.
    #[error("the kernel argument {name}=PARTUUID is missing; GRUB passes it from its boot script")]
    Argument {
        /// Name of the missing argument.
        name: &'static str,
    },
    /// The disk is not there, or there are two of it.
    #[error("the disk of the system was not found")]
    Disk(#[from] FindError),
    /// The disk has no such partition.
    #[error("{disk} has no {name} partition with PARTUUID {partuuid}")]
    Partition {
        /// The disk, with its model and size.
        disk: String,
        /// Name of the partition.
        name: &'static str,
        /// PARTUUID on the kernel command line.
        partuuid: String,
    },
    /// A kernel module that no device asks for cannot be loaded.
    #[error("a kernel module cannot be used")]
    Module(#[from] ModuleError),
    /// A file system cannot be mounted.
    #[error("the file systems cannot be put together")]
    Mount(#[from] MountError),
    /// A file or directory cannot be used.
    #[error("cannot {action}")]
    File {
        /// Action that was tried, as a verb with the path.
        action: String,
        /// Error of the system call.
        source: std::io::Error,
    },
    /// The process that puts the file systems together failed or died.
    #[error("its file systems were not put together; the reason is above")]
    Worker,
    /// A program ended with an error.
    #[error("{program} ended with {status}; its output is above")]
    Program {
        /// The program and its arguments.
        program: String,
        /// Exit status of the program.
        status: String,
    },
}

/// Partitions that the kernel command line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// PARTUUID of the system partition.
    pub system: String,
    /// PARTUUID of the data partition.
    pub data: String,
}

impl Arguments {
    /// Reads `reflash.system=` and `reflash.data=`. Of several the last one counts, as it does for the kernel.
    ///
    /// # Errors
    /// [`SysrootError::Argument`] when one is missing or empty.
    pub fn parse(command_line: &str) -> Result<Self, SysrootError> {
        let find = |name: &'static str| {
            let mut values =
                command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let value = values.next_back().filter(|value| !value.is_empty());
            value.map(str::to_ascii_lowercase).ok_or(SysrootError::Argument { name })
        };
        Ok(Self { system: find("reflash.system")?, data: find("reflash.data")? })
    }
}

/// One step on the way to the system's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootStep {
    /// Mounts the system so that not one bit of it changes: without replaying a journal either.
    System {
        /// Device of the partition.
        device: PathBuf,
    },
    /// Turns the root of the partition into that of the deployment.
    Deployment,
    /// Repairs what a power cut left.
    Check {
        /// Device of the data partition.
        device: PathBuf,
    },
    /// Mounts the data partition.
    Data {
        /// Device of the partition.
        device: PathBuf,
    },
    /// Lets that grow to the size of its partition, which it does once.
    Grow {
        /// Device of the partition.
        device: PathBuf,
    },
    /// Makes a directory, unless it is there.
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Permissions of a new one.
        mode: u32,
    },
    /// Makes a directory visible at another place.
    Bind {
        /// Directory that is made visible.
        from: PathBuf,
        /// Directory at which it is made visible.
        to: PathBuf,
    },
    /// Puts changes over a directory.
    Overlay {
        /// The directory, as the image has it.
        over: PathBuf,
        /// Directory of the changes.
        upper: PathBuf,
        /// Work directory of the overlay.
        work: PathBuf,
    },
    /// Unmounts what is visible at other places by now.
    Unmount {
        /// Mount point to unmount.
        path: PathBuf,
    },
}

impl fmt::Display for BootStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { device } => write!(f, "mount the system, {}, read-only", device.display()),
            Self::Deployment => f.write_str("enter the deployment"),
            Self::Check { device } => write!(f, "check the data partition, {}", device.display()),
            Self::Data { device } => write!(f, "mount the data partition, {}", device.display()),
            Self::Grow { .. } => f.write_str("let the data file system have all of its partition"),
            Self::Directory { path, .. } => write!(f, "create {}", path.display()),
            Self::Bind { from, to } => write!(f, "bind {} to {}", from.display(), to.display()),
            Self::Overlay { over, upper, .. } => write!(f, "put {} over {}", upper.display(), over.display()),
            Self::Unmount { path } => write!(f, "unmount {}", path.display()),
        }
    }
}

/// Lists the steps to the system's root, in order.
#[must_use]
pub fn steps(system: &Path, data: &Path) -> Vec<BootStep> {
    let (root, data_at) = (Path::new(ROOT), Path::new(DATA));
    let (var, overlay) = (data_at.join("var"), data_at.join("etc-overlay"));
    let (upper, work) = (overlay.join("upper"), overlay.join("work"));
    let directory = |path: &Path, mode| BootStep::Directory { path: path.to_owned(), mode };
    vec![
        BootStep::System { device: system.to_owned() },
        BootStep::Deployment,
        BootStep::Check { device: data.to_owned() },
        BootStep::Data { device: data.to_owned() },
        BootStep::Grow { device: data.to_owned() },
        directory(&var, 0o755),
        // The overlay takes the permissions of its root, /etc, from here.
        directory(&overlay, 0o700),
        directory(&upper, 0o755),
        directory(&work, 0o700),
        BootStep::Bind { from: var, to: root.join("var") },
        BootStep::Overlay { over: root.join("etc"), upper, work },
        BootStep::Unmount { path: data_at.to_owned() },
    ]
}

impl BootStep {
    fn take(&self) -> Result<(), SysrootError> {
        match self {
            Self::System { device } => Mount::device(device, "ext4").read_only().no_load().on(ROOT)?,
            Self::Deployment => program(PREPARE_ROOT, &[ROOT], &[0])?,
            Self::Check { device } => check(device)?,
            Self::Data { device } => Mount::device(device, "ext4").no_suid().no_dev().on(DATA)?,
            Self::Grow { device } => grow(device),
            Self::Directory { path, mode } => make_directory(path, *mode)?,
            Self::Bind { from, to } => mount::bind(from, to)?,
            // The lower directory changes with every release, which an overlay bears only without these features.
            Self::Overlay { over, upper, work } => Mount::overlay(over, upper, work)
                .data("redirect_dir=off")
                .data("index=off")
                .data("metacopy=off")
                .on(over)?,
            Self::Unmount { path } => mount::unmount(path)?,
        }
        Ok(())
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), SysrootError> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |source| SysrootError::File { action: format!("create {}", path.display()), source };
    fs::DirBuilder::new().mode(mode).create(path).map_err(failed)?;
    // The umask may have taken permissions away.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Lets the data file system fill its partition: provisioning writes a small one into a partition of any size. Where it
/// cannot grow, the machine works with less room.
fn grow(device: &Path) {
    let size = block::Device::open(device, block::Access::Read, block::Caching::Buffered).map(|it| it.size_bytes());
    let grown = size.map_err(std::io::Error::other).and_then(|size| ext4::grow(Path::new(DATA), size));
    if let Err(error) = grown {
        say(&format!("the data file system keeps its size: {error}"));
    }
}

/// Good exit statuses of e2fsck: 0 is clean, 1 corrected, 2 corrected with a reboot wanted if the file system was
/// mounted (e2fsck(8)), which it is not.
const CHECKED: &[i32] = &[0, 1, 2];

/// Checks and repairs a file system. Preening leaves some repairs to a person, whom a robot cannot ask: then every
/// repair is made, since a data partition that does not mount is lost altogether. Pieces end up in lost+found.
fn check(device: &Path) -> Result<(), SysrootError> {
    let device = device.to_string_lossy();
    match program(FSCK, &["-p", &device], CHECKED) {
        Err(SysrootError::Program { status, .. }) => {
            say(&format!("data partition: e2fsck -p ended with {status}; repairing all it finds"));
            program(FSCK, &["-f", "-y", &device], CHECKED)
        }
        result => result,
    }
}

fn program(path: &str, arguments: &[&str], good: &[i32]) -> Result<(), SysrootError> {
    let line = || format!("{path} {}", arguments.join(" "));
    let status = process::run_and_wait(Path::new(path), arguments)
        .map_err(|source| SysrootError::File { action: format!("start {}", line()), source })?;
    if status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    Err(SysrootError::Program { program: line(), status: status.to_string() })
}

/// Starts the system, as PID 1. Never returns: systemd takes this process over, or the machine reboots.
pub fn run() -> ! {
    init::install_panic_hook(READING_TIME);
    let error = start();
    say(&format!("the system cannot be started: {}", chain(&error)));
    say(&format!("rebooting in {} s; GRUB has counted this try", READING_TIME.as_secs()));
    std::thread::sleep(READING_TIME);
    loop {
        let Err(error) = power::reboot();
        say(&format!("the kernel refuses to reboot: {error}"));
        std::thread::sleep(READING_TIME);
    }
}

/// Starts systemd. Returns only an error, since otherwise this process becomes systemd.
fn start() -> SysrootError {
    if let Err(error) = bring_up() {
        return error;
    }
    // Lives until this process has become systemd, by which the watch knows.
    let _watch = boot_watch::start().inspect_err(|error| say(&format!("this start is not watched: {error}")));
    match have_prepared() {
        Ok(()) => match mount::switch_root(Path::new(ROOT), Path::new(INIT), &[]) {
            Ok(never) => match never {},
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

fn bring_up() -> Result<(), SysrootError> {
    init::bring_up()?.iter().for_each(|note| say(note));
    Ok(())
}

/// Has a worker put the file systems together, and another one if it dies.
fn have_prepared() -> Result<(), SysrootError> {
    let mut deaths = Deaths::default();
    let mut died = None;
    for _ in 0..MAX_WORKERS {
        let handover = Handover { died: died.take(), left_out: deaths.left_out().to_vec(), ..Handover::default() };
        let mut life = WorkerLife::default();
        let started = process::start_self(WORKER, &serde_json::to_string(&handover).unwrap_or_default())
            .map_err(|source| SysrootError::File { action: "start a process".into(), source })?;
        each_report(started.output, |report| life.take(report));
        let ending = process::wait_for(started.pid);
        if let ProcessEnding::Exited(PREPARED | FAILED) = ending {
            return if ending == ProcessEnding::Exited(PREPARED) { Ok(()) } else { Err(SysrootError::Worker) };
        }
        let obituary = life.obituary(&ending);
        say(&format!("the process that mounts the system died, {obituary}"));
        let _ = deaths.add(&life, &ending, Duration::ZERO);
        died = Some(obituary);
        // A check of the data partition that it left behind must not meet a second one, and what it had mounted is in
        // the way of the next one.
        process::wait_for_group();
        mount::release_disks();
    }
    Err(SysrootError::Worker)
}

/// Puts the file systems together, in the process that PID 1 started for it. Never returns.
pub fn work(handover: &Handover) -> ! {
    worker::report_panics();
    if let Err(error) = prepare(handover) {
        say(&chain(&error));
        std::process::exit(FAILED);
    }
    std::process::exit(PREPARED)
}

fn prepare(handover: &Handover) -> Result<(), SysrootError> {
    let command_line = fs::read_to_string("/proc/cmdline")
        .map_err(|source| SysrootError::File { action: "read /proc/cmdline".into(), source })?;
    let arguments = Arguments::parse(&command_line)?;
    let loader = Arc::new(Loader::for_running_kernel()?);
    // No device asks for these modules.
    loader.load("ext4")?;
    loader.load("overlay")?;
    // Loads drivers while we wait for the disk; the thread ends when this process becomes systemd.
    let coldplug = Coldplug::start(Arc::clone(&loader), |_| {});
    if let Err(error) = &coldplug {
        say(&format!("drivers of devices that appear late are not loaded: {error}"));
    }
    for failure in loader.load_for_present_devices().failures {
        say(&chain(&failure));
    }
    if handover.died.is_some() {
        loader.bind_present_devices();
    }
    let limit = disk_wait::limit(&command_line);
    let waiting = |waiting: &disk::Waiting<'_>| disk_wait::report(waiting, limit, say, || loader.look_again());
    let read_record = (!handover.leaves_out(&WorkPart::State)).then_some(disk_record::read as ReadRecord);
    let avoid_external = handover.leaves_out(&WorkPart::RemovableDisks);
    let search = DiskSearch { avoid_external, ..DiskSearch::with(Which::Physical, read_record) };
    let found = disk::wait_for_disk_by_partuuid(&arguments.system, search, limit, waiting)?;
    for other in &found.passed_over {
        say(&format!("not the disk of this system: {other}"));
    }
    let node = |name, partuuid: &str| {
        let partition = found.layout.partuuid(partuuid).and_then(|partition| partition.node.clone());
        let missing = || SysrootError::Partition { disk: found.disk.to_string(), name, partuuid: partuuid.to_owned() };
        partition.ok_or_else(missing)
    };
    let (system, data) = (node("system", &arguments.system)?, node("data", &arguments.data)?);
    for step in steps(&system, &data) {
        log(&step.to_string());
        step.take()?;
    }
    // A machine without its own name still works; the log says why the name is missing.
    match hostname::set(&found.layout) {
        Ok(Some(name)) => log(&format!("host name {name}")),
        Ok(None) => {}
        Err(error) => say(&format!("the host name stays that of the image: {}", chain(&error))),
    }
    let safe_start = this_boot::safe_start(&command_line);
    for problem in leave::for_the_system(&found.layout, Path::new(ROOT), &command_line, safe_start) {
        say(&problem);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Arguments, BootStep, check, make_directory, program, steps};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[test]
    fn partitions_come_from_the_command_line() {
        let line = "BOOT_IMAGE=x ro reflash.system=OLD reflash.data=B-2 quiet reflash.system=A-1\n";
        assert_eq!(Arguments::parse(line).unwrap(), Arguments { system: "a-1".into(), data: "b-2".into() });
        for (line, name) in [("reflash.data=x", "reflash.system"), ("reflash.system=x reflash.data=", "reflash.data")] {
            let error = Arguments::parse(line).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn data_is_checked_before_it_is_mounted_and_the_overlay_comes_over_the_deployment() {
        let steps = steps(Path::new("/dev/vda5"), Path::new("/dev/vda6"));
        let at = |wanted: &dyn Fn(&BootStep) -> bool| steps.iter().position(wanted).unwrap();
        let system = at(&|step| matches!(step, BootStep::System { device } if device == Path::new("/dev/vda5")));
        let deployment = at(&|step| *step == BootStep::Deployment);
        let check = at(&|step| matches!(step, BootStep::Check { device } if device == Path::new("/dev/vda6")));
        let data = at(&|step| matches!(step, BootStep::Data { .. }));
        let overlay = at(&|step| matches!(step, BootStep::Overlay { over, .. } if over == Path::new("/sysroot/etc")));
        let bind = at(&|step| matches!(step, BootStep::Bind { to, .. } if to == Path::new("/sysroot/var")));
        assert!(system < deployment && deployment < bind && deployment < overlay);
        assert!(check < data && data < bind && data < overlay);
        assert!(matches!(steps.last(), Some(BootStep::Unmount { .. })));
        // An overlay wants its two directories on one file system, and both there.
        for directory in ["upper", "work"] {
            let path = Path::new("/data/etc-overlay").join(directory);
            assert!(at(&|step| matches!(step, BootStep::Directory { path: made, .. } if *made == path)) < overlay);
        }
    }

    #[test]
    fn directories_get_their_mode_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        make_directory(&path, 0o711).unwrap();
        make_directory(&path, 0o700).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o711);
        assert!(make_directory(Path::new("/no/such/parent"), 0o700).is_err());
    }

    #[test]
    fn failing_programs_are_named() {
        assert!(program("/bin/true", &[], &[0]).is_ok());
        let error = program("/bin/sh", &["-c", "exit 8"], &[0, 1]).unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains('8'), "{error}");
        assert!(check(Path::new("/no/such/device")).is_err());
    }
}
