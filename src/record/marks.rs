//! The marks of a black box, changed beside other processes.

use std::io;
use std::path::Path;

use crate::record::blackbox::{BlackBox, Marks};
use crate::sys::turn;

/// Changes the marks of the black box at `path` as they are by now: in the running system, `reflash good` and
/// `reflash report` come at the same time. A file that cannot be opened has none.
///
/// # Errors
/// The file system's.
pub fn change(path: &Path, change: &dyn Fn(&BlackBox) -> Marks) -> io::Result<()> {
    let _turn = turn::beside(path);
    let Ok(mut open) = BlackBox::open(path) else { return Ok(()) };
    let marks = change(&open);
    // A write at every boot would wear the disk for nothing.
    if marks == open.marks() { Ok(()) } else { open.mark(marks) }
}
