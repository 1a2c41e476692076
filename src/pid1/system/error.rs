//! Errors of the first step of the system's boot.

use crate::disk::FindError;
use crate::machine::drivers::ModuleError;
use crate::sys::ext4;
use crate::sys::mount::MountError;

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
    /// A device did not answer.
    #[error("no answer within {limit_s} s to: {action}")]
    NoAnswer {
        /// Action that was tried, as a verb with the device.
        action: String,
        /// Time that was waited, seconds.
        limit_s: u64,
    },
    /// A program ended with an error.
    #[error("{program} ended with {status}; its output is above")]
    Program {
        /// The program and its arguments.
        program: String,
        /// Exit status of the program.
        status: String,
    },
}

impl SysrootError {
    /// An error of a file or directory, where `action` is a verb with the path.
    pub(super) fn file(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::File { action, source }
    }

    /// Whether the kernel says that a file system is damaged, or that one of its checksums is wrong.
    pub(super) fn is_damage(&self) -> bool {
        let (Self::Mount(MountError { source, .. }) | Self::File { source, .. }) = self else { return false };
        ext4::is_damage(source)
    }
}
