//! Mounts of a command beside other commands: in a mount namespace of its own, which the kernel takes away with the
//! process, however that ends. The programs that it starts see the mounts of the system.
#![allow(unsafe_code)] // pre_exec

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};

use super::mount::detach_below;

/// What this process has left, or why it could not.
static LEFT: OnceLock<Result<Outside, nix::errno::Errno>> = OnceLock::new();

/// The namespace of the system, and the places that this process had in it.
#[derive(Debug)]
struct Outside {
    namespace: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

/// Gives this process mounts of its own, once: those of the system, without what a command of before has left on one of
/// `places`. What the system mounts and unmounts from now on is seen here, and nothing else sees what is mounted here.
/// To be called before there are other threads, which would keep the mounts of the system.
///
/// # Errors
/// The process lacks the rights, or there is no `/proc`.
pub fn begin(places: &[PathBuf]) -> io::Result<()> {
    let left = LEFT.get_or_init(|| {
        let outside = Outside {
            namespace: OwnedFd::from(File::open("/proc/self/ns/mnt").map_err(|error| errno(&error))?),
            root: place("/")?,
            directory: place(".")?,
        };
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&Path> = None;
        // In a root that is no mount, as one of chroot(1), there is nothing that passes mounts on.
        match mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(error) => return Err(error),
        }
        places.iter().for_each(|place| detach_below(place));
        Ok(outside)
    });
    left.as_ref().map(drop).map_err(|errno| (*errno).into())
}

fn place(path: &str) -> Result<OwnedFd, nix::errno::Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error()))
}

fn errno(error: &io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Has a program see the mounts of the system: what it mounts stays, and it is not taken for one in a root of its own.
pub fn start_outside(command: &mut Command) -> &mut Command {
    let Some(Ok(outside)) = LEFT.get() else { return command };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. This makes four system calls with
    // descriptors that live as long as the program; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || outside.enter()) }
}

impl Outside {
    fn enter(&self) -> io::Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
        nix::unistd::fchdir(&self.root)?;
        nix::unistd::chroot(".")?;
        nix::unistd::fchdir(&self.directory)?;
        Ok(())
    }
}
