//! Holds a write back until the moves have read what it would overwrite.

use std::sync::{Condvar, Mutex};

use crate::flash::threads::lock;

/// Counts the batches of moves that have been read, and lets writers wait for a count.
#[derive(Default)]
pub(super) struct Gate {
    read_batches: Mutex<u32>,
    changed: Condvar,
}

impl Gate {
    /// Returns once `batches` batches have been read.
    pub(super) fn wait(&self, batches: u32) {
        let read = lock(&self.read_batches);
        drop(self.changed.wait_while(read, |read| *read < batches));
    }

    /// Records that the first `batches` batches have been read.
    pub(super) fn advance(&self, batches: u32) {
        let mut read = lock(&self.read_batches);
        *read = batches.max(*read);
        self.changed.notify_all();
    }

    /// Lets everything pass: all batches have been read, or the work is given up.
    pub(super) fn open(&self) {
        self.advance(u32::MAX);
    }
}
