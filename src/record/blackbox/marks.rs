//! The marks of a black box, changed beside other processes.

use std::io;
use std::path::Path;

use super::{BlackBox, Marks};
use crate::sys::turn;

impl BlackBox {
    /// Changes the marks of the file at `path` as they are by now: in the running system, `reflash good` and
    /// `reflash report` come at the same time. A file that cannot be opened has none.
    ///
    /// # Errors
    /// The file system's.
    pub fn remark(path: &Path, change: &dyn Fn(&Self) -> Marks) -> io::Result<()> {
        let _turn = turn::beside(path);
        let Ok(mut open) = Self::open(path) else { return Ok(()) };
        let marks = change(&open);
        // A write at every boot would wear the disk for nothing.
        if marks == open.marks { Ok(()) } else { open.mark(marks) }
    }
}
