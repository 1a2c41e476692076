//! Reads back behind the writer: what was written is flushed and read while the rest is on its way.

use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex};

use super::zero_command::Zeroing;
use crate::flash::readback::ReadBack;
use crate::flash::target::BlockTarget;
use crate::flash::threads::lock;
use crate::record::progress::Done;
use crate::release::index::ChunkNo;

/// Written bytes that are flushed and read back together. A flush makes some devices wait, so it must not come too
/// often. Without a flush, the bytes may be read from the device's own memory and prove nothing.
pub(super) const STEP_BYTES: u64 = 128 * 1024 * 1024;

/// Chunks that were written and not read back yet.
#[derive(Default)]
pub(super) struct Unread {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    chunks: Vec<Range<ChunkNo>>,
    bytes: u64,
    is_over: bool,
}

impl Unread {
    /// Adds chunks that were written.
    pub(super) fn push(&self, chunks: Range<ChunkNo>, bytes: u64) {
        let mut queue = lock(&self.queue);
        queue.chunks.push(chunks);
        queue.bytes += bytes;
        if queue.bytes >= STEP_BYTES {
            self.changed.notify_one();
        }
    }

    /// Ends the reading because nothing more is written. The last chunks are left for all cores, after the last flush.
    pub(super) fn end(&self) {
        lock(&self.queue).is_over = true;
        self.changed.notify_one();
    }

    /// Flushes and reads back, a step at a time, until [`end`](Self::end). What was to be zeroed and was not is noted.
    ///
    /// # Errors
    /// The target could not be flushed.
    pub(super) fn read_back(
        &self,
        read_back: &ReadBack<'_>,
        target: &dyn BlockTarget,
        done: &Done,
        zeroing: &Zeroing,
    ) -> io::Result<()> {
        loop {
            let is_waiting = |queue: &mut Queue| queue.bytes < STEP_BYTES && !queue.is_over;
            let Ok(mut queue) = self.changed.wait_while(lock(&self.queue), is_waiting) else { return Ok(()) };
            if queue.is_over {
                return Ok(());
            }
            let mut chunks: Vec<ChunkNo> = std::mem::take(&mut queue.chunks).into_iter().flatten().collect();
            queue.bytes = 0;
            drop(queue);
            target.flush()?;
            chunks.sort_unstable();
            read_back.read(target, &chunks, done);
            if read_back.has_wrong_zeros(&chunks) {
                zeroing.note_lie();
            }
        }
    }
}
