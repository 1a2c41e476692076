//! Inserting kernel modules.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Inserts the module in `file`, without parameters. `false` when it was loaded already.
///
/// # Errors
/// The kernel's refusal; its log has the reason.
pub fn insert(file: &File) -> io::Result<bool> {
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
